//! What a tenant sets is stamped into its events from then on, by every gateway, without Postgres; and into nobody
//! else's.

use std::sync::OnceLock;

use http::Method;
use serde_json::{Value, json};
use tidelog_http::auth::Role;
use uuid::Uuid;

use crate::support::eventually;
use crate::support::http::Answer;
use crate::support::items::tickets;
use crate::support::kafka::{Record, read_topic};
use crate::support::phone::{Phone, tenant};
use crate::support::service::{Deployment, Service};

static SERVICE: OnceLock<Service> = OnceLock::new();

const SETTINGS: &str = "/api/v1/settings/sync";

fn deployment() -> &'static Deployment {
    &Service::shared(&SERVICE, "settings").deployment
}

fn operator(tenant: &str) -> Phone {
    Phone::of(deployment(), tenant, "olga", "desk-1", Role::Operator)
}

async fn set(operator: &Phone, method: Method, settings: Value) -> Answer {
    operator.send(method, SETTINGS, &[], settings.to_string()).await
}

/// The one event of a record.
fn event(deployment: &Deployment, topic: &str, subject: Uuid) -> Record {
    let subject = subject.to_string();
    let mut all = read_topic(&deployment.brokers, &deployment.topic(topic));
    all.retain(|record| record.header("ce_subject") == subject);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_set_is_shown_with_what_follows_from_it() {
    let (tenant, other) = (tenant("shown"), tenant("other"));
    let olga = operator(&tenant);
    let before = olga.get(SETTINGS).await.expect(200);
    assert_eq!(before.header("etag"), Some("\"0\""));
    assert_eq!(
        before.json()["effective"]["domains"]["helpdesk"]["policy"],
        "preserve_escalation"
    );
    assert_eq!(before.json().get("domains"), None, "{}", before.text());

    let wanted = json!({"domains": {"helpdesk": {"policy": "merge"}}, "device_priority": {"enabled": true, "phone": 120}});
    let put = set(&olga, Method::PUT, wanted.clone()).await.expect(200);
    for shown in [
        put.json(),
        olga.get(&format!("{SETTINGS}/")).await.expect(200).json(),
    ] {
        assert_eq!(shown["domains"], wanted["domains"], "{shown}");
        assert_eq!(shown["device_priority"], wanted["device_priority"], "{shown}");
        assert_eq!(
            shown["effective"]["domains"]["helpdesk"],
            json!({"policy": "merge", "auto_resolve": true})
        );
        assert_eq!(shown["effective"]["device_priority"]["desktop"], 100, "{shown}");
        assert_eq!(shown["updated_by"], "olga", "{shown}");
    }

    // A part of it, and a part taken back.
    let patch = json!({"domains": {"activity": {"auto_resolve": false}, "helpdesk": null}});
    let headers = [("content-type", "application/merge-patch+json")];
    let patched = olga
        .send(Method::PATCH, SETTINGS, &headers, patch.to_string())
        .await
        .expect(200)
        .json();
    assert_eq!(
        patched["domains"],
        json!({"activity": {"auto_resolve": false}}),
        "{patched}"
    );
    assert_eq!(patched["device_priority"]["phone"], 120, "{patched}");

    // What was read can be written back as it is; and replaced by nothing.
    let same = set(&olga, Method::PUT, patched.clone()).await.expect(200).json();
    assert_eq!(same["domains"], patched["domains"]);
    let nothing = set(&olga, Method::PUT, json!({})).await.expect(200).json();
    assert_eq!(
        (nothing.get("domains"), nothing.get("device_priority")),
        (None, None),
        "{nothing}"
    );
    let foreign = operator(&other).get(SETTINGS).await.expect(200).json();
    assert_eq!(foreign["revision"], 0, "{foreign}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_and_what_may_be_set_is_told() {
    let tenant = tenant("wrong");
    let olga = operator(&tenant);
    for role in [Role::User, Role::Supervisor] {
        let phone = Phone::of(deployment(), &tenant, "asha", "phone-1", role);
        phone.get(SETTINGS).await.expect(403);
        set(&phone, Method::PUT, json!({})).await.expect(403);
    }
    let wrong = json!({"domains": {"helpdesk": {"policy": "fastest"}, "nowhere": {}, "voice": {"policy": "merge"}},
        "device_priority": {"phone": 201}, "limits": {"batch_items": 0}, "colour": "blue"});
    let told = set(&olga, Method::PUT, wrong).await.expect(422).json();
    let fields: Vec<&str> = told["errors"]
        .as_array()
        .expect("errors")
        .iter()
        .filter_map(|e| e["field"].as_str())
        .collect();
    for field in [
        "domains.helpdesk.policy",
        "domains.voice",
        "device_priority.phone",
        "limits.batch_items",
        "colour",
    ] {
        assert!(fields.contains(&field), "{field}: {told}");
    }
    for (body, status) in [("[]", 400), ("{", 400), ("null", 400)] {
        olga.send(Method::PUT, SETTINGS, &[], body).await.expect(status);
    }
    olga.send(Method::PUT, SETTINGS, &[], " ".repeat(70_000))
        .await
        .expect(413);
    olga.send(Method::DELETE, SETTINGS, &[], "").await.expect(405);
    assert_eq!(
        olga.get(SETTINGS).await.expect(200).json()["revision"],
        0,
        "nothing of it was set"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_goes_on_from_an_older_one_is_refused() {
    let olga = operator(&tenant("moved"));
    let first = set(&olga, Method::PUT, json!({"limits": {"batch_items": 10}}))
        .await
        .expect(200);
    let tag = first.header("etag").expect("an ETag").to_owned();
    let change = async |tag: &str, items: u32| {
        let body = json!({"limits": {"batch_items": items}}).to_string();
        olga.send(Method::PATCH, SETTINGS, &[("if-match", tag)], body)
            .await
    };
    change(&tag, 20).await.expect(200);
    let late = change(&tag, 30).await.expect(412).json();
    assert!(late["revision"].as_i64() > Some(0), "{late}");
    change("*", 40).await.expect(200);
    change("latest", 50).await.expect(400);
    assert_eq!(
        olga.get(SETTINGS).await.expect(200).json()["limits"]["batch_items"],
        40
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn events_bear_what_was_in_force_when_they_were_appended() {
    let tenant = tenant("stamped");
    let (olga, deployment) = (operator(&tenant), deployment());
    let asha = Phone::new(deployment, &tenant, "asha");
    let ids: Vec<Uuid> = (0..4).map(|_| Uuid::new_v4()).collect();
    let post = async |at: usize, device_type: Option<&str>| {
        let item = json!({"mobile_id": ids[at], "ticketdesc": "Pump 3 is leaking oil"});
        let mut batch = json!({"client_id": "phone-1", "entries": [item]});
        if let Some(kind) = device_type {
            batch["device_type"] = kind.into();
        }
        asha.send_batch("helpdesk", &[("prefer", "wait=30")], batch.to_string())
            .await
            .expect(200);
    };
    post(0, Some("phone")).await;
    let on = json!({"domains": {"helpdesk": {"policy": "merge"}}, "device_priority": {"enabled": true, "phone": 120}});
    set(&olga, Method::PUT, on).await.expect(200);
    post(1, Some("phone")).await;
    post(2, None).await;
    set(
        &olga,
        Method::PATCH,
        json!({"domains": {"helpdesk": {"auto_resolve": false}}}),
    )
    .await
    .expect(200);
    post(3, Some("desktop")).await;

    let stamp = |at: usize| {
        let event = event(deployment, "sync.helpdesk.v1", ids[at]);
        let kind = event
            .header_names()
            .contains(&"ce_devicetype")
            .then(|| event.header("ce_devicetype").to_owned());
        (event.header("ce_policy").to_owned(), kind)
    };
    assert_eq!(
        stamp(0),
        ("preserve_escalation".into(), None),
        "history stays as it was"
    );
    assert_eq!(stamp(1), ("merge".into(), Some("phone/120".into())));
    assert_eq!(stamp(2), ("merge".into(), Some("other/50".into())));
    assert_eq!(stamp(3), ("manual".into(), Some("desktop/100".into())));
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_the_tenants_own() {
    let tenant = tenant("limits");
    let (olga, asha) = (operator(&tenant), Phone::new(deployment(), &tenant, "asha"));
    let other = Phone::new(deployment(), &crate::support::phone::tenant("free"), "asha");
    let limits = json!({"limits": {"batch_items": 3, "item_bytes": 2000, "key_hours": 2}});
    set(&olga, Method::PUT, limits).await.expect(200);

    let many = asha.post("helpdesk", &tickets(4)).await.expect(413).json();
    assert!(
        many["detail"].as_str().expect("a detail").contains("at most 3"),
        "{many}"
    );
    other.post("helpdesk", &tickets(4)).await.expect(200);
    let large = json!({"mobile_id": Uuid::new_v4(), "ticketdesc": "Pump 3 is leaking oil", "comments": "x".repeat(3000)});
    let told = asha
        .post("helpdesk", &[large.to_string()])
        .await
        .expect(200)
        .json();
    assert_eq!(told["errors"][0]["error_code"], "TOO_LARGE", "{told}");
    asha.post_keyed("helpdesk", "a-key-of-its-own-1", &tickets(1))
        .await
        .expect(200);
    let db = deployment().db().await;
    let hours = db
        .count(
            "SELECT extract(epoch FROM expires_at - created_at)::bigint / 3600 FROM idempotency_records
              WHERE tenant_id = $1 AND key = 'a-key-of-its-own-1'",
            &[&tenant],
        )
        .await;
    assert_eq!(hours, 2);
}

/// Two gateways; the second has no Postgres, and was there before the change or comes after it.
#[tokio::test(flavor = "multi_thread")]
async fn every_gateway_learns_of_it_from_the_log_alone() {
    let first = deployment();
    let mut second = first
        .clone()
        .with("TIDELOG_DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing");
    second.port = Deployment::new("settings-second").port;
    let second = second.with("TIDELOG_LISTEN", String::new());
    let listen = format!("127.0.0.1:{}", second.port);
    let second = second.with("TIDELOG_LISTEN", listen);
    let process = second.start_listening("ingest", "/readyz");

    let tenant = tenant("second");
    let olga = operator(&tenant);
    set(
        &olga,
        Method::PUT,
        json!({"domains": {"helpdesk": {"policy": "client_wins"}}}),
    )
    .await
    .expect(200);
    let there = Phone::of(&second, &tenant, "olga", "desk-1", Role::Operator);
    eventually("the other gateway knows", async || {
        let told = there.get(SETTINGS).await.expect(200).json();
        (told["domains"]["helpdesk"]["policy"] == "client_wins").then_some(())
    })
    .await;
    assert_eq!(process.terminate(), 0);
    let process = second.start_listening("ingest", "/readyz");
    let asha = Phone::new(&second, &tenant, "asha");
    let id = Uuid::new_v4();
    let item = json!({"mobile_id": id, "ticketdesc": "Pump 3 is leaking oil"}).to_string();
    asha.send_batch("helpdesk", &[("prefer", "wait=0")], asha.batch(&[item]))
        .await
        .expect(202);
    let event = event(first, "sync.helpdesk.v1", id);
    assert_eq!(
        event.header("ce_policy"),
        "client_wins",
        "at its first batch after a start"
    );
    assert_eq!(process.terminate(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sets_them_from_the_command_line() {
    let (deployment, tenant) = (deployment(), tenant("command"));
    let nothing = deployment.run(&["tenant", "show", "--tenant", &tenant]).ok();
    assert!(
        nothing.contains("has set nothing") && nothing.contains("preserve_escalation"),
        "{nothing}"
    );
    let set = |args: &[&str]| {
        let all = [&["tenant", "set", "--tenant", &tenant, "--output", "json"], args].concat();
        deployment.run(&all)
    };
    set(&[
        "--domain",
        "helpdesk",
        "--policy",
        "merge",
        "--auto-resolve",
        "false",
    ])
    .ok();
    let args = [
        "--device-priority",
        "true",
        "--priority",
        "phone=120",
        "--limit",
        "batch_items=5",
        "--as",
        "otto",
    ];
    let shown = set(&args).json();
    let expected = json!({"domains": {"helpdesk": {"policy": "merge", "auto_resolve": false}},
        "device_priority": {"enabled": true, "phone": 120}, "limits": {"batch_items": 5}});
    assert_eq!(
        (&shown["settings"], &shown["updated_by"]),
        (&expected, &json!("otto")),
        "{shown}"
    );
    // The gateway knows it too.
    let olga = operator(&tenant);
    eventually("the gateway knows", async || {
        let told = olga.get(SETTINGS).await.expect(200).json();
        (told["limits"]["batch_items"] == 5).then_some(())
    })
    .await;
    let list = deployment.run(&["tenant", "list"]).ok();
    let line = list.lines().find(|line| line.starts_with(&tenant));
    assert!(line.is_some_and(|line| line.ends_with('Z')), "{list}");

    let wrong = set(&["--domain", "nowhere", "--policy", "merge"]);
    assert!(
        wrong.code == 2 && wrong.stderr.contains("domains.nowhere: is no domain here"),
        "{wrong:?}"
    );
    assert_eq!(set(&["--policy", "merge"]).code, 2, "which domain?");
    assert_eq!(set(&["--domain", "helpdesk", "--policy", "fastest"]).code, 2);
    let none = set(&[]);
    assert!(
        none.code == 2 && none.stderr.contains("nothing to set"),
        "{none:?}"
    );
    let trial = set(&["--limit", "batch_items=7", "--dry-run"]).json();
    assert_eq!(
        (&trial["dry_run"], &trial["settings"]["limits"]["batch_items"]),
        (&json!(true), &json!(7)),
        "{trial}"
    );

    let reset = |args: &[&str]| deployment.run(&[&["tenant", "reset", "--tenant", &tenant], args].concat());
    let shown = || {
        deployment
            .run(&["tenant", "show", "--tenant", &tenant, "--output", "json"])
            .json()
    };
    let asked = reset(&[]);
    assert!(
        asked.code == 2 && asked.stderr.contains("give --yes. Nothing was done"),
        "{asked:?}"
    );
    reset(&["--dry-run"]).ok();
    assert_eq!(
        shown()["settings"],
        expected,
        "neither the trial nor the refusal took anything"
    );
    reset(&["--yes"]).ok();
    assert_eq!(shown()["settings"], json!({}));
    // Where nothing is set there is nothing to ask about.
    reset(&[]).ok();

    let rows = deployment
        .run(&["audit", "--limit", "1000", "--output", "json"])
        .json();
    let rows: Vec<&Value> = rows["rows"]
        .as_array()
        .expect("rows")
        .iter()
        .filter(|row| row["arguments"]["tenant"] == tenant)
        .collect();
    let told: Vec<_> = rows
        .iter()
        .map(|row| {
            let text = |name: &str| row[name].as_str().expect("text");
            (text("command"), text("result"), row["dry_run"] == true)
        })
        .collect();
    let expected_rows = [
        ("tenant reset", "done", false),
        ("tenant reset", "done", false),
        ("tenant reset", "done", true),
        ("tenant reset", "refused", false),
        ("tenant set", "done", true),
        ("tenant set", "failed", false),
        ("tenant set", "done", false),
        ("tenant set", "done", false),
    ];
    assert_eq!(told, expected_rows, "the latest first");
    assert_eq!(
        rows[1]["detail"]["before"], expected,
        "what was taken back is kept"
    );
    assert_eq!(
        (
            &rows[6]["who"],
            &rows[6]["arguments"]["patch"]["limits"]["batch_items"]
        ),
        (&json!("otto"), &json!(5))
    );
}
