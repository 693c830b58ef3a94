//! What earlier runs left on the shared stack is removed by the next run: a run that is killed cannot clean up, and
//! services that a file's tests share live until the process ends. Whose something is, its name says.

use std::path::Path;
use std::sync::Once;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::stack::SharedStack;

/// Begins every topic of a test; the process's id follows.
pub(crate) const PREFIX: &str = "t-";
/// Begins every schema of a test.
pub(crate) const SCHEMA: &str = "t_";

/// Removes what belongs to processes that are gone.
pub(crate) fn once(stack: &'static SharedStack) {
    static SWEPT: Once = Once::new();
    SWEPT.call_once(|| {
        // A runtime of its own on a thread of its own: the caller may be in one.
        let swept = std::thread::spawn(|| {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            runtime.block_on(async {
                topics(&stack.kafka_brokers).await;
                schemas(&stack.database_url).await;
            });
        });
        swept.join().expect("leftovers can be removed");
        folders();
    });
}

fn is_left_over(name: &str, prefix: &str) -> bool {
    let Some(rest) = name.strip_prefix(prefix) else {
        return false;
    };
    let pid: String = rest.chars().take_while(char::is_ascii_digit).collect();
    !pid.is_empty() && !Path::new("/proc").join(pid).exists()
}

async fn topics(brokers: &str) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    let consumer: BaseConsumer = config.create().expect("a client");
    let metadata = consumer
        .fetch_metadata(None, Duration::from_secs(20))
        .expect("Kafka answers");
    let left: Vec<&str> = metadata
        .topics()
        .iter()
        .map(|t| t.name())
        .filter(|t| is_left_over(t, PREFIX))
        .collect();
    if !left.is_empty() {
        let admin: AdminClient<DefaultClientContext> = config.create().expect("a client");
        let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(20)));
        // Another process may be removing them too.
        let _ = admin.delete_topics(&left, &options).await;
    }
}

async fn schemas(url: &str) {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls)
        .await
        .expect("Postgres answers");
    tokio::spawn(connection);
    let rows = client
        .query("SELECT nspname::text FROM pg_namespace", &[])
        .await
        .expect("schemas can be listed");
    for schema in rows
        .iter()
        .map(|row| row.get::<_, String>(0))
        .filter(|name| is_left_over(name, SCHEMA))
    {
        let _ = client
            .batch_execute(&format!("DROP SCHEMA IF EXISTS \"{schema}\" CASCADE"))
            .await;
    }
}

/// Folders are named `<name>-<pid>-<number>`.
fn folders() {
    let Ok(entries) = std::fs::read_dir(env!("CARGO_TARGET_TMPDIR")) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let mut parts = name.rsplitn(3, '-').skip(1);
        if parts.next().is_some_and(|pid| is_left_over(pid, "")) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
