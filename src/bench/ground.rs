//! What measurements stand on: one private Kafka and Postgres, and for each measurement a schema and topics of its own,
//! made by the shipped commands (`tidelog migrate`, `tidelog topics`). Starts the commands that are measured. Must not
//! know what is measured.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use http::StatusCode;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use tidelog_events::position::TopicPartition;
use tidelog_http::auth::{self, Claims, Role};
use tokio_postgres::Client;

use super::child::{self, Child};
use super::log::quiet;
use super::phone::Phone;
use super::tickets::Person;
use crate::database::{self, plain};
use crate::kafka::Cluster;
use crate::settings::{DatabaseSettings, KafkaSettings, Secret};
use crate::stack::Stack;

/// How long a process may take until it works.
const READY: Duration = Duration::from_secs(30);
/// How long a process that has nothing to do is watched before its memory counts as "at rest".
const REST: Duration = Duration::from_secs(2);

/// The stack, and where things lie.
pub(super) struct Ground {
    dir: PathBuf,
    exe: PathBuf,
    brokers: String,
    database_url: String,
    jwt_secret: String,
    /// Names of this run's schemas and topics begin differently from those of a run that was killed.
    run: String,
}

impl Ground {
    pub(super) fn new(dir: &Path, exe: &Path, stack: &Stack) -> Result<Self> {
        let children = dir.join("children");
        std::fs::create_dir_all(&children).with_context(|| format!("cannot make {}", children.display()))?;
        Ok(Self {
            dir: children,
            exe: exe.to_owned(),
            brokers: stack.kafka_brokers.clone(),
            database_url: stack.database_url.clone(),
            jwt_secret: crate::stack::files::random_hex(),
            run: crate::stack::files::random_hex()[..6].to_owned(),
        })
    }

    /// Removes what a run that was killed left behind.
    pub(super) async fn clear(&self) -> Result<()> {
        let client = self.connect("public").await?;
        let schemas = client
            .query(
                "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'bench\\_%'",
                &[],
            )
            .await
            .map_err(plain)?;
        for row in schemas {
            drop_schema(&client, row.get(0)).await?;
        }
        self.delete_topics("bench-").await
    }

    pub(super) fn kafka(&self, prefix: &str) -> KafkaSettings {
        KafkaSettings {
            kafka_brokers: self.brokers.clone(),
            topic_prefix: prefix.to_owned(),
        }
    }

    /// A connection with this schema as its search path.
    pub(super) async fn connect(&self, schema: &str) -> Result<Client> {
        self.connect_to(&self.database_url, schema).await
    }

    async fn connect_to(&self, url: &str, schema: &str) -> Result<Client> {
        let settings = DatabaseSettings {
            database_url: Secret::new(url.to_owned()),
            schema: schema.to_owned(),
        };
        database::connect(&database::config(
            &settings,
            "bench",
            &[("statement_timeout", "0")],
        )?)
        .await
    }

    /// Writes out what Postgres has in memory, so that what is measured next does not pay for what was before.
    pub(super) async fn settle(&self) -> Result<()> {
        // The stack's superuser has the owner's password.
        let url = self.database_url.replacen("//tidelog:", "//postgres:", 1);
        let client = self.connect_to(&url, "public").await?;
        client.batch_execute("CHECKPOINT").await.map_err(plain)
    }

    /// A schema and topics of a measurement's own.
    pub(super) async fn site(&self, name: &str) -> Result<Site<'_>> {
        let site = Site {
            ground: self,
            schema: format!("bench_{}_{name}", self.run),
            prefix: format!("bench-{}-{name}.", self.run),
        };
        for command in ["migrate", "topics"] {
            site.start(command).await?.finish().await?;
        }
        Ok(site)
    }

    /// A bare topic.
    pub(super) async fn make_topic(&self, name: &str, partitions: i32) -> Result<String> {
        let name = format!("bench-{}-{name}", self.run);
        let topic = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
        let made = self
            .admin()?
            .create_topics([&topic], &AdminOptions::new())
            .await?;
        made.into_iter()
            .collect::<Result<Vec<_>, _>>()
            .map_err(|(_, code)| anyhow::anyhow!("cannot make the topic {name}: {code}"))?;
        Ok(name)
    }

    pub(super) async fn delete_topics(&self, prefix: &str) -> Result<()> {
        let metadata = Cluster::new(&self.kafka(""), "bench")?.metadata().await?;
        let topics: Vec<&str> = metadata
            .topics
            .keys()
            .map(String::as_str)
            .filter(|t| t.starts_with(prefix))
            .collect();
        if !topics.is_empty() {
            self.admin()?.delete_topics(&topics, &AdminOptions::new()).await?;
        }
        Ok(())
    }

    fn admin(&self) -> Result<AdminClient<DefaultClientContext>> {
        quiet(&self.kafka(""))
            .create()
            .context("cannot make a Kafka client")
    }

    /// A bearer token.
    pub(super) fn token(&self, person: &Person) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let claims = Claims {
            tenant: person.tenant.clone(),
            sub: person.user.clone(),
            device: Some(person.device.clone()),
            role: Role::User,
            exp: now + 24 * 3600,
        };
        Ok(auth::mint(&self.jwt_secret, &claims)?)
    }
}

/// A schema and topics.
pub(super) struct Site<'a> {
    pub(super) ground: &'a Ground,
    pub(super) schema: String,
    pub(super) prefix: String,
}

impl Site<'_> {
    pub(super) async fn connect(&self) -> Result<Client> {
        self.ground.connect(&self.schema).await
    }

    pub(super) fn kafka(&self) -> KafkaSettings {
        self.ground.kafka(&self.prefix)
    }

    /// A topic's name here.
    pub(super) fn topic(&self, name: &str) -> String {
        tidelog_events::topic_name(&self.prefix, name)
    }

    async fn start(&self, command: &str) -> Result<Child> {
        self.start_with(command, &[]).await
    }

    async fn start_with(&self, command: &str, more: &[(&str, &str)]) -> Result<Child> {
        let mut settings = self.settings();
        settings.extend(more);
        Child::start(&self.ground.exe, &self.ground.dir, command, &settings).await
    }

    fn settings(&self) -> Vec<(&str, &str)> {
        let ground = self.ground;
        vec![
            ("TIDELOG_KAFKA_BROKERS", ground.brokers.as_str()),
            ("TIDELOG_TOPIC_PREFIX", &self.prefix),
            ("TIDELOG_DATABASE_URL", &ground.database_url),
            ("TIDELOG_SCHEMA", &self.schema),
            ("TIDELOG_JWT_SECRET", &ground.jwt_secret),
            ("TIDELOG_LOG", "warn"),
        ]
    }

    /// Runs a command that ends by itself, and answers the JSON that it prints.
    pub(super) async fn run(&self, args: &[&str]) -> Result<serde_json::Value> {
        child::run(&self.ground.exe, &self.ground.dir, args, &self.settings()).await
    }

    /// Starts a gateway and waits until it is ready.
    pub(super) async fn gateway(&self) -> Result<(Child, SocketAddr)> {
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let mut child = self
            .start_with("ingest", &[("TIDELOG_LISTEN", &address.to_string())])
            .await?;
        let began = tokio::time::Instant::now();
        loop {
            child.alive()?;
            if let Ok(mut phone) = Phone::connect(address).await
                && let Ok((StatusCode::OK, _)) = phone.get("/readyz", None).await
            {
                break;
            }
            if began.elapsed() > READY {
                bail!("the gateway is not ready after {READY:?}: {}", child.last_words());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        child.rest(REST).await?;
        Ok((child, address))
    }

    /// Starts a projector. It is not at work yet: [`Self::owned`] waits for that.
    pub(super) async fn projector(&self) -> Result<Child> {
        self.start("project").await
    }

    /// Waits until the projector has a topic's partitions, and has been at rest.
    pub(super) async fn owned(&self, projector: &mut Child, topic: &str, partitions: i64) -> Result<()> {
        let client = self.connect().await?;
        let began = tokio::time::Instant::now();
        let sql = "SELECT count(*) FROM positions WHERE topic = $1 AND owner IS NOT NULL";
        while client
            .query_one(sql, &[&topic])
            .await
            .map_err(plain)?
            .get::<_, i64>(0)
            < partitions
        {
            projector.alive()?;
            if began.elapsed() > READY {
                bail!(
                    "the projector has no partitions after {READY:?}: {}",
                    projector.last_words()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        projector.rest(REST).await
    }

    /// The offset after the last record of each partition of a topic.
    pub(super) async fn ends(&self, topic: &str) -> Result<Vec<(i32, i64)>> {
        let cluster = Cluster::new(&self.kafka(), "bench")?;
        let metadata = cluster.metadata().await?;
        let found = metadata
            .topics
            .get(topic)
            .with_context(|| format!("there is no topic {topic}"))?;
        let at = |&partition: &i32| TopicPartition {
            topic: topic.to_owned(),
            partition,
        };
        let ends = cluster
            .end_offsets(found.replicas.keys().map(at).collect())
            .await?;
        Ok(ends.into_iter().map(|(at, end)| (at.partition, end)).collect())
    }

    /// Removes schema and topics.
    pub(super) async fn discard(self) -> Result<()> {
        drop_schema(&self.ground.connect("public").await?, &self.schema).await?;
        self.ground.delete_topics(&self.prefix).await
    }
}

async fn drop_schema(client: &Client, name: &str) -> Result<()> {
    client
        .batch_execute(&format!("DROP SCHEMA \"{name}\" CASCADE"))
        .await
        .map_err(plain)
}
