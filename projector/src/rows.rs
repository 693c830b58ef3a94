//! What a record's row and a row of its feed hold, column by column, said once for every way to write them. Knows no SQL and no
//! format: it names a column and hands its value to whoever takes it.

use crate::chunk::FeedRow;
use crate::state::{Doc, RecordKey, State};
use chrono::{DateTime, Utc};
use tidelog_events::domain::Domain;
use tidelog_events::ids::DeviceType;
use uuid::Uuid;

/// Takes a row's values, one after the other; every row of a table has the same columns in the same order.
pub(crate) trait Cells {
    fn text(&mut self, name: &'static str, value: Option<&str>);
    /// A UUID that travels as text through the fold.
    fn uuid_text(&mut self, name: &'static str, value: &str);
    fn uuid(&mut self, name: &'static str, value: Option<Uuid>);
    fn bigint(&mut self, name: &'static str, value: Option<i64>);
    fn integer(&mut self, name: &'static str, value: i32);
    fn boolean(&mut self, name: &'static str, value: bool);
    fn time(&mut self, name: &'static str, value: DateTime<Utc>);
    fn json(&mut self, name: &'static str, value: Option<&Doc>);
    fn texts<'a>(&mut self, name: &'static str, value: Option<impl ExactSizeIterator<Item = &'a str>>);
}

/// The columns of a table's primary key, for an `ON CONFLICT`.
pub(crate) fn row_key(domain: &Domain) -> String {
    let parent = if domain.parent.is_some() {
        ", parent_id"
    } else {
        ""
    };
    format!("tenant_id, {}{parent}", domain.id_column())
}

/// A record's row.
pub(crate) fn row(domain: &Domain, key: &RecordKey, state: &State, cells: &mut impl Cells) {
    cells.text("tenant_id", Some(&key.tenant));
    identity(domain, key, cells);
    cells.bigint("version", Some(state.version));
    cells.boolean("deleted", state.deleted);
    cells.json("doc", Some(&state.doc));
    cells.time("last_sync_timestamp", state.changed_at);
    cells.time("updated_at", state.item_time);
    cells.time("created_at", state.created_at);
    cells.text("owner_id", Some(&state.owner));
    cells.text("user_id", Some(&state.user));
    cells.text("device_id", Some(&state.device));
    cells.text("device_type", device_type(state).as_deref());
    cells.bigint("run_from", Some(state.run_from));
    cells.bigint("ahead_base", Some(state.ahead_base));
    cells.integer("partition", state.place.partition);
    cells.bigint("offset", Some(state.place.offset));
    if domain.visibility.stores_audience() {
        cells.texts("audience", Some(texts(audience(state))));
    }
}

/// A row of its feed.
pub(crate) fn feed_row(domain: &Domain, row: &FeedRow, cells: &mut impl Cells) {
    let (state, touched) = (&row.step.state, &row.step.touched);
    cells.text("tenant_id", Some(&row.record.tenant));
    cells.integer("partition", state.place.partition);
    cells.bigint("offset", Some(state.place.offset));
    identity(domain, &row.record, cells);
    cells.bigint("version", Some(state.version));
    cells.text("operation", Some(row.operation));
    cells.texts("fields", Some(touched.fields.iter()));
    cells.json("before", (!touched.before.is_empty()).then_some(&touched.before));
    cells.time("changed_at", state.changed_at);
    cells.time("item_time", state.item_time);
    cells.text("user_id", Some(&state.user));
    cells.text("device_id", Some(&state.device));
    cells.text("device_type", device_type(state).as_deref());
    cells.uuid("batch_id", Some(row.batch_id));
    cells.integer("batch_index", row.batch_index);
    cells.bigint("base_version", Some(row.base_version));
    cells.uuid("item_hash", Some(row.item_hash));
    cells.uuid("conflict_id", row.conflict_id);
    cells.bigint("previous_offset", row.step.previous_offset);
    if domain.visibility.stores_audience() {
        let before = row.step.audience_before.as_ref();
        cells.texts("audience_before", before.map(|audience| texts(&audience.0)));
        cells.texts("audience", Some(texts(audience(state))));
    }
}

fn identity(domain: &Domain, key: &RecordKey, cells: &mut impl Cells) {
    match domain.is_entity() {
        true => cells.uuid_text(domain.id_column(), &key.subject),
        false => cells.text(domain.id_column(), Some(&key.subject)),
    }
    if domain.parent.is_some() {
        cells.uuid("parent_id", Some(key.parent.unwrap_or_default()));
    }
}

fn device_type(state: &State) -> Option<String> {
    state.device_type.as_ref().map(DeviceType::to_string)
}

fn texts(list: &[String]) -> impl ExactSizeIterator<Item = &str> {
    list.iter().map(String::as_str)
}

fn audience(state: &State) -> &[String] {
    state
        .audience
        .as_ref()
        .map_or(&[], |audience| audience.0.as_slice())
}
