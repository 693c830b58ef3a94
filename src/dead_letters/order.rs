//! Whether a letter may be tried again. Its event is folded at the log's end, long after its place, so it must not be put
//! over what came of others meanwhile: earlier letters of its key go first, an item whose sender was told how it ended
//! stays ended, and what the same device did later to the record is not undone without a word.

use anyhow::{Context, Result};
use tidelog_events::domain::{Domain, Registry};
use tidelog_projector::event::Arrived;
use tokio_postgres::GenericClient;
use uuid::Uuid;

use super::letter::{Letter, LetterPlace};
use crate::database::plain;

/// What the letters are judged by.
pub(super) struct Rules<'a> {
    pub(super) registry: &'a Registry,
    /// What stands before every topic's name.
    pub(super) prefix: &'a str,
    /// What the same device did later may be changed back.
    pub(super) over_later: bool,
}

impl Rules<'_> {
    /// Answers why it must not be tried again; nothing where it may. `gone` are the places of letters that this run has
    /// dealt with, or in a trial would have.
    pub(super) async fn against(
        &self,
        client: &impl GenericClient,
        letter: &Letter,
        gone: &[LetterPlace],
    ) -> Result<Option<String>> {
        if !letter.standing.is_open() {
            return Ok(Some(format!("it was already {}", letter.standing.told())));
        }
        let arrived = match letter.read(self.registry, self.prefix) {
            Ok(arrived) => arrived,
            Err(why) => return Ok(Some(format!("this build cannot read it: {why}"))),
        };
        if answered(client, letter, &arrived).await? {
            return Ok(Some(format!(
                "its sender was told that it was refused, and may have sent it otherwise since: {}. Drop it",
                letter.reason
            )));
        }
        if let Some(earlier) = earlier_open(client, letter, gone).await? {
            return Ok(Some(format!(
                "an earlier letter of the same record is open, {earlier}: retry both, that one first, or drop it"
            )));
        }
        let domain = &arrived.domain;
        if !self.over_later && later_own_changes(client, domain, letter, &arrived).await? {
            return Ok(Some(format!(
                "the device {} of {} has changed the record since, and a device is never behind itself: this earlier item \
                 would go over its later ones. Drop it, or give --over-later",
                arrived.event.device.as_str(),
                arrived.event.user.as_str()
            )));
        }
        Ok(None)
    }
}

/// Whether there is an outcome of this very record: it could be read then, but not stored. An outcome of a copy further on
/// in the log is no obstacle, since the fold takes another copy for the repeat that it is.
async fn answered(client: &impl GenericClient, letter: &Letter, arrived: &Arrived) -> Result<bool> {
    let (tenant, index) = (arrived.event.tenant.as_str(), index(arrived)?);
    let place = &letter.place;
    let row = client
        .query_one(
            "SELECT EXISTS (SELECT FROM outcomes WHERE tenant_id = $1 AND batch_id = $2 AND batch_index = $3
                            AND topic = $4 AND partition = $5 AND \"offset\" = $6)",
            &[
                &tenant,
                &arrived.event.batch.0,
                &index,
                &place.topic,
                &place.partition,
                &place.offset,
            ],
        )
        .await
        .map_err(plain)?;
    Ok(row.get(0))
}

fn index(arrived: &Arrived) -> Result<i32> {
    i32::try_from(arrived.event.index).context("an item's index is greater than any batch")
}

/// The first open letter before this one with the same key, which may be about the same record.
async fn earlier_open(
    client: &impl GenericClient,
    letter: &Letter,
    gone: &[LetterPlace],
) -> Result<Option<LetterPlace>> {
    let place = &letter.place;
    let row = client
        .query_opt(
            "SELECT \"offset\" FROM dead_letters
             WHERE topic = $1 AND partition = $2 AND \"offset\" < $3 AND key IS NOT DISTINCT FROM $4 AND status = 'open'
               AND \"offset\" <> ALL ($5::bigint[])
             ORDER BY \"offset\" LIMIT 1",
            &[
                &place.topic,
                &place.partition,
                &place.offset,
                &letter.key,
                &offsets(place, gone),
            ],
        )
        .await
        .map_err(plain)?;
    Ok(row.map(|row| LetterPlace {
        offset: row.get(0),
        ..place.clone()
    }))
}

/// The offsets of those that are of the same partition.
fn offsets(place: &LetterPlace, gone: &[LetterPlace]) -> Vec<i64> {
    gone.iter()
        .filter(|gone| gone.topic == place.topic && gone.partition == place.partition)
        .map(|gone| gone.offset)
        .collect()
}

/// Whether the record has changes of the same user and device that the log has after this letter. Not those by events of earlier
/// letters, which came before it; and where the event itself has been applied, by a copy, nothing will change.
async fn later_own_changes(
    client: &impl GenericClient,
    domain: &Domain,
    letter: &Letter,
    arrived: &Arrived,
) -> Result<bool> {
    let event = &arrived.event;
    let sql = later_changes_sql(domain);
    let (tenant, user, device) = (event.tenant.as_str(), event.user.as_str(), event.device.as_str());
    let (place, index) = (&letter.place, index(arrived)?);
    let parent: Option<Uuid> = arrived.parent;
    let row = client
        .query_one(
            &sql,
            &[
                &tenant,
                &&*event.subject,
                &parent,
                &place.offset,
                &event.batch.0,
                &index,
                &user,
                &device,
                &place.topic,
                &place.partition,
                &letter.key,
            ],
        )
        .await
        .map_err(plain)?;
    let (itself, later): (bool, bool) = (row.get(0), row.get(1));
    Ok(later && !itself)
}

/// Walks a record's changes from its last one back to the letter's place.
fn later_changes_sql(domain: &Domain) -> String {
    let id = domain.id_column();
    let cast = if domain.is_entity() { "uuid" } else { "text" };
    let (of_parent, same_parent) = match domain.parent {
        Some(_) => ("AND r.parent_id = $3", "AND c.parent_id = later.parent_id"),
        None => ("AND $3::uuid IS NULL", ""),
    };
    format!(
        "WITH RECURSIVE later AS (
           SELECT c.* FROM {rows} r JOIN {changes} c
             ON c.tenant_id = r.tenant_id AND c.partition = r.partition AND c.\"offset\" = r.\"offset\" AND c.{id} = r.{id}
           WHERE r.tenant_id = $1 AND r.{id} = $2::text::{cast} {of_parent} AND c.\"offset\" > $4
         UNION ALL
           SELECT c.* FROM later JOIN {changes} c
             ON c.tenant_id = later.tenant_id AND c.partition = later.partition AND c.\"offset\" = later.previous_offset
                AND c.{id} = later.{id} {same_parent}
           WHERE c.\"offset\" > $4
         )
         SELECT coalesce(bool_or(batch_id = $5 AND batch_index = $6), false),
                coalesce(bool_or(operation <> 'audience' AND user_id = $7 AND device_id = $8 AND NOT EXISTS (
                    SELECT FROM dead_letters d, jsonb_array_elements(d.headers) header
                    WHERE d.topic = $9 AND d.partition = $10 AND d.\"offset\" < $4 AND d.key IS NOT DISTINCT FROM $11
                      AND header ->> 0 = 'ce_batch' AND header ->> 1 = later.batch_id || '/' || later.batch_index
                )), false)
         FROM later",
        rows = domain.table,
        changes = domain.changes_table(),
    )
}
