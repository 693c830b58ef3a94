//! How many partitions each topic was made with, written down beside tenants' settings: a gateway keeps to that number whatever
//! the topic has later, since one more would part records from their history. Pure, but for writing it down.

use super::SettingsError;
use crate::producer::Producer;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tidelog_events::settings::SETTINGS_TOPIC;
use tidelog_events::topic_name;

/// What the key of such a record begins with, before the topic's name without prefix. No tenant's name has a control character.
const KEY: &str = "\u{0}partitions/";

#[derive(Serialize, Deserialize)]
struct Made {
    partitions: i32,
}

/// A topic and its number, if the record is of this kind.
pub(super) fn read(key: &[u8], value: Option<&[u8]>) -> Option<(String, Option<i32>)> {
    let topic = std::str::from_utf8(key).ok()?.strip_prefix(KEY)?;
    let made = value.and_then(|value| serde_json::from_slice::<Made>(value).ok());
    let number = made.map(|made| made.partitions).filter(|number| *number > 0);
    Some((topic.to_owned(), number))
}

/// Writes numbers down, by topic without prefix.
pub async fn write_partitions(
    producer: &Producer,
    topic_prefix: &str,
    made: &BTreeMap<String, i32>,
) -> Result<(), SettingsError> {
    if made.is_empty() {
        return Ok(());
    }
    let to = topic_name(topic_prefix, SETTINGS_TOPIC);
    let sending = producer.begin()?;
    for (topic, partitions) in made {
        let value = serde_json::json!(Made {
            partitions: *partitions
        });
        let headers = [("content-type", tidelog_events::envelope::CONTENT_TYPE)];
        sending.send(
            &to,
            None,
            &format!("{KEY}{topic}"),
            &value.to_string(),
            headers.into_iter(),
        )?;
    }
    sending.delivered().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_read_back_and_no_tenants_settings_are_taken_for_one() {
        let key = format!("{KEY}sync.helpdesk.v1");
        let topic = "sync.helpdesk.v1".to_owned();
        let value = br#"{"partitions":6}"#;
        assert_eq!(read(key.as_bytes(), Some(value)), Some((topic.clone(), Some(6))));
        for nothing in [None, Some(&b"{}"[..]), Some(br#"{"partitions":0}"#)] {
            assert_eq!(read(key.as_bytes(), nothing), Some((topic.clone(), None)));
        }
        assert_eq!(read(b"partitions/sync.helpdesk.v1", Some(value)), None);
        assert_eq!(read(b"\xff", Some(value)), None);
    }
}
