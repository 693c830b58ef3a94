//! A way back for Kafka clients that have lost every broker.
//!
//! A cluster of which all brokers are fenced for a moment (one that slept longer than its session, as a laptop does; or all
//! of them restarted) answers metadata with topics and no brokers. librdkafka, since 2.10, then forgets the brokers that it
//! knows, has nobody left to ask, and stays so for ever, whatever comes back (confluentinc/librdkafka#5301, open as of
//! 2.13). So each client is looked at from time to time, and one that has no answer is given the brokers that it began
//! with once more. Must not know what a client is used for.

use std::ffi::CString;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::bindings::rd_kafka_brokers_add;
use rdkafka::client::{Client, ClientContext};

/// How long a client may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Whether a client reaches its cluster: whether somebody tells it about `topic` within [`PATIENCE`]. One that does not
/// is given `brokers` (as in `bootstrap.servers`), so it is worth asking again. `client` is where `owner` has it.
pub async fn reaches<T, C>(
    owner: &Arc<T>,
    client: impl FnOnce(&T) -> &Client<C> + Send + 'static,
    brokers: &str,
    topic: &str,
) -> bool
where
    T: Send + Sync + 'static,
    C: ClientContext,
{
    let (owner, brokers, topic) = (owner.clone(), brokers.to_owned(), topic.to_owned());
    let asked = tokio::task::spawn_blocking(move || {
        let client = client(&owner);
        let answer = client.fetch_metadata(Some(&topic), PATIENCE);
        answer
            .inspect_err(|error| {
                tracing::debug!(%error, "a Kafka client has no answer: it is given its brokers again");
                give(client, &brokers);
            })
            .is_ok()
    });
    asked.await.unwrap_or(false)
}

/// Adds brokers to those that the client may ask. Those that it has already are no more for it.
#[allow(unsafe_code)]
fn give<C: ClientContext>(client: &Client<C>, brokers: &str) {
    // A setting with a NUL in it has made no client.
    let Ok(brokers) = CString::new(brokers) else {
        return;
    };
    // SAFETY: the handle lives as long as the client, which is borrowed here; the list is read during the call only.
    unsafe { rd_kafka_brokers_add(client.native_ptr(), brokers.as_ptr()) };
}
