//! A write side on a real Kafka and a real Postgres, each test in a schema and under a topic prefix of its own. The
//! projection is played by the test: it says how far it has come and what became of items.

#![allow(dead_code, reason = "each test binary uses its part of this")]

#[path = "../../../tests/support/stack.rs"]
mod stack;

use chrono::{DateTime, Utc};
use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tidelog_events::batch::BatchId;
use tidelog_events::domain::Registry;
use tidelog_events::ids::{DeviceId, Role, TenantId, UserId};
use tidelog_events::outcome::{Change, FindOutcomes, ItemOutcome, Outcome, OutcomesUnavailable};
use tidelog_events::position::{Positions, TopicPartition};
use tidelog_events::resolution::{ConflictsUnavailable, FindConflict, KnownConflict};
use tidelog_events::seal::Accord;
use tidelog_events::settings::Settings;
use tidelog_http::auth::{Auth, Claims, mint};
use tidelog_http::problem::recover;
use tidelog_ingest::settings::Changer;
use tidelog_ingest::{Ingest, IngestConfig, IngestParts, Producer, ProducerConfig, routes};
use tokio::sync::watch;
use tokio_postgres::NoTls;
use uuid::Uuid;
use warp::Filter;
use warp::http::Response;
use warp::hyper::body::Bytes;

pub(crate) const PARTITIONS: i32 = 3;
const SECRET: &str = "a secret of thirty-two characters";

/// What the projection would answer; set by the test.
#[derive(Clone, Default)]
pub(crate) struct Told(Arc<Mutex<Vec<ItemOutcome>>>);

impl Told {
    pub(crate) fn applied(&self, count: u32) {
        let outcome = |index| ItemOutcome {
            index,
            domain: "helpdesk".into(),
            subject: id(index),
            user: "anna".into(),
            outcome: Outcome::Applied {
                change: Change::Created,
                version: 1,
            },
            logged_at: DateTime::<Utc>::UNIX_EPOCH,
        };
        *self.0.lock().expect("no panic") = (0..count).map(outcome).collect();
    }
}

impl FindOutcomes for Told {
    async fn of_batch(&self, _: &TenantId, _: BatchId) -> Result<Vec<ItemOutcome>, OutcomesUnavailable> {
        Ok(self.0.lock().expect("no panic").clone())
    }
}

/// Where the stack is, unless a test wants it elsewhere.
pub(crate) struct Places {
    pub(crate) brokers: String,
    pub(crate) database: tokio_postgres::Config,
}

pub(crate) fn places() -> Places {
    let stack = stack::shared();
    Places {
        brokers: stack.kafka_brokers.clone(),
        database: stack.database_url.parse().expect("a database URL"),
    }
}

/// The write side and what is around it.
pub(crate) struct Fixture {
    pub(crate) ingest: Arc<Ingest<Told>>,
    pub(crate) producer: Arc<Producer>,
    pub(crate) told: Told,
    pub(crate) positions: watch::Sender<Arc<Positions>>,
    pub(crate) db: tokio_postgres::Client,
    pub(crate) prefix: String,
}

pub(crate) async fn fixture() -> Fixture {
    fixture_of(places(), |_, _| {}).await
}

/// `adjust` may change what the gateway is given: its database and its settings.
pub(crate) async fn fixture_of(
    places: Places,
    adjust: impl FnOnce(&mut tokio_postgres::Config, &mut (IngestConfig, ProducerConfig)),
) -> Fixture {
    let name = format!("t{}", Uuid::new_v4().simple());
    let db = schema(&places.database, &name).await;
    let prefix = format!("{name}.");
    if places.brokers == self::places().brokers {
        topics(&places.brokers, &prefix).await;
    }
    let mut config = IngestConfig {
        topic_prefix: prefix.clone(),
        ..IngestConfig::default()
    };
    config.claim_timeout = Duration::from_secs(2);
    let mut settings = (config, ProducerConfig::new(&places.brokers));
    let mut database = places.database.clone();
    database.options(format!("-c search_path={name}"));
    adjust(&mut database, &mut settings);
    let (config, producer) = settings;
    let producer = Arc::new(Producer::new(producer).expect("a producer"));
    let manager = ManagerConfig {
        recycling_method: RecyclingMethod::Fast,
    };
    let pool = Pool::builder(Manager::from_config(database, NoTls, manager))
        .max_size(8)
        .build()
        .expect("a pool");
    let told = Told::default();
    let (positions, watched) = watch::channel(Arc::new(Positions::default()));
    let ingest = Ingest::new(IngestParts {
        seals: None,
        accord: watch::channel(Accord::Unused).1,
        registry: Arc::new(Registry::shipped()),
        pool,
        producer: producer.clone(),
        positions: watched,
        outcomes: told.clone(),
        settings: nothing_set(),
        config,
    });
    Fixture {
        ingest,
        producer,
        told,
        positions,
        db,
        prefix,
    }
}

/// A projection without conflicts.
struct NoConflicts;

impl FindConflict for NoConflicts {
    async fn conflict(
        &self,
        _: &TenantId,
        _: &UserId,
        _: Role,
        _: Uuid,
    ) -> Result<Option<KnownConflict>, ConflictsUnavailable> {
        Ok(None)
    }
}

/// As if no tenant had set anything.
fn nothing_set() -> watch::Receiver<Arc<Settings>> {
    let mut settings = Settings::unread();
    settings.complete = true;
    watch::channel(Arc::new(settings)).1
}

async fn schema(database: &tokio_postgres::Config, name: &str) -> tokio_postgres::Client {
    let (db, connection) = database.connect(NoTls).await.expect("Postgres");
    tokio::spawn(connection);
    let core = stack::MIGRATIONS.concat();
    db.batch_execute(&format!("CREATE SCHEMA {name}; SET search_path = {name}; {core}"))
        .await
        .expect("the core tables");
    db
}

async fn topics(brokers: &str, prefix: &str) {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()
        .expect("an admin client");
    let name = format!("{prefix}sync.helpdesk.v1");
    let topic = NewTopic::new(&name, PARTITIONS, TopicReplication::Fixed(1));
    let made = admin
        .create_topics([&topic], &AdminOptions::new())
        .await
        .expect("Kafka");
    made[0].as_ref().expect("a topic");
}

/// The `mobile_id` of a test's item.
pub(crate) fn id(index: u32) -> String {
    Uuid::from_u128(0x4000_8000_0000_0000_0000 + u128::from(index)).to_string()
}

/// A ticket.
pub(crate) fn ticket(index: u32) -> String {
    format!(
        r#"{{"mobile_id":"{}", "ticketdesc":"the lift is stuck, again"}}"#,
        id(index)
    )
}

/// A batch of tickets.
pub(crate) fn batch(count: u32) -> String {
    let items: Vec<String> = (0..count).map(ticket).collect();
    format!(r#"{{"client_id":"phone-1","entries":[{}]}}"#, items.join(","))
}

/// A record as it lies on the topic.
pub(crate) struct Logged {
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) at: TopicPartition,
    pub(crate) offset: i64,
}

impl Logged {
    pub(crate) fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(header, _)| header == name);
        found.map(|(_, value)| value.as_str()).unwrap_or_default()
    }
}

impl Fixture {
    fn routes(&self) -> warp::filters::BoxedFilter<(warp::reply::Response,)> {
        let changer = Changer::new(
            Arc::new(Registry::shipped()),
            self.producer.clone(),
            nothing_set(),
            &self.prefix,
        );
        routes(
            self.ingest.clone(),
            Arc::new(changer),
            Arc::new(NoConflicts),
            Auth::new(SECRET).expect("a secret"),
        )
    }

    /// Posts a body to helpdesk as anna of acme.
    pub(crate) async fn post(&self, body: &str, headers: &[(&str, &str)]) -> Response<Bytes> {
        self.post_to("/api/v1/helpdesk/sync", body, headers).await
    }

    pub(crate) async fn post_to(&self, path: &str, body: &str, headers: &[(&str, &str)]) -> Response<Bytes> {
        let filter = self.routes().recover(recover);
        let mut request = warp::test::request()
            .method("POST")
            .path(path)
            .header("authorization", format!("Bearer {}", token(None)))
            .header("content-type", "application/json")
            .body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.reply(&filter).await
    }

    /// What anna is told of a key, on any device of hers.
    pub(crate) async fn known(&self, key: &str) -> Response<Bytes> {
        self.known_to(key, "anna", None, Role::User).await
    }

    pub(crate) async fn known_to(
        &self,
        key: &str,
        user: &str,
        device: Option<&str>,
        role: Role,
    ) -> Response<Bytes> {
        let filter = self.routes().recover(recover);
        let request = warp::test::request()
            .path(&format!("/api/v1/sync/idempotency/{key}"))
            .header(
                "authorization",
                format!("Bearer {}", token_of(user, device, role)),
            );
        request.reply(&filter).await
    }

    /// Everything on the topic so far.
    pub(crate) async fn log(&self) -> Vec<Logged> {
        let topic = format!("{}sync.helpdesk.v1", self.prefix);
        let brokers = places().brokers;
        let read = tokio::task::spawn_blocking(move || read_all(&brokers, &topic));
        read.await.expect("no panic")
    }

    /// Says that the projection has applied everything that is on the topic.
    pub(crate) async fn project(&self) {
        let positions = self
            .log()
            .await
            .into_iter()
            .fold(Positions::default(), |mut positions, record| {
                let next = positions.next_offset(&record.at).max(record.offset + 1);
                positions.set(record.at, next);
                positions
            });
        self.positions.send_replace(Arc::new(positions));
    }

    /// One number from the database.
    pub(crate) async fn count(&self, sql: &str) -> i64 {
        self.db.query_one(sql, &[]).await.expect("a number").get(0)
    }
}

/// A token of anna's at acme.
pub(crate) fn token(device: Option<&str>) -> String {
    token_of("anna", device, Role::User)
}

fn token_of(user: &str, device: Option<&str>, role: Role) -> String {
    let claims = Claims {
        tenant: TenantId::parse("acme").expect("tenant"),
        sub: UserId::parse(user).expect("user"),
        device: device.map(|device| DeviceId::parse(device).expect("device")),
        role,
        exp: Utc::now().timestamp() as u64 + 600,
    };
    mint(SECRET, &claims).expect("a token")
}

fn read_all(brokers: &str, topic: &str) -> Vec<Logged> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "none")
        .create()
        .expect("a consumer");
    let patience = Duration::from_secs(10);
    let mut wanted = 0;
    let mut assignment = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        let (low, high) = consumer
            .fetch_watermarks(topic, partition, patience)
            .expect("watermarks");
        wanted += high - low;
        assignment
            .add_partition_offset(topic, partition, Offset::Beginning)
            .expect("a partition");
    }
    consumer.assign(&assignment).expect("assigned");
    let mut records = Vec::new();
    while (records.len() as i64) < wanted {
        let Some(message) = consumer.poll(patience) else {
            panic!("the topic went silent")
        };
        let message = message.expect("a record");
        let text =
            |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap_or_default().to_vec()).expect("UTF-8");
        let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
        records.push(Logged {
            key: text(message.key()),
            value: text(message.payload()),
            headers: headers
                .map(|header| (header.key.to_owned(), text(header.value)))
                .collect(),
            at: TopicPartition {
                topic: topic.to_owned(),
                partition: message.partition(),
            },
            offset: message.offset(),
        });
    }
    records
}

/// A door before a server that a test can shut: connections through it hang, and new ones are refused.
pub(crate) struct Door {
    pub(crate) port: u16,
    open: watch::Sender<bool>,
}

impl Door {
    pub(crate) async fn before(host: String, port: u16) -> Door {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let door = listener.local_addr().expect("an address").port();
        let (open, watched) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((mut inside, _)) = listener.accept().await {
                let (host, mut watched) = (host.clone(), watched.clone());
                tokio::spawn(async move {
                    if !*watched.borrow() {
                        return;
                    }
                    let Ok(mut outside) = tokio::net::TcpStream::connect((host.as_str(), port)).await else {
                        return;
                    };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut inside, &mut outside) => {}
                        _ = watched.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Door { port: door, open }
    }

    pub(crate) async fn before_postgres(places: &Places) -> Door {
        match (&places.database.get_hosts()[0], places.database.get_ports()[0]) {
            (tokio_postgres::config::Host::Tcp(host), port) => Door::before(host.clone(), port).await,
            other => panic!("{other:?}"),
        }
    }

    /// Connections go through the door from now on.
    pub(crate) fn lead_through(&self, database: &mut tokio_postgres::Config) {
        let mut moved = tokio_postgres::Config::new();
        moved.host("127.0.0.1").port(self.port);
        moved.user(database.get_user().expect("a user"));
        moved.password(database.get_password().unwrap_or_default());
        moved.dbname(database.get_dbname().expect("a database"));
        moved.options(database.get_options().expect("options"));
        *database = moved;
    }

    pub(crate) fn shut(&self) {
        self.open.send_replace(false);
    }

    pub(crate) fn open(&self) {
        self.open.send_replace(true);
    }
}
