//! Which partitions are this process's: claimed in Postgres, where the truth about positions is. A claim raises the
//! partition's epoch, so that whoever held it before writes nothing any more; Kafka's group only says who should claim.

use crate::ProjectorError;
use crate::fold::FOLD_VERSION;
use crate::session::Session;
use chrono::{DateTime, Duration, Utc};
use std::collections::BTreeMap;
use tidelog_events::drill;
use tokio_postgres::types::ToSql;

/// How far the clocks of broker and projector may differ: what is claimed to be applied through a moment stays this
/// much behind it.
const CLOCK_MARGIN_SECONDS: i64 = 2;

/// A partition as this process holds it, and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Owned {
    pub(crate) partition: i32,
    pub(crate) epoch: i64,
    pub(crate) next_offset: i64,
    pub(crate) log_time: DateTime<Utc>,
}

/// Claims partitions, all in one statement; answers each topic's, and where each stands. One that a newer fold has had is
/// not claimed: the error names it.
pub(crate) async fn claim(
    session: &mut Session,
    wanted: &BTreeMap<String, Vec<i32>>,
    owner: &str,
) -> Result<BTreeMap<String, Vec<Owned>>, ProjectorError> {
    const SQL: &str = "INSERT INTO positions AS p (topic, partition, owner, epoch, fold_version) \
                       SELECT k.topic, k.partition, $3, 1, $4 FROM unnest($1::text[], $2::int[]) AS k(topic, partition) ORDER BY 1, 2 \
                       ON CONFLICT (topic, partition) DO UPDATE \
                       SET epoch = p.epoch + 1, owner = excluded.owner, fold_version = excluded.fold_version, updated_at = now() \
                       WHERE p.fold_version <= excluded.fold_version OR NOT $5 \
                       RETURNING topic, partition, epoch, next_offset, last_log_time";
    let own = drill::number("fold", FOLD_VERSION);
    let guarded = drill::guarded("fold-version");
    let each = || {
        wanted
            .iter()
            .flat_map(|(topic, numbers)| numbers.iter().map(move |number| (topic, *number)))
    };
    let topics: Vec<&str> = each().map(|(topic, _)| topic.as_str()).collect();
    let partitions: Vec<i32> = each().map(|(_, partition)| partition).collect();
    let mut owned: BTreeMap<String, Vec<Owned>> = BTreeMap::new();
    let parameters: [&(dyn ToSql + Sync); 5] = [&topics, &partitions, &owner, &own.cast_signed(), &guarded];
    for row in session.query(SQL, &parameters).await? {
        owned.entry(row.get(0)).or_default().push(Owned {
            partition: row.get(1),
            epoch: row.get(2),
            next_offset: row.get(3),
            log_time: row.get(4),
        });
    }
    match owned.values().map(Vec::len).sum::<usize>() == partitions.len() {
        true => Ok(owned),
        false => Err(newer(session, &topics, &partitions, own).await?),
    }
}

/// Which of the partitions a newer fold has had.
async fn newer(
    session: &mut Session,
    topics: &[&str],
    partitions: &[i32],
    own: u32,
) -> Result<ProjectorError, ProjectorError> {
    const SQL: &str = "SELECT p.topic, p.partition, p.fold_version FROM unnest($1::text[], $2::int[]) AS k(topic, partition) \
                       JOIN positions p USING (topic, partition) ORDER BY p.fold_version DESC LIMIT 1";
    let rows = session.query(SQL, &[&topics, &partitions]).await?;
    let row = rows
        .first()
        .ok_or_else(|| ProjectorError::Stored("a position that was refused is not there".into()))?;
    Ok(ProjectorError::Newer {
        topic: row.get(0),
        partition: row.get(1),
        theirs: row.get(2),
        own,
    })
}

/// A partition's end as the broker told it.
#[derive(Debug, Clone)]
pub(crate) struct End {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) epoch: i64,
    pub(crate) end_offset: i64,
}

/// Notes the ends that the broker told after `asked_at`. A partition that has come to its end has applied everything
/// up to that moment, although its last event may be old.
pub(crate) async fn heartbeat(
    session: &mut Session,
    ends: &[End],
    asked_at: DateTime<Utc>,
) -> Result<(), ProjectorError> {
    const SQL: &str = "UPDATE positions p SET end_offset = k.end_offset, updated_at = now(), applied_through = \
                       CASE WHEN p.next_offset >= k.end_offset THEN greatest(p.applied_through, $5) ELSE p.applied_through END \
                       FROM unnest($1::text[], $2::int[], $3::bigint[], $4::bigint[]) AS k(topic, partition, epoch, end_offset) \
                       WHERE p.topic = k.topic AND p.partition = k.partition AND p.epoch = k.epoch";
    let topics: Vec<&str> = ends.iter().map(|end| end.topic.as_str()).collect();
    let partitions: Vec<i32> = ends.iter().map(|end| end.partition).collect();
    let epochs: Vec<i64> = ends.iter().map(|end| end.epoch).collect();
    let offsets: Vec<i64> = ends.iter().map(|end| end.end_offset).collect();
    let through = asked_at - Duration::seconds(CLOCK_MARGIN_SECONDS);
    session
        .query(SQL, &[&topics, &partitions, &epochs, &offsets, &through])
        .await?;
    Ok(())
}
