//! Somebody adds partitions to a topic. A record's history stays one partition: nothing is written to the new ones.

use std::collections::BTreeSet;

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use serde_json::json;

use crate::support::items::tickets;
use crate::support::kafka::read_topic;
use crate::support::phone::{Phone, tenant};
use crate::support::service::{Deployment, PARTITIONS, Service};

async fn add_partitions(deployment: &Deployment, topic: &str, all: i32) {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", &deployment.brokers)
        .create()
        .expect("a client");
    let wanted = NewPartitions::new(topic, all as usize);
    let made = admin
        .create_partitions([&wanted], &AdminOptions::new())
        .await
        .expect("an answer");
    made.into_iter()
        .for_each(|topic| assert!(topic.is_ok(), "{topic:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_records_history_stays_in_its_partition() {
    let service = Service::start("more-partitions");
    let deployment = &service.deployment;
    let topic = deployment.topic("sync.helpdesk.v1");
    let phone = Phone::new(deployment, &tenant("grown"), "asha");
    let tickets = tickets(60);
    phone.post("helpdesk", &tickets).await.expect(200);
    add_partitions(deployment, &topic, 2 * PARTITIONS).await;

    // Another gateway, which has never seen the topic as it was.
    let mut other = deployment.clone();
    other.port = Deployment::new("more-partitions-port").port;
    let _gateway = other.start_listening("ingest", "/readyz");
    let changes: Vec<String> = tickets
        .iter()
        .map(|ticket| {
            let mut change: serde_json::Value = serde_json::from_str(ticket).expect("JSON");
            change["version"] = json!(1);
            change["comments"] = json!("looked at");
            change.to_string()
        })
        .collect();
    for gateway in [&other, deployment] {
        let phone = Phone::new(gateway, &phone.tenant, "asha");
        phone.post("helpdesk", &changes).await.expect(200);
    }

    let records = read_topic(&deployment.brokers, &topic);
    assert!(records.iter().all(|record| record.partition < PARTITIONS));
    let homes: BTreeSet<(&str, i32)> = records
        .iter()
        .map(|record| (record.key.as_str(), record.partition))
        .collect();
    assert_eq!(homes.len(), tickets.len(), "a record has one partition");
    deployment.run(&["verify", "--domain", "helpdesk"]).ok();

    let check = deployment.run(&["topics", "--check"]);
    assert_eq!(check.code, 3, "{check:?}");
    let said = format!("partitions is {}, not {PARTITIONS}", 2 * PARTITIONS);
    assert!(
        check.stdout.contains(&said) && check.stdout.contains("gateways keep to these"),
        "{}",
        check.stdout
    );
    // To make topics again does not make the new number the topic's.
    assert_eq!(deployment.run(&["topics"]).code, 3);
    let check = deployment.run(&["topics", "--check"]);
    assert!(check.stdout.contains(&said), "{}", check.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_was_there_before_keeps_the_number_that_it_has() {
    let deployment = Deployment::new("found-partitions").with("TIDELOG_PARTITIONS", "3");
    deployment.prepare();
    let later = deployment.clone().with("TIDELOG_PARTITIONS", "12");
    let again = later.run(&["topics"]);
    assert_eq!(again.code, 3, "{again:?}");
    assert!(
        again.stdout.contains("partitions is 3, not 12") && again.stdout.contains("set partitions = 3"),
        "{}",
        again.stdout
    );
}
