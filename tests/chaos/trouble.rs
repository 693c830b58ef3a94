//! What can be done to a topic and to a database that others share, without harm to the others.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tidelog_events::item::record_key;
use tidelog_http::auth::TenantId;

use crate::checker::POISON;
use crate::support::service::Deployment;

/// Puts records onto the helpdesk topic that no fold can take; answers how many.
pub(crate) fn poison(deployment: &Deployment, tenant: &str) -> usize {
    let topic = deployment.topic("sync.helpdesk.v1");
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &deployment.brokers)
        .create()
        .expect("a producer");
    let subject = "7f1c9a52-3d0e-4b7a-9c55-0e6b1f7d2a41";
    let tenant = TenantId::parse(tenant).expect("a tenant");
    let key = record_key(&tenant, subject);
    let valid: Vec<(&str, String)> = vec![
        ("ce_specversion", "1.0".into()),
        ("ce_id", subject.into()),
        ("ce_type", "tidelog.helpdesk.create".into()),
        (
            "ce_source",
            format!(
                "/tenants/{}/users/eve/devices/phone-eve",
                key.rsplit_once('/').expect("a key").0
            ),
        ),
        ("ce_subject", subject.into()),
        ("ce_time", "2026-03-01T10:00:00Z".into()),
        ("ce_batch", format!("{POISON}0000-8000-8000-000000000000/0")),
        ("ce_baseversion", "0".into()),
        ("ce_policy", "merge".into()),
    ];
    let changed = |name: &str, value: &str| {
        let mut headers = valid.clone();
        headers
            .iter_mut()
            .filter(|(known, _)| *known == name)
            .for_each(|(_, old)| *old = value.into());
        headers
    };
    let huge = "x".repeat(900_000);
    let mut count = 0;
    let item = r#"{"ticketdesc": "The lift is stuck again"}"#;
    for (headers, value, key) in [
        (Vec::new(), Some(item), key.as_str()),
        (valid.clone(), Some("no JSON at all"), &key),
        (valid.clone(), Some(&huge), &key),
        (valid.clone(), None, &key),
        (valid.clone(), Some(item), "somebody/else"),
        (changed("ce_type", "tidelog.nowhere.create"), Some(item), &key),
        (changed("ce_specversion", "9.9"), Some(item), &key),
        (changed("ce_subject", "seven"), Some(item), &key),
    ] {
        let mut native = OwnedHeaders::new();
        for (name, value) in &headers {
            native = native.insert(Header {
                key: name,
                value: Some(value.as_str()),
            });
        }
        let mut record = BaseRecord::to(&topic).key(key).headers(native);
        if let Some(value) = value {
            record = record.payload(value);
        }
        count += 1;
        producer
            .send(record)
            .map_err(|(error, _)| error)
            .expect("a record");
    }
    producer
        .flush(Duration::from_secs(30))
        .expect("all records are there");
    count
}

/// Has the helpdesk topic ask for so many copies before a record counts; there is one broker.
pub(crate) async fn copies(deployment: &Deployment, count: &str) {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", &deployment.brokers)
        .create()
        .expect("an admin client");
    let topic = deployment.topic("sync.helpdesk.v1");
    // What is not named is set back.
    let config = AlterConfig::new(ResourceSpecifier::Topic(&topic))
        .set("message.timestamp.type", "LogAppendTime")
        .set("retention.ms", "-1")
        .set("cleanup.policy", "delete")
        .set("min.insync.replicas", count);
    let altered = admin
        .alter_configs(&[config], &AdminOptions::new())
        .await
        .expect("an answer");
    altered
        .into_iter()
        .for_each(|one| drop(one.expect("it is altered")));
}

/// Has Postgres fail writes to the feed with that SQLSTATE, one in `one_in`, until it is [`mended`].
pub(crate) async fn failing(deployment: &Deployment, state: &str, one_in: u32) {
    let (db, schema) = (deployment.db().await, &deployment.schema);
    let function = format!(
        "CREATE OR REPLACE FUNCTION {schema}_watch.fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           IF random() < 1.0 / {one_in} THEN RAISE EXCEPTION 'made to fail' USING ERRCODE = '{state}'; END IF; RETURN NULL; END $$"
    );
    db.rows(&function, &[]).await;
    let trigger = format!(
        "CREATE OR REPLACE TRIGGER failing AFTER INSERT ON helpdesk_changes FOR EACH STATEMENT EXECUTE FUNCTION {schema}_watch.fail()"
    );
    db.rows(&trigger, &[]).await;
}

pub(crate) async fn mended(deployment: &Deployment) {
    deployment
        .db()
        .await
        .rows("DROP TRIGGER IF EXISTS failing ON helpdesk_changes", &[])
        .await;
}

/// Holds a lock that nobody can write or read beside.
pub(crate) async fn locked(deployment: &Deployment, seconds: f64) {
    let sql = "DO $$ BEGIN LOCK TABLE helpdesk, helpdesk_changes, positions IN ACCESS EXCLUSIVE MODE; PERFORM pg_sleep(seconds); END $$"
        .replace("seconds)", &format!("{seconds})"));
    deployment.db().await.rows(&sql, &[]).await;
}
