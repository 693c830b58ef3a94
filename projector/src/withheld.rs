//! Partitions that are this process's and cannot be read from where they stand: the log begins after that position, since its beginning
//! was deleted, or it ends before, since it was lost or made anew. Reading on from wherever the log begins would pass over records
//! without a word, so such a partition is left alone and told of, and looked at again: once somebody has brought its position back
//! into the log, it is read. The consumer's thread calls all this; it may block.

use crate::ProjectorError;
use crate::consumer::Context;
use crate::figures;
use crate::lane::{Progress, ToLane};
use crate::ownership::{Owned, claim};
use crate::session::Session;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// How often they are looked at again.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_secs(3);
/// How often they are told of again.
const TELL_AGAIN: Duration = Duration::from_secs(60);
/// How long the broker may take to say where a log begins and ends. It answers in a moment, or is asked again.
const PATIENCE: Duration = Duration::from_secs(2);

/// A topic and a partition.
pub(crate) type At = (String, i32);

/// What is withheld, and what may have to be.
#[derive(Debug, Default)]
pub(crate) struct Withheld {
    /// When each was told of last.
    told: BTreeMap<At, Instant>,
    /// The client has stopped to read a partition, and did not say which.
    doubt: bool,
}

impl Withheld {
    /// They are another process's now.
    pub(crate) fn forget(&mut self, topic: &str, partitions: &[i32]) {
        self.told
            .retain(|(known, partition), _| known != topic || !partitions.contains(partition));
        self.count(topic);
    }

    fn count(&self, topic: &str) {
        let of_topic = self.told.keys().filter(|(known, _)| known == topic);
        figures::withheld(topic, of_topic.count());
    }

    /// Something could not be read any further.
    pub(crate) fn doubt(&mut self) {
        self.doubt = true;
    }

    /// Says so, unless it was said a moment ago.
    fn tell(&mut self, (topic, partition): &At, position: i64, why: Why) {
        let at = (topic.clone(), *partition);
        if self.told.get(&at).is_some_and(|told| told.elapsed() < TELL_AGAIN) {
            return;
        }
        self.told.insert(at, Instant::now());
        self.count(topic);
        match why {
            Why::Cut { begins } => tracing::error!(
                topic,
                partition,
                position,
                begins,
                "the log begins after the position: what stood between is deleted and was not applied. The partition is not read, which \
                 would lose it without a word. Bring its tables to where the log begins: tidelog rebuild --domain NAME --snapshot DIR"
            ),
            Why::Beyond { begins, ends } => tracing::error!(
                topic,
                partition,
                position,
                begins,
                ends,
                "the position is beyond the end of the log: the topic was lost or made anew. The partition is not \
                 read. Restore the topic, or point the service at an empty schema"
            ),
        }
    }
}

/// Why a partition cannot be read from a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// The log's first offset is a later one.
    Cut { begins: i64 },
    /// The log's end is an earlier one.
    Beyond { begins: i64, ends: i64 },
}

fn unreadable(position: i64, begins: i64, ends: i64) -> Option<Why> {
    if position > ends {
        Some(Why::Beyond { begins, ends })
    } else if position < begins {
        Some(Why::Cut { begins })
    } else {
        None
    }
}

/// Whether a partition that was just claimed has to be withheld; if so, says so.
pub(crate) fn withhold(consumer: &BaseConsumer<Context>, topic: &str, owned: &Owned) -> bool {
    match consumer.fetch_watermarks(topic, owned.partition, Duration::from_secs(10)) {
        Ok((begins, ends)) => {
            let why = unreadable(owned.next_offset, begins, ends);
            if let Some(why) = why {
                let at = (topic.to_owned(), owned.partition);
                consumer.context().withheld().tell(&at, owned.next_offset, why);
            }
            why.is_some()
        }
        // Read from there, it shows: the client does not look for another place by itself.
        Err(error) => {
            tracing::warn!(%error, topic, partition = owned.partition, "the log's bounds could not be asked for");
            false
        }
    }
}

/// Looks at what is withheld, and at all that is read where something may have to be.
pub(crate) fn look_again(consumer: &BaseConsumer<Context>, progress: &Progress) {
    let (waiting, doubt) = {
        let mut withheld = consumer.context().withheld();
        let waiting: BTreeSet<At> = withheld.told.keys().cloned().collect();
        (waiting, std::mem::take(&mut withheld.doubt))
    };
    let looked = match doubt {
        true => look_at_read(consumer, progress, &waiting),
        false => Ok(()),
    };
    let looked = looked.and_then(|()| look_at_withheld(consumer, &waiting));
    if let Err(error) = looked {
        tracing::debug!(%error, "partitions are looked at again later");
        consumer.context().withheld().doubt |= doubt;
    }
}

/// Finds, of what is read, what can be read no further.
fn look_at_read(
    consumer: &BaseConsumer<Context>,
    progress: &Progress,
    waiting: &BTreeSet<At>,
) -> Result<(), ProjectorError> {
    let applied: BTreeMap<At, i64> = progress
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .iter()
        .map(|(at, owned)| (at.clone(), owned.next_offset))
        .collect();
    for element in consumer.position()?.elements() {
        let at = (element.topic().to_owned(), element.partition());
        let Some(applied) = applied.get(&at).filter(|_| !waiting.contains(&at)) else {
            continue;
        };
        // What was read and is not applied yet is here, whatever has become of it in the log.
        let position = element.offset().to_raw().unwrap_or_default().max(*applied);
        let (begins, ends) = consumer.fetch_watermarks(&at.0, at.1, PATIENCE)?;
        match unreadable(position, begins, ends) {
            Some(why) => consumer.context().withheld().tell(&at, position, why),
            None => read_from(consumer, &at, position)?,
        }
    }
    Ok(())
}

/// Finds, of what is withheld, what can be read by now.
fn look_at_withheld(consumer: &BaseConsumer<Context>, waiting: &BTreeSet<At>) -> Result<(), ProjectorError> {
    if waiting.is_empty() {
        return Ok(());
    }
    let context = consumer.context();
    let standing = context.runtime.block_on(positions(context, waiting))?;
    for at in waiting {
        let position = standing.get(at).copied().unwrap_or(0);
        let (begins, ends) = consumer.fetch_watermarks(&at.0, at.1, PATIENCE)?;
        if let Some(why) = unreadable(position, begins, ends) {
            context.withheld().tell(at, position, why);
            continue;
        }
        let wanted = BTreeMap::from([(at.0.clone(), vec![at.1])]);
        let claimed = context.runtime.block_on(async {
            let mut session = Session::connect(&context.database).await?;
            claim(&mut session, &wanted, &context.instance).await
        })?;
        for owned in claimed.into_values().flatten() {
            let position = owned.next_offset;
            if let Some(lane) = context.lanes.get(&at.0) {
                // A lane that is gone ends with the process.
                let _ = context.runtime.block_on(lane.send(ToLane::Own(owned)));
            }
            read_from(consumer, at, position)?;
            context.withheld().forget(&at.0, &[at.1]);
            tracing::info!(
                topic = at.0,
                partition = at.1,
                position,
                "can be read again, and is"
            );
        }
    }
    Ok(())
}

async fn positions(context: &Context, of: &BTreeSet<At>) -> Result<BTreeMap<At, i64>, ProjectorError> {
    const SQL: &str = "SELECT p.topic, p.partition, p.next_offset FROM unnest($1::text[], $2::int[]) AS k(topic, partition) \
                       JOIN positions p USING (topic, partition)";
    let topics: Vec<&str> = of.iter().map(|(topic, _)| topic.as_str()).collect();
    let partitions: Vec<i32> = of.iter().map(|(_, partition)| *partition).collect();
    let mut session = Session::connect(&context.database).await?;
    let rows = session.query(SQL, &[&topics, &partitions]).await?;
    Ok(rows
        .iter()
        .map(|row| ((row.get(0), row.get(1)), row.get(2)))
        .collect())
}

/// Has the client read an assigned partition from there; one that it has given up it reads only when it is assigned anew.
fn read_from(
    consumer: &BaseConsumer<Context>,
    (topic, partition): &At,
    position: i64,
) -> Result<(), KafkaError> {
    let mut start = TopicPartitionList::new();
    start.add_partition_offset(topic, *partition, Offset::Offset(position))?;
    consumer.incremental_unassign(&start)?;
    consumer.incremental_assign(&start)?;
    consumer.resume(&start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_from_if_the_log_has_it() {
        for position in [7, 8, 20] {
            assert_eq!(unreadable(position, 7, 20), None, "{position}");
        }
        assert_eq!(unreadable(6, 7, 20), Some(Why::Cut { begins: 7 }));
        assert_eq!(unreadable(21, 7, 20), Some(Why::Beyond { begins: 7, ends: 20 }));
        // All that there was is deleted: it was not applied all the same.
        assert_eq!(unreadable(0, 20, 20), Some(Why::Cut { begins: 20 }));
    }
}
