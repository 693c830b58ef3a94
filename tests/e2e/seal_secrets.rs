//! A gateway that seals under another secret than the deployment does, or not at all, says so, takes nothing personal and shows
//! nothing sealed; and it is one that is wrong, never the others.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::kafka::read_topic;
use crate::support::phone::{Phone, tenant};
use crate::support::service::{Deployment, Service};
use crate::support::{eventually, process::Process};

const VARIABLE: &str = "TIDELOG_SEAL_SECRET";
const RIGHT: &str = "a secret for tests, of 32 bytes or more";
const WRONG: &str = "another secret for tests, of 32 bytes or more";

/// Another gateway of that deployment, on a port of its own, with that secret.
fn beside(deployment: &Deployment, secret: Option<&str>) -> Deployment {
    let mut beside = Deployment::new("secrets-beside");
    beside.prefix.clone_from(&deployment.prefix);
    beside.schema.clone_from(&deployment.schema);
    match secret {
        Some(secret) => beside.with(VARIABLE, secret),
        None => beside,
    }
}

fn ticket() -> Value {
    json!({"mobile_id": Uuid::new_v4(), "ticketdesc": "the lift is stuck"})
}

async fn unready(phone: &Phone, why: &str) -> Value {
    eventually("it says that it is not ready", async || {
        let told = phone.get("/readyz").await;
        (told.status == 503
            && told.json()["reason"]
                .as_str()
                .is_some_and(|reason| reason.starts_with(why)))
        .then(|| told.json())
    })
    .await
}

async fn takes_and_shows_nothing(phone: &Phone) {
    let refused = phone.post("helpdesk", &[ticket().to_string()]).await.expect(503);
    assert_eq!(refused.header("retry-after"), Some("10"), "{}", refused.text());
    for path in ["/api/v1/helpdesk/changes", "/api/v1/conflicts"] {
        let told = phone.get(path).await.expect(503);
        assert!(!told.text().contains("sealed:1:"), "{}", told.text());
    }
    let mixed = json!({"entity_type": "ticket", "operation": "create", "mobile_id": Uuid::new_v4(), "version": 0, "data": {"ticketdesc": "stuck"}});
    phone
        .post_mixed(&Uuid::new_v4().to_string(), &[mixed.to_string()])
        .await
        .expect(503);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_with_another_secret_or_none_says_so_and_takes_nothing() {
    let service = Service::of(Deployment::new("secrets").with(VARIABLE, RIGHT));
    let tenant = tenant("secrets");
    let (other, none) = (
        beside(&service.deployment, Some(WRONG)),
        beside(&service.deployment, None),
    );
    let wrong = [
        (&other, "seal_secret is not the one", "other"),
        (&none, "seal_secret is not set", "missing"),
    ];
    let asha = Phone::new(&service.deployment, &tenant, "asha");
    // Nothing is sealed yet: nobody is wrong.
    let running: Vec<Process> = wrong
        .iter()
        .map(|(deployment, ..)| deployment.start_listening("ingest", "/readyz"))
        .collect();
    assert_eq!(
        asha.get("/readyz").await.expect(200).json()["seal_secret"],
        "unused"
    );
    asha.apply("helpdesk", ticket()).await;
    eventually("it says that the secret is the deployment's", async || {
        let told = asha.get("/readyz").await.expect(200).json();
        (told["seal_secret"] == "same").then_some(())
    })
    .await;
    for (deployment, why, word) in wrong {
        let phone = Phone::new(deployment, &tenant, "asha");
        assert_eq!(unready(&phone, why).await["seal_secret"], word);
        takes_and_shows_nothing(&phone).await;
    }
    for process in running {
        let log = process.log();
        assert!(
            log.contains("ERROR") && log.contains("seal_secret is not"),
            "{log}"
        );
        assert_eq!(process.terminate(), 0);
    }
    // Nor when it starts, and not where all keys that there were are destroyed.
    let args = ["erase", "--tenant", &tenant, "--user", "asha", "--yes"];
    service.deployment.run(&args).ok();
    for (deployment, why, _) in wrong {
        let mut process = deployment.start("ingest");
        let phone = Phone::new(deployment, &tenant, "asha");
        deployment.answers(&mut process, "/livez");
        unready(&phone, why).await;
        takes_and_shows_nothing(&phone).await;
        assert_eq!(process.terminate(), 0);
    }
    let right = beside(&service.deployment, Some(RIGHT));
    let tail = ["tail", "--from", "beginning", "--no-follow", "--payload"];
    for (deployment, warns) in [(&other, true), (&right, false)] {
        let told = deployment.run(&tail).stderr;
        assert_eq!(
            told.contains("warning: seal_secret is not the one"),
            warns,
            "{told}"
        );
    }
    let process = right.start_listening("ingest", "/readyz");
    Phone::new(&right, &tenant, "asha")
        .apply("helpdesk", ticket())
        .await;
    asha.apply("helpdesk", ticket()).await;
    let logged = read_topic(
        &service.deployment.brokers,
        &service.deployment.topic("sync.helpdesk.v1"),
    );
    assert_eq!(logged.len(), 3, "of the wrong ones nothing");
    assert!(
        logged
            .iter()
            .all(|record| record.value.contains("sealed:1:") && !record.value.contains("stuck"))
    );
    assert_eq!(process.terminate(), 0);
    assert_eq!(service.process.terminate(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_who_seal_first_at_the_same_moment_one_does() {
    let service = Service::of(Deployment::new("secrets-first").with(VARIABLE, RIGHT));
    let tenant = tenant("secrets-first");
    let other = beside(&service.deployment, Some(WRONG));
    let process = other.start_listening("ingest", "/readyz");
    let (here, there) = (
        Phone::new(&service.deployment, &tenant, "asha"),
        Phone::new(&other, &tenant, "ben"),
    );
    let (tickets, more) = ([ticket().to_string()], [ticket().to_string()]);
    let (here_told, there_told) =
        tokio::join!(here.post("helpdesk", &tickets), there.post("helpdesk", &more));
    let mut told = [here_told.status, there_told.status];
    let loser = if told[0] == 503 { &here } else { &there };
    unready(loser, "seal_secret is not the one").await;
    takes_and_shows_nothing(loser).await;
    told.sort_unstable();
    assert!(told[0] / 100 == 2 && told[1] == 503, "{told:?}");
    let logged = read_topic(
        &service.deployment.brokers,
        &service.deployment.topic("sync.helpdesk.v1"),
    );
    assert_eq!(logged.len(), 1);
    assert_eq!(process.terminate(), 0);
    assert_eq!(service.process.terminate(), 0);
}
