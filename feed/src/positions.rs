//! How far the projection has come, for everybody in this process who waits for it. One connection listens; a NOTIFY
//! is a wake-up and nothing more, what the table says is the truth, and it is read at every wake-up and every poll
//! interval besides. A database that is away is tried again for ever. Must not know who waits, or what for.

use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use tidelog_events::position::{Positions, TopicPartition};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls, Socket, Statement};
use uuid::Uuid;

use crate::error::FeedError;
use crate::store::Store;

const SELECT: &str = "SELECT topic, partition, next_offset FROM positions";

/// The longest that one step with the database may take before the connection counts as dead.
const PATIENCE: Duration = Duration::from_secs(10);

/// The pause before another attempt to connect: from, and doubling to.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Where positions are read and which channel wakes the reader.
#[derive(Debug, Clone)]
pub struct PositionsConfig {
    /// The database; its options set the search path to the service's schema.
    pub database: Config,
    /// The channel, from [`tidelog_events::positions_channel`].
    pub channel: String,
    /// How often the table is read without a wake-up.
    pub poll: Duration,
}

/// Why a session with the database ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0}")]
    Failed(#[from] tokio_postgres::Error),
    #[error("the connection was closed")]
    Closed,
    #[error("Postgres did not answer within {PATIENCE:?}")]
    Silent(#[from] tokio::time::error::Elapsed),
}

/// Positions as they move, and the work that keeps them so. The work ends when nobody watches any more; it is to be
/// spawned. What is published is what the table says: after a restore it may be less than before.
pub fn watch(config: PositionsConfig) -> (watch::Receiver<Arc<Positions>>, impl Future<Output = ()> + Send) {
    let (publish, positions) = watch::channel(Arc::new(Positions::default()));
    (positions, keep(config, publish))
}

async fn keep(config: PositionsConfig, publish: watch::Sender<Arc<Positions>>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let mut published = false;
        let Err(ended) = tokio::select! {
            ended = session(&config, &publish, &mut published) => ended,
            () = publish.closed() => return,
        };
        if published {
            pause = FIRST_PAUSE;
        }
        tracing::warn!(%ended, ?pause, "positions cannot be read; trying again");
        tokio::select! {
            () = sleep(jittered(pause)) => {}
            () = publish.closed() => return,
        }
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

/// Half of the pause and a random part of the other half, so that gateways don't all come back at once.
fn jittered(pause: Duration) -> Duration {
    let random = (Uuid::new_v4().as_u128() & 0xffff) as u32;
    pause / 2 + pause / 2 * random / 0xffff
}

/// One connection, from its beginning to its end.
async fn session(
    config: &PositionsConfig,
    publish: &watch::Sender<Arc<Positions>>,
    published: &mut bool,
) -> Result<Infallible, Ended> {
    let (client, connection) = timeout(PATIENCE, config.database.connect(NoTls)).await??;
    let wake = Notify::new();
    tokio::select! {
        ended = drive(connection, &wake) => Err(ended),
        ended = read(&client, config, &wake, publish, published) => ended,
    }
}

/// Moves the connection's bytes; a notification leaves one wake-up, however many there are.
async fn drive<S>(mut connection: Connection<Socket, S>, wake: &Notify) -> Ended
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    loop {
        match poll_fn(|context| connection.poll_message(context)).await {
            Some(Ok(AsyncMessage::Notification(_))) => wake.notify_one(),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Ended::Failed(error),
            None => return Ended::Closed,
        }
    }
}

async fn read(
    client: &Client,
    config: &PositionsConfig,
    wake: &Notify,
    publish: &watch::Sender<Arc<Positions>>,
    published: &mut bool,
) -> Result<Infallible, Ended> {
    // A channel's name is an identifier and cannot be a parameter.
    let listen = format!("LISTEN \"{}\"", config.channel.replace('"', "\"\""));
    timeout(PATIENCE, client.batch_execute(&listen)).await??;
    let statement = timeout(PATIENCE, client.prepare(SELECT)).await??;
    loop {
        let now = timeout(PATIENCE, table(client, &statement)).await??;
        publish.send_if_modified(|before| {
            let moved = **before != now;
            if moved {
                *before = Arc::new(now);
            }
            moved
        });
        *published = true;
        tokio::select! {
            () = wake.notified() => {}
            () = sleep(config.poll) => {}
        }
    }
}

async fn table(client: &Client, statement: &Statement) -> Result<Positions, tokio_postgres::Error> {
    of_rows(&client.query(statement, &[]).await?)
}

/// What the table says right now, for somebody whose wait is over.
pub(crate) async fn current(store: &Store) -> Result<Positions, FeedError> {
    Ok(of_rows(&store.query(SELECT, &[]).await?)?)
}

fn of_rows(rows: &[tokio_postgres::Row]) -> Result<Positions, tokio_postgres::Error> {
    rows.iter()
        .map(|row| {
            Ok((
                TopicPartition {
                    topic: row.try_get(0)?,
                    partition: row.try_get(1)?,
                },
                row.try_get(2)?,
            ))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_never_shorter_than_half_nor_longer_than_whole() {
        for _ in 0..100 {
            let pause = jittered(LONGEST_PAUSE);
            assert!(pause >= LONGEST_PAUSE / 2 && pause <= LONGEST_PAUSE, "{pause:?}");
        }
    }

    #[tokio::test]
    async fn the_work_ends_when_nobody_watches() {
        let mut database = Config::new();
        // A port that nobody listens on: the attempt fails at once, for ever.
        database.host("127.0.0.1").port(1).user("nobody");
        let config = PositionsConfig {
            database,
            channel: "c".into(),
            poll: Duration::from_millis(10),
        };
        let (positions, work) = watch(config);
        drop(positions);
        timeout(Duration::from_secs(5), work)
            .await
            .expect("the work ends");
    }
}
