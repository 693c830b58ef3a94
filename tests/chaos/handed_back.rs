//! A projector that is so far behind that it has paused a topic gives partitions of it away and gets them back. A pause outlives
//! the assignment in Kafka's client, so whoever gets a partition has to resume it.

use std::time::Duration;

use tokio_postgres::NoTls;

use crate::run::{prepared, seconds};
use crate::support::eventually;
use crate::support::items::tickets;
use crate::support::phone::{Phone, tenant};
use crate::support::process::Process;
use crate::support::service::Deployment;

/// More than a lane and the backlog before it hold.
const BATCHES: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_was_given_away_while_paused_is_read_when_it_comes_back() {
    let (deployment, _running) = handed_back("handed-back", "").await;
    eventually("everything is applied", async || {
        (lag(&deployment).await == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_resume_it_stands_still() {
    let (deployment, _running) = handed_back("without-resume", "resume").await;
    seconds(8.0).await;
    assert!(lag(&deployment).await > 0, "it has to be noticed");
}

/// The first projector has paused the topic, given partitions to a second one and got them back; and there is more to apply.
async fn handed_back(name: &str, without: &str) -> (Deployment, Vec<Process>) {
    let deployment = prepared(name).await;
    let gateway = deployment.start_listening("ingest", "/livez");
    let first = projector(&deployment, "first", without);
    let owns = |process: &Process| process.log().contains("sync.helpdesk.v1\" partitions=Some");
    eventually("the first owns the topic", async || owns(&first).then_some(())).await;
    let (holder, connection) = deployment_config(&deployment)
        .connect(NoTls)
        .await
        .expect("a connection");
    tokio::spawn(connection);
    let lock = format!(
        "BEGIN; LOCK TABLE \"{}\".helpdesk IN ACCESS EXCLUSIVE MODE",
        deployment.schema
    );
    holder.batch_execute(&lock).await.expect("a lock");

    let phone = Phone::new(&deployment, &tenant(name), "asha");
    post(&phone, BATCHES).await;
    // It reads until it has no room.
    seconds(3.0).await;
    let second = projector(&deployment, "second", without);
    eventually("the second owns a part", async || owns(&second).then_some(())).await;
    holder
        .batch_execute("COMMIT")
        .await
        .expect("the lock is let go of");
    eventually("both have come to the end", async || {
        (lag(&deployment).await == 0).then_some(())
    })
    .await;
    assert_eq!(second.terminate(), 0);
    post(&phone, 10).await;
    (deployment, vec![gateway, first])
}

fn projector(deployment: &Deployment, name: &str, without: &str) -> Process {
    let mut command = deployment.command(&["project"]);
    if !without.is_empty() {
        command.env("TIDELOG_DRILL_WITHOUT", without);
    }
    Process::start(name, &command, &deployment.dir)
}

fn deployment_config(deployment: &Deployment) -> tokio_postgres::Config {
    deployment.database_url.parse().expect("a URL")
}

async fn post(phone: &Phone, batches: usize) {
    for _ in 0..batches {
        loop {
            let body = phone.batch(&tickets(100));
            let answer = phone.send_batch("helpdesk", &[("prefer", "wait=0")], body).await;
            match answer.status {
                200 | 202 => break,
                429 | 503 => tokio::time::sleep(Duration::from_millis(100)).await,
                _ => panic!("{}", answer.text()),
            }
        }
    }
}

/// Records of the topic that are not applied, by the ends that the projectors have noted and the log's.
async fn lag(deployment: &Deployment) -> i64 {
    let ends =
        crate::support::kafka::end_offsets(&deployment.brokers, &deployment.topic("sync.helpdesk.v1"), 3);
    let sql = "SELECT coalesce(sum(next_offset), 0)::bigint FROM positions WHERE topic = $1";
    let topic = deployment.topic("sync.helpdesk.v1");
    let applied = deployment.db().await.count(sql, &[&topic]).await;
    ends.iter().sum::<i64>() - applied
}
