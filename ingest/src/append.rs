//! Items become events: topic, key, headers, and the bytes as the device sent them. Hands them to the producer and
//! does not wait. Must not know of claims or answers.

use crate::error::IngestError;
use crate::judge::Accepted;
use crate::producer::Sending;
use tidelog_events::envelope::Stamp;
use tidelog_events::topic_name;

/// Hands over the items of a batch in their order, which is the order in their partitions.
pub(crate) fn hand_over(
    sending: &Sending<'_>,
    stamp: &Stamp,
    topic_prefix: &str,
    items: &[Accepted<'_>],
) -> Result<(), IngestError> {
    // Nearly always one topic a batch: its name is made once.
    let mut topic: (&str, String) = ("", String::new());
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
        sending.send(&topic.1, &item.key, &item.raw, headers)?;
    }
    Ok(())
}
