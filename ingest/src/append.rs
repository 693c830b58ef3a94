//! Items become events: topic, key, headers, and the bytes as the device sent them. Hands them to the producer and
//! does not wait. Must not know of claims or answers.

use crate::error::IngestError;
use crate::judge::Accepted;
use crate::producer::Sending;
use tidelog_events::envelope::Stamp;
use tidelog_events::partition::partition_of;
use tidelog_events::settings::Partitions;
use tidelog_events::topic_name;

/// Hands over the items of a batch in their order, which is the order in their partitions. `partitions` are as many as each topic was
/// made with.
pub(crate) fn hand_over(
    sending: &Sending<'_>,
    stamp: &Stamp,
    topic_prefix: &str,
    partitions: &Partitions,
    items: &[Accepted<'_>],
) -> Result<(), IngestError> {
    // Nearly always one topic a batch: its name is made once.
    let mut topic: (&str, String) = ("", String::new());
    let mut made: Option<i32> = None;
    for Accepted {
        index,
        domain,
        item,
        time,
        policy,
    } in items
    {
        if topic.0 != domain.topic {
            topic = (&domain.topic, topic_name(topic_prefix, &domain.topic));
            made = partitions.get(&domain.topic).copied();
        }
        let headers = stamp.headers(
            &domain.table,
            item.operation,
            &item.subject,
            *index,
            *time,
            item.base,
            *policy,
            item.client_time.as_deref(),
        );
        let headers = headers.iter().map(|(name, value)| (*name, value.as_ref()));
        let partition = made.map(|made| partition_of(item.key.as_bytes(), made));
        sending.send(&topic.1, partition, &item.key, &item.raw, headers)?;
    }
    Ok(())
}
