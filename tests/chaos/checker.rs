//! The rules that hold whatever was broken. Each looks at all that a run left behind: what phones were told, the topic,
//! Postgres, what readers hold. A violation is told with the shortest history of the record concerned.

use std::collections::{BTreeMap, BTreeSet};

use chrono::DateTime;
use serde_json::Value;
use tidelog_http::auth::Role;

use crate::field::Field;
use crate::support::db::Db;
use crate::support::eventually;
use crate::support::kafka::{Record, read_topic};
use crate::support::phone::{Phone, Replica};
use crate::support::projection::{next_offsets, projection};
use crate::support::service::Deployment;
use crate::workload::{Told, entries};

/// A rule that did not hold, and the record that shows it.
#[derive(Debug)]
pub(crate) struct Violation {
    pub(crate) rule: String,
    pub(crate) record: Option<String>,
}

/// How the batches of records begin that were put onto the topic by hand.
pub(crate) const POISON: &str = "00000000-";

type Rule = Result<(), Violation>;

fn broken(rule: impl Into<String>, record: Option<&str>) -> Violation {
    Violation {
        rule: rule.into(),
        record: record.map(str::to_owned),
    }
}

/// Everything that a run left behind.
pub(crate) struct Left {
    pub(crate) told: Vec<Told>,
    /// What phones, readers and watchers saw go wrong while they worked.
    pub(crate) seen: Vec<String>,
    /// By tenant, what each reader holds.
    pub(crate) readers: Vec<(String, Replica)>,
    /// Records put onto the topic by hand, which no fold can read.
    pub(crate) poison: usize,
}

/// Checks all rules. To be called when everything is mended and applied.
pub(crate) async fn check(field: &Field, left: &Left) -> Result<(), String> {
    if let Some(seen) = left.seen.first() {
        return Err(seen.clone());
    }
    let topic = read_topic(
        &field.deployment.brokers,
        &field.deployment.topic("sync.helpdesk.v1"),
    );
    let db = field.deployment.db().await;
    let result = rules(field, left, &topic, &db).await;
    match result {
        Ok(()) => Ok(()),
        Err(Violation { rule, record }) => {
            let history = match &record {
                Some(record) => history(record, &topic, &db).await,
                None => String::new(),
            };
            Err(format!("{rule}\n{history}"))
        }
    }
}

async fn rules(field: &Field, left: &Left, topic: &[Record], db: &Db) -> Rule {
    let stored = stored(db).await;
    positions_never_move_back(db, &field.deployment.schema).await?;
    dead_letters_are_the_poison(db, left.poison).await?;
    what_was_told_is_in_the_log(left, topic)?;
    items_have_their_true_times(left, topic)?;
    one_outcome_each_as_told(left, &stored)?;
    every_event_has_its_outcome(topic, &stored, left.poison)?;
    no_item_had_two_effects(db).await?;
    versions_rise_by_one(db).await?;
    tenants_hold_their_own(left)?;
    readers_hold_what_is_there(field, left).await?;
    the_log_folded_again_is_the_same(field).await
}

async fn dead_letters_are_the_poison(db: &Db, poison: usize) -> Rule {
    let letters = db
        .objects("SELECT \"offset\", reason FROM dead_letters", &[])
        .await;
    match letters.len() == poison {
        true => Ok(()),
        false => Err(broken(
            format!("{poison} records were poison, dead letters are {letters:?}"),
            None,
        )),
    }
}

fn what_was_told_is_in_the_log(left: &Left, topic: &[Record]) -> Rule {
    let logged: BTreeSet<&str> = topic
        .iter()
        .flat_map(|record| record.headers.iter())
        .filter(|(name, _)| name == "ce_batch")
        .map(|(_, value)| value.as_str())
        .collect();
    for Told { items, answer, .. } in &left.told {
        let batch = answer["batch_id"].as_str().expect("a batch id");
        if entries(answer).count() != items.len() {
            return Err(broken(format!("{} items, answer {answer}", items.len()), None));
        }
        for entry in entries(answer) {
            let index = &entry["index"];
            let refused = entry["status"] == "error" && entry["rule"] == "enum";
            if !refused && !logged.contains(format!("{batch}/{index}").as_str()) {
                return Err(broken(
                    format!("acknowledged and not in the log: {entry} of {batch}"),
                    entry["mobile_id"].as_str(),
                ));
            }
        }
    }
    Ok(())
}

/// However far a phone's clock is off: an item's event says when it was done, and never a time after its append. How late the
/// batch came after it was written counts as the clock's error, so the event may say a later time than the true one.
fn items_have_their_true_times(left: &Left, topic: &[Record]) -> Rule {
    let events: BTreeMap<&str, &Record> = topic
        .iter()
        .filter_map(|record| {
            let (_, batch) = record.headers.iter().find(|(name, _)| name == "ce_batch")?;
            Some((batch.as_str(), record))
        })
        .collect();
    let time = |text: &str| DateTime::parse_from_rfc3339(text).expect("a time");
    for Told {
        items, skew, answer, ..
    } in &left.told
    {
        let batch = answer["batch_id"].as_str().expect("a batch id");
        for (index, (record, item)) in items.iter().enumerate() {
            let Some(event) = events.get(format!("{batch}/{index}").as_str()) else {
                continue;
            };
            let done = time(item["client_timestamp"].as_str().expect("a time")) - *skew;
            let said = time(event.header("ce_time"));
            // The log keeps milliseconds.
            if said < done || said.timestamp_millis() > event.logged_at {
                return Err(broken(
                    format!("done at {done}, its event says {said}: {event:?}"),
                    Some(&record.to_string()),
                ));
            }
        }
    }
    Ok(())
}

/// Outcomes as Postgres holds them, by `<batch>/<index>`: what applied, from the feed, and what did not.
async fn stored(db: &Db) -> BTreeMap<String, Vec<Value>> {
    let rows = db
        .objects(
            "SELECT batch_id || '/' || batch_index AS item, mobile_id::text AS record, version, operation, conflict_id, NULL::jsonb AS detail
               FROM helpdesk_changes WHERE operation <> 'audience'
              UNION ALL
             SELECT batch_id || '/' || batch_index, subject, NULL, NULL, NULL, detail FROM outcomes",
            &[],
        )
        .await;
    let mut stored: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for row in rows {
        stored
            .entry(row["item"].as_str().expect("an item").to_owned())
            .or_default()
            .push(row);
    }
    stored
}

fn one_outcome_each_as_told(left: &Left, stored: &BTreeMap<String, Vec<Value>>) -> Rule {
    for Told { answer, .. } in &left.told {
        let batch = answer["batch_id"].as_str().expect("a batch id");
        for entry in entries(answer) {
            let record = entry["mobile_id"].as_str();
            let found = stored.get(&format!("{batch}/{}", entry["index"]));
            let status = entry["status"].as_str().expect("a status");
            let Some(found) = found else {
                if status == "error" {
                    continue;
                }
                return Err(broken(format!("told and not stored: {entry} of {batch}"), record));
            };
            let agrees = found.len() == 1 && agrees(status, entry, &found[0]);
            if !agrees {
                return Err(broken(format!("told {entry}, stored {found:?}"), record));
            }
        }
    }
    Ok(())
}

fn agrees(status: &str, told: &Value, stored: &Value) -> bool {
    let detail = &stored["detail"];
    let applied = detail.is_null();
    match status {
        "created" | "updated" if applied => {
            stored["version"] == told["server_version"]
                && (stored["operation"] == "create") == (status == "created")
        }
        "updated" => detail["outcome"] == "no_effect",
        "conflict" if applied => {
            stored["conflict_id"] == told["conflict_id"] && stored["version"] == told["server_version"]
        }
        "conflict" => detail["conflict_id"] == told["conflict_id"],
        "duplicate" => detail["outcome"] == "duplicate",
        "error" => detail["error"]["error_code"] == told["error_code"],
        _ => false,
    }
}

/// Also those whose phone hung up: what is in the log is applied whole, and nothing else is.
fn every_event_has_its_outcome(
    topic: &[Record],
    stored: &BTreeMap<String, Vec<Value>>,
    poison: usize,
) -> Rule {
    let mut logged = BTreeSet::new();
    let mut unreadable = 0;
    for record in topic {
        match record.headers.iter().find(|(name, _)| name == "ce_batch") {
            Some((_, batch)) if batch.starts_with(POISON) => unreadable += 1,
            Some((_, batch)) => {
                logged.insert(batch.as_str());
                if !stored.contains_key(batch) {
                    return Err(broken(
                        format!("in the log without an outcome: {batch}"),
                        Some(record.header("ce_subject")),
                    ));
                }
            }
            None => unreadable += 1,
        }
    }
    if unreadable != poison {
        return Err(broken(
            format!("{unreadable} records without a batch, {poison} were put there"),
            None,
        ));
    }
    match stored.iter().find(|(item, _)| !logged.contains(item.as_str())) {
        Some((item, outcome)) => Err(broken(
            format!("stored and not in the log: {item} {outcome:?}"),
            outcome[0]["record"].as_str(),
        )),
        None => Ok(()),
    }
}

/// One item's content changes its record once, under however many batches it came.
async fn no_item_had_two_effects(db: &Db) -> Rule {
    let twice = db
        .objects(
            "SELECT min(mobile_id::text) AS record, count(*) FROM helpdesk_changes WHERE operation <> 'audience'
              GROUP BY tenant_id, item_hash HAVING count(*) > 1 LIMIT 1",
            &[],
        )
        .await;
    match twice.first() {
        Some(row) => Err(broken(
            format!("one item had several effects: {row}"),
            row["record"].as_str(),
        )),
        None => Ok(()),
    }
}

async fn versions_rise_by_one(db: &Db) -> Rule {
    let wrong = db
        .objects(
            "SELECT mobile_id::text AS record, f.rows, f.versions, f.last, r.version
               FROM (SELECT tenant_id, mobile_id, count(*) AS rows, count(DISTINCT version) AS versions, max(version) AS last
                       FROM helpdesk_changes GROUP BY tenant_id, mobile_id) f
               FULL JOIN helpdesk r USING (tenant_id, mobile_id)
              WHERE f.rows IS DISTINCT FROM r.version OR f.versions IS DISTINCT FROM r.version OR f.last IS DISTINCT FROM r.version
              LIMIT 1",
            &[],
        )
        .await;
    match wrong.first() {
        Some(row) => Err(broken(
            format!("versions do not rise by one: {row}"),
            row["record"].as_str(),
        )),
        None => Ok(()),
    }
}

fn tenants_hold_their_own(left: &Left) -> Rule {
    let mut whose: BTreeMap<String, &str> = BTreeMap::new();
    for Told { tenant, items, .. } in &left.told {
        whose.extend(items.iter().map(|(id, _)| (id.to_string(), tenant.as_str())));
    }
    for (tenant, replica) in &left.readers {
        for id in replica.records.keys() {
            if whose.get(id).is_some_and(|owner| owner != tenant) {
                return Err(broken(
                    format!("a reader of {tenant} holds a record of another tenant"),
                    Some(id),
                ));
            }
        }
    }
    Ok(())
}

/// A reader that followed its cursor has the same set as a fresh snapshot, and as the rows.
async fn readers_hold_what_is_there(field: &Field, left: &Left) -> Rule {
    let gateway = &field.gateways()[0];
    for (tenant, replica) in &left.readers {
        let phone = Phone::of(gateway, tenant, "reader", "phone-reader", Role::Operator);
        let mut followed = Replica {
            records: replica.records.clone(),
            cursor: replica.cursor.clone(),
        };
        followed.catch_up(&phone, "helpdesk", 500).await;
        let mut fresh = Replica::default();
        fresh.catch_up(&phone, "helpdesk", 500).await;
        for id in followed.records.keys().chain(fresh.records.keys()) {
            if followed.records.get(id) != fresh.records.get(id) {
                let (a, b) = (followed.records.get(id), fresh.records.get(id));
                return Err(broken(
                    format!("who followed holds {a:?}, a snapshot {b:?}"),
                    Some(id),
                ));
            }
        }
    }
    Ok(())
}

/// The row equals the fold of its log, and so does everything else.
async fn the_log_folded_again_is_the_same(field: &Field) -> Rule {
    let before = projection(&field.deployment).await;
    let mut fresh = field.deployment.clone();
    fresh.schema.push_str("_fresh");
    fresh.run(&["migrate"]).ok();
    let folding = fresh.start("project");
    let ends = next_offsets(&field.deployment).await;
    // However long that is after a long run: as long as it goes on.
    let mut at = next_offsets(&fresh).await;
    while at != ends {
        at = eventually("the log is folded again", async || {
            let now = next_offsets(&fresh).await;
            (now != at).then_some(now)
        })
        .await;
    }
    let after = projection(&fresh).await;
    assert_eq!(folding.terminate(), 0);
    for (table, rows) in &before {
        let (live, again): (BTreeSet<&String>, BTreeSet<&String>) =
            (rows.iter().collect(), after[table].iter().collect());
        if let Some(row) = live.symmetric_difference(&again).next() {
            let record = serde_json::from_str::<Value>(row).unwrap_or_default();
            let record = record["mobile_id"]
                .as_str()
                .or(record["subject"].as_str())
                .map(str::to_owned);
            return Err(broken(
                format!("{table} differs from the log folded again: {row}"),
                record.as_deref(),
            ));
        }
    }
    Ok(())
}

/// What a record's topic and tables say, for whoever has to find out.
async fn history(record: &str, topic: &[Record], db: &Db) -> String {
    let mut lines = vec![format!("The history of {record}:")];
    for event in topic.iter().filter(|event| {
        event
            .headers
            .iter()
            .any(|(name, value)| name == "ce_subject" && value == record)
    }) {
        let headers: BTreeMap<&str, &str> = event
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        lines.push(format!(
            "  log {}/{} {} {} base {} {}",
            event.partition,
            event.offset,
            headers["ce_type"],
            headers["ce_batch"],
            headers["ce_baseversion"],
            event.value
        ));
    }
    for (table, key) in [
        ("helpdesk_changes", "mobile_id::text"),
        ("outcomes", "subject"),
        ("helpdesk", "mobile_id::text"),
    ] {
        let sql = format!("SELECT * FROM {table} WHERE {key} = $1");
        for row in db.objects(&sql, &[&record]).await {
            lines.push(format!("  {table} {row}"));
        }
    }
    lines.join("\n")
}

/// Has Postgres itself note every position, epoch or version of the fold that moves back. To be called before anything is started.
pub(crate) async fn watch_positions(field: &Deployment) {
    let (db, schema) = (field.db().await, &field.schema);
    for sql in [
        format!("CREATE SCHEMA {schema}_watch"),
        format!("CREATE TABLE {schema}_watch.backwards (was jsonb, is_now jsonb)"),
        format!(
            "CREATE FUNCTION {schema}_watch.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
               INSERT INTO {schema}_watch.backwards VALUES (to_jsonb(OLD), to_jsonb(NEW)); RETURN NULL; END $$"
        ),
        format!(
            "CREATE TRIGGER watched AFTER UPDATE ON positions FOR EACH ROW
               WHEN (NEW.next_offset < OLD.next_offset OR NEW.epoch < OLD.epoch OR NEW.fold_version < OLD.fold_version) EXECUTE FUNCTION {schema}_watch.note()"
        ),
    ] {
        db.rows(&sql, &[]).await;
    }
}

async fn positions_never_move_back(db: &Db, schema: &str) -> Rule {
    let moved = db
        .objects(&format!("SELECT * FROM {schema}_watch.backwards LIMIT 1"), &[])
        .await;
    match moved.first() {
        Some(row) => Err(broken(format!("a position moved back: {row}"), None)),
        None => Ok(()),
    }
}
