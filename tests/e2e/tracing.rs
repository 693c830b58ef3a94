//! Somebody asks where a change went: an operator finds what a device sent, what became of each item and why, and that it
//! is in the log; what a record went through; and never anything of another tenant.

use std::sync::OnceLock;

use serde_json::{Value, json};
use tidelog_http::auth::Role;
use uuid::Uuid;

use crate::support::eventually;
use crate::support::items::{encoded, ticket, tickets};
use crate::support::kafka::produce;
use crate::support::phone::{Phone, tenant};
use crate::support::service::{Deployment, Service};

static SERVICE: OnceLock<Service> = OnceLock::new();

fn deployment() -> &'static Deployment {
    &Service::shared(&SERVICE, "tracing").deployment
}

fn trace(deployment: &Deployment, tenant: &str, args: &[&str]) -> Value {
    let all = [&["trace", "--output", "json", "--tenant", tenant], args].concat();
    deployment.run(&all).json()
}

fn list<'a>(trace: &'a Value, name: &str) -> &'a Vec<Value> {
    trace[name]
        .as_array()
        .unwrap_or_else(|| panic!("no {name}: {trace}"))
}

/// The outcomes of all items, in the order told.
fn outcomes(trace: &Value) -> Vec<&str> {
    list(trace, "items")
        .iter()
        .map(|item| item["outcome"]["outcome"].as_str().expect("an outcome"))
        .collect()
}

/// Two technicians of a tenant and a record that both change; one is behind, comes again, and is wrong.
struct Story {
    tenant: String,
    record: Uuid,
    batch: String,
}

impl Story {
    async fn new(deployment: &Deployment, tenant: String, record: Uuid) -> Story {
        let asha = Phone::of(deployment, &tenant, "asha", "phone-1", Role::User);
        let ben = Phone::of(deployment, &tenant, "ben", "phone-2", Role::User);
        let key = Uuid::new_v4().to_string();
        let first = [ticket(record, "The lift is stuck again").to_string()];
        for _ in 0..2 {
            asha.post_keyed("helpdesk", &key, &first).await.expect(200);
        }
        ben.apply(
            "helpdesk",
            json!({"mobile_id": record, "version": 1, "comments": "ben's"}),
        )
        .await;
        let behind = json!({"mobile_id": record, "version": 1, "comments": "asha's", "priority": "HIGH"});
        let wrong = json!({"mobile_id": record, "version": 1, "priority": "HUGE"});
        let step = json!({"mobile_id": record, "version": 3, "status": "CLOSED"});
        let batch = [behind.to_string(), wrong.to_string(), step.to_string()];
        let answer = asha.post("helpdesk", &batch).await.expect(200).json();
        // In another batch, so it is known again by its content.
        asha.post("helpdesk", &[first[0].clone(), tickets(1).remove(0)])
            .await
            .expect(200);
        Story {
            tenant,
            record,
            batch: answer["batch_id"].as_str().expect("a batch").to_owned(),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_device_sent_is_told_with_what_became_of_it() {
    let story = Story::new(deployment(), tenant("device"), Uuid::new_v4()).await;
    let told = trace(deployment(), &story.tenant, &["--device", "phone-1"]);
    let batches = list(&told, "batches");
    let numbers: Vec<_> = batches
        .iter()
        .map(|b| (&b["items"], &b["appended_items"], &b["hits"]))
        .collect();
    let number = |items: i64, appended: i64, hits: i64| (json!(items), json!(appended), json!(hits));
    let expected = [number(1, 1, 1), number(3, 2, 0), number(2, 2, 0)];
    assert_eq!(
        numbers,
        expected.iter().map(|(a, b, c)| (a, b, c)).collect::<Vec<_>>(),
        "{told}"
    );
    let refused = &batches[1]["refused"][0];
    assert_eq!(
        (&refused["index"], &refused["error"]["field"]),
        (&json!(1), &json!("priority")),
        "{told}"
    );
    let mut all = outcomes(&told);
    all.sort_unstable();
    assert_eq!(
        all,
        ["applied", "applied", "conflict", "duplicate", "refused"],
        "{told}"
    );
    let items = list(&told, "items");
    assert!(
        items
            .iter()
            .all(|item| item["in_log"] == "there" && item["device"] == "phone-1"),
        "{told}"
    );
    let times: Vec<&str> = items
        .iter()
        .map(|item| item["log_time"].as_str().expect("a time"))
        .collect();
    assert!(times.is_sorted(), "{times:?}");

    // Who decided, and upon whose change.
    let conflict = items
        .iter()
        .find(|item| item["outcome"]["outcome"] == "conflict")
        .expect("a conflict");
    let why = &conflict["conflict"];
    assert_eq!(
        (
            &why["policy"],
            &why["winner"],
            &why["client_version"],
            &why["server_version"],
            &why["result_version"]
        ),
        (
            &json!("preserve_escalation"),
            &json!("merged"),
            &json!(1),
            &json!(2),
            &json!(3)
        )
    );
    let by: Vec<_> = list(why, "changed_by")
        .iter()
        .map(|c| (&c["version"], &c["user"], &c["fields"]))
        .collect();
    assert_eq!(by, [(&json!(2), &json!("ben"), &json!(["comments"]))]);

    // By time, by number, by batch and by item.
    assert_eq!(
        trace(deployment(), &story.tenant, &["--device", "phone-3"])["batches"],
        json!([])
    );
    let one = trace(
        deployment(),
        &story.tenant,
        &["--device", "phone-1", "--limit", "1"],
    );
    assert_eq!((list(&one, "batches").len(), &one["has_more"]), (1, &json!(true)));
    assert_eq!(one["batches"][0], batches[2], "the newest");
    let later = ["--device", "phone-1", "--since", "2999-01-01T00:00:00Z"];
    assert_eq!(trace(deployment(), &story.tenant, &later)["batches"], json!([]));
    let batch = trace(deployment(), &story.tenant, &["--batch", &story.batch]);
    assert_eq!(outcomes(&batch), ["conflict", "refused"], "{batch}");
    let item = trace(
        deployment(),
        &story.tenant,
        &["--item", &format!("{}/2", story.batch)],
    );
    assert_eq!(
        item["items"][0]["outcome"]["error"]["error_code"], "INVALID_TRANSITION",
        "{item}"
    );
    let none = format!("{}/99", story.batch);
    let none = deployment()
        .run(&["trace", "--tenant", &story.tenant, "--item", &none])
        .ok();
    let told = format!(
        "There is no item 99 in the batch {}: it has 3 items, numbered from 0",
        story.batch
    );
    assert!(none.lines().any(|line| line == told), "{none}");
    let text = deployment()
        .run(&["trace", "--tenant", &story.tenant, "--batch", &story.batch])
        .ok();
    for line in [
        "3 items, 2 appended, key ",
        "refused by the gateway: VALIDATION_ERROR: priority must be one of HIGH, MEDIUM, LOW",
        "upon version 1 → conflict, preserve_escalation: merged, version 3",
        "version 2 was made by ben from phone-2",
        "it is there",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_tells_its_whole_life_and_no_other_tenants() {
    // Two tenants with the same users, devices and record.
    let record = Uuid::new_v4();
    let mine = Story::new(deployment(), tenant("life"), record).await;
    let other = Story::new(deployment(), tenant("life"), record).await;
    let name = format!("helpdesk/{}", mine.record.to_string().to_uppercase());
    let told = trace(deployment(), &mine.tenant, &["--record", &name]);
    assert_eq!(
        outcomes(&told),
        ["applied", "applied", "conflict", "refused", "duplicate"],
        "{told}"
    );
    let items = list(&told, "items");
    assert!(items.iter().all(|item| item["in_log"] == "there"), "{told}");
    let attempts: Vec<_> = items
        .iter()
        .map(|i| (&i["user"], &i["operation"], &i["base_version"]))
        .collect();
    let attempt = |user: &str, operation: &str, base: i64| (json!(user), json!(operation), json!(base));
    let expected = [
        attempt("asha", "create", 0),
        attempt("ben", "update", 1),
        attempt("asha", "update", 1),
        attempt("asha", "update", 3),
        attempt("asha", "create", 0),
    ];
    assert_eq!(
        attempts,
        expected.iter().map(|(a, b, c)| (a, b, c)).collect::<Vec<_>>()
    );
    let newest = trace(deployment(), &mine.tenant, &["--record", &name, "--limit", "2"]);
    assert_eq!(
        (outcomes(&newest), &newest["has_more"]),
        (vec!["refused", "duplicate"], &json!(true))
    );

    // What is the other's stays the other's, by whatever it is asked for.
    let theirs: Vec<&Value> = items.iter().map(|item| &item["batch_id"]).collect();
    for args in [
        vec!["--record", &name],
        vec!["--device", "phone-1"],
        vec!["--batch", &other.batch],
    ] {
        let seen = trace(deployment(), &other.tenant, &args);
        assert!(!list(&seen, "items").is_empty(), "{seen}");
        let text = seen.to_string();
        assert!(
            theirs
                .iter()
                .all(|batch| !text.contains(batch.as_str().expect("text"))),
            "{args:?}: {text}"
        );
        assert!(!text.contains(&mine.tenant), "{text}");
    }
    for args in [
        ["--batch", other.batch.as_str()],
        ["--item", &format!("{}/0", other.batch)],
    ] {
        let seen = trace(deployment(), &mine.tenant, &args);
        assert_eq!(
            (&seen["batches"], &seen["items"]),
            (&json!([]), &json!([])),
            "{seen}"
        );
    }
    let nobody = deployment()
        .run(&["trace", "--tenant", "nobody", "--record", &name])
        .ok();
    assert_eq!(nobody, "Nothing is known of it.\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_log_and_not_applied_is_told() {
    let deployment = Deployment::new("trace-pending");
    deployment.prepare();
    let _ingest = deployment.start_listening("ingest", "/readyz");
    // Two tenants with the same device and record.
    let (record, mine, other) = (Uuid::new_v4(), tenant("pending"), tenant("pending"));
    for tenant in [&mine, &other] {
        let phone = Phone::new(&deployment, tenant, "asha");
        let mut entries = tickets(3);
        entries.push(ticket(record, "The lift is stuck again").to_string());
        phone
            .send_batch("helpdesk", &[("prefer", "wait=0")], phone.batch(&entries))
            .await
            .expect(202);
    }
    let name = format!("helpdesk/{record}");
    let told = trace(&deployment, &mine, &["--device", "phone-1"]);
    assert_eq!(outcomes(&told), ["pending"; 4], "{told}");
    assert_eq!(
        (list(&told, "batches").len(), &told["unseen"]),
        (1, &json!([])),
        "{told}"
    );
    let one = trace(&deployment, &mine, &["--record", &name]);
    assert_eq!(outcomes(&one), ["pending"], "{one}");
    assert_eq!(one["items"][0]["batch_id"], told["batches"][0]["batch_id"]);
    let text = deployment
        .run(&["trace", "--tenant", &mine, "--record", &name])
        .ok();
    assert!(
        text.contains("pending: in the log, and not applied yet"),
        "{text}"
    );

    let _project = deployment.start("project");
    let told = eventually("all is applied", async || {
        let told = trace(&deployment, &mine, &["--device", "phone-1"]);
        (!outcomes(&told).contains(&"pending")).then_some(told)
    })
    .await;
    assert_eq!(outcomes(&told), ["applied"; 4], "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_nobody_could_apply_is_told_of_its_batch_and_record() {
    let service = Service::start("trace-poison");
    let deployment = &service.deployment;
    let (mine, other) = (tenant("poison"), tenant("poison"));
    let (record, batch) = (Uuid::new_v4(), Uuid::new_v4());
    let source = format!("/tenants/{}/users/asha/devices/phone-1", encoded(&mine));
    let item = format!("{batch}/0");
    let headers = [
        ("ce_specversion", "1.0"),
        ("ce_type", "tidelog.helpdesk.update"),
        ("ce_source", &source),
        ("ce_subject", &record.to_string()),
        ("ce_batch", &item),
        ("ce_baseversion", "one"),
    ];
    produce(
        &deployment.brokers,
        &deployment.topic("sync.helpdesk.v1"),
        "key",
        &headers,
        "{}",
    );
    for args in [
        ["--batch", batch.to_string().as_str()],
        ["--record", &format!("helpdesk/{record}")],
    ] {
        let told = eventually("a letter", async || {
            let told = trace(deployment, &mine, &args);
            (told["items"] != json!([])).then_some(told)
        })
        .await;
        let letter = &told["items"][0];
        assert_eq!(
            (&letter["outcome"]["outcome"], &letter["user"]),
            (&json!("dead_letter"), &json!("asha")),
            "{told}"
        );
        assert_eq!(letter["in_log"], "there", "{told}");
        assert_eq!(trace(deployment, &other, &args)["items"], json!([]));
    }
}

#[test]
fn a_question_that_makes_no_sense_is_refused() {
    let deployment = Deployment::new("trace-wrong");
    deployment.prepare();
    let ran = deployment.run(&["trace", "--tenant", "acme", "--record", "helpdesks/1"]);
    assert!(
        ran.code == 1 && ran.stderr.contains("there is no domain \"helpdesks\""),
        "{ran:?}"
    );
    for wrong in [
        vec![],
        vec!["--item", "1"],
        vec!["--record", "helpdesk"],
        vec!["--record", "helpdesk/1"],
        vec!["--device", "phone-1", "--batch", "x"],
        vec!["--device", "phone-1", "--since", "soon"],
    ] {
        let ran = deployment.run(&[&["trace", "--tenant", "acme"], &wrong[..]].concat());
        assert_eq!(ran.code, 2, "{wrong:?}: {ran:?}");
    }
}
