//! Destroying keys in the log: the last word of each key's record, which compaction keeps and for which it takes the wrapped
//! key away. Knows neither tables nor whoever wants it.

use super::send;
use crate::error::IngestError;
use crate::producer::Producer;
use std::sync::Arc;
use tidelog_events::seal::KEYS_TOPIC;
use tidelog_events::seal::record::KeyName;
use tidelog_events::topic_name;

/// Destroys keys.
pub struct Destroyer {
    producer: Arc<Producer>,
    topic: String,
}

impl Destroyer {
    /// On the topic of that deployment.
    pub fn new(producer: Arc<Producer>, topic_prefix: &str) -> Destroyer {
        Destroyer {
            producer,
            topic: topic_name(topic_prefix, KEYS_TOPIC),
        }
    }

    /// Destroys keys; when it answers, the log has it.
    pub async fn destroy(&self, names: impl IntoIterator<Item = &KeyName>) -> Result<(), IngestError> {
        let sending = self.producer.begin()?;
        let mut any = false;
        for name in names {
            send(&sending, &self.topic, name, None)?;
            any = true;
        }
        if any {
            sending.delivered().await?;
        }
        Ok(())
    }
}
