//! One bad item harms itself alone: it is reported with index, identity, code, field and rule, and what stands beside
//! it in the batch goes through.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::items::{ticket, tickets};
use crate::support::phone::{Phone, tenant};
use crate::support::service::{Deployment, Service};

static SERVICE: OnceLock<Service> = OnceLock::new();

fn deployment() -> &'static Deployment {
    &Service::shared(&SERVICE, "bad-items").deployment
}

fn phone_of(name: &str) -> Phone {
    Phone::new(deployment(), &tenant(name), "asha")
}

/// What is wrong, where it is posted, the item (`ID` becomes a UUID), and code, field and rule of its error.
type Case = (
    &'static str,
    &'static str,
    String,
    &'static str,
    &'static str,
    &'static str,
);

fn cases() -> Vec<Case> {
    let ticket =
        |members: &str| format!(r#"{{"mobile_id":"ID","ticketdesc":"A ticket with a flaw",{members}}}"#);
    let case = |name, domain, item: &str, field, rule| {
        (name, domain, item.to_owned(), "VALIDATION_ERROR", field, rule)
    };
    let flaw = |name, members: &str, field, rule| {
        (name, "helpdesk", ticket(members), "VALIDATION_ERROR", field, rule)
    };
    let deep = format!(r#""comments":{}{}"#, "[".repeat(1000), "]".repeat(1000));
    let deep_unknown = format!(r#""x":{}1{}"#, r#"{"a":"#.repeat(1000), "}".repeat(1000));
    let huge = |size| format!(r#""comments":"{}""#, "x".repeat(size));
    let entry = r#""entry_type":"gratitude","timestamp":"2026-03-01T10:00:00Z""#;
    vec![
        case(
            "no mobile_id",
            "helpdesk",
            r#"{"ticketdesc":"A ticket without identity"}"#,
            "mobile_id",
            "required",
        ),
        case(
            "mobile_id null",
            "helpdesk",
            r#"{"mobile_id":null,"ticketdesc":"A ticket without identity"}"#,
            "mobile_id",
            "required",
        ),
        case(
            "mobile_id no UUID",
            "helpdesk",
            r#"{"mobile_id":"4711","ticketdesc":"A ticket of an old system"}"#,
            "mobile_id",
            "uuid",
        ),
        case(
            "mobile_id a number",
            "helpdesk",
            r#"{"mobile_id":4711,"ticketdesc":"A ticket of an old system"}"#,
            "mobile_id",
            "type",
        ),
        case("no object", "helpdesk", "17", "", "object"),
        case("a list", "helpdesk", "[]", "", "object"),
        case("null", "helpdesk", "null", "", "object"),
        flaw("wrong type", r#""comments":7"#, "comments", "type"),
        flaw(
            "an object for a string",
            r#""comments":{"a":1}"#,
            "comments",
            "type",
        ),
        flaw("unknown enum", r#""priority":"URGENT""#, "priority", "enum"),
        flaw("unknown status", r#""status":"WAITING""#, "status", "enum"),
        flaw(
            "unknown sync_status",
            r#""sync_status":"lost""#,
            "sync_status",
            "enum",
        ),
        flaw("status cleared", r#""status":null"#, "status", "required"),
        flaw(
            "no date",
            r#""escalated_at":"yesterday""#,
            "escalated_at",
            "rfc3339",
        ),
        flaw(
            "a day that is none",
            r#""escalated_at":"2026-02-30T10:00:00Z""#,
            "escalated_at",
            "rfc3339",
        ),
        flaw(
            "a date without time",
            r#""escalated_at":"2026-02-28""#,
            "escalated_at",
            "rfc3339",
        ),
        flaw(
            "a time without offset",
            r#""escalated_at":"2026-02-28T10:00:00""#,
            "escalated_at",
            "rfc3339",
        ),
        case(
            "a date of more digits than a time has",
            "work-orders",
            &format!(
                r#"{{"mobile_id":"ID","description":"Replace the seal","scheduled_start":"2026-03-01T10:00:00.{}Z"}}"#,
                "1".repeat(200)
            ),
            "scheduled_start",
            "rfc3339",
        ),
        flaw(
            "a date that is a number",
            r#""escalated_at":1772272800"#,
            "escalated_at",
            "type",
        ),
        flaw(
            "bad client_timestamp",
            r#""client_timestamp":"now""#,
            "client_timestamp",
            "rfc3339",
        ),
        flaw("bad updated_at", r#""updated_at":"""#, "updated_at", "rfc3339"),
        flaw(
            "bad last_sync_timestamp",
            r#""last_sync_timestamp":"2026-13-01T00:00:00Z""#,
            "last_sync_timestamp",
            "rfc3339",
        ),
        flaw("U+0000", r#""comments":"a\u0000b""#, "comments", "no_nul"),
        flaw("U+0000 deep inside", r#""x":[{"y":"\u0000"}]"#, "x", "no_nul"),
        flaw("U+0000 in a name", r#""x":{"\u0000":1}"#, "x", "no_nul"),
        flaw(
            "a lone surrogate",
            r#""comments":"a\ud800b""#,
            "comments",
            "unicode",
        ),
        flaw(
            "a lone low surrogate",
            r#""comments":"\udc00""#,
            "comments",
            "unicode",
        ),
        flaw(
            "surrogates in the wrong order",
            r#""x":["\udc00\ud83d"]"#,
            "x",
            "unicode",
        ),
        flaw(
            "a double that overflows",
            r#""escalation_level":1e400"#,
            "escalation_level",
            "number_range",
        ),
        flaw(
            "an integer of thirty digits",
            r#""escalation_level":123456789012345678901234567890"#,
            "escalation_level",
            "number_range",
        ),
        flaw(
            "such a number in an unknown field",
            r#""x":{"y":[-1e999]}"#,
            "x",
            "number_range",
        ),
        flaw(
            "beyond 64 bits",
            r#""escalation_level":9223372036854775808"#,
            "escalation_level",
            "integer",
        ),
        flaw(
            "a fraction",
            r#""escalation_level":1.5"#,
            "escalation_level",
            "integer",
        ),
        flaw("negative", r#""escalation_level":-1"#, "escalation_level", "min"),
        flaw("a negative id", r#""bu":-4"#, "bu", "id"),
        flaw(
            "an id of 65 characters",
            &format!(r#""bu":"{}""#, "b".repeat(65)),
            "bu",
            "id",
        ),
        flaw("nested 1000 deep", &deep, "comments", "max_nesting"),
        flaw(
            "nested 1000 deep in an unknown field",
            &deep_unknown,
            "x",
            "max_nesting",
        ),
        flaw("a negative version", r#""version":-1"#, "version", "min"),
        flaw("a version of text", r#""version":"1""#, "version", "min"),
        flaw("a version with a fraction", r#""version":1.5"#, "version", "min"),
        (
            "a version that no server gave",
            "helpdesk",
            ticket(r#""version":9007199254740992"#),
            "UNSUPPORTED_VERSION",
            "version",
            "max",
        ),
        (
            "a field of 2 MB",
            "helpdesk",
            ticket(&huge(2 << 20)),
            "TOO_LARGE",
            "comments",
            "max_size",
        ),
        (
            "an item of a little over 256 KiB",
            "helpdesk",
            ticket(&huge(256 * 1024)),
            "TOO_LARGE",
            "comments",
            "max_size",
        ),
        case(
            "too short",
            "helpdesk",
            r#"{"mobile_id":"ID","ticketdesc":"  short    "}"#,
            "ticketdesc",
            "min_length",
        ),
        case(
            "too long",
            "activity",
            &format!(r#"{{"mobile_id":"ID","jobdesc":"{}"}}"#, "ü".repeat(201)),
            "jobdesc",
            "max_length",
        ),
        case(
            "required and null",
            "activity",
            r#"{"mobile_id":"ID","jobdesc":null}"#,
            "jobdesc",
            "required",
        ),
        case(
            "a create without what is required",
            "helpdesk",
            r#"{"mobile_id":"ID","comments":"no description"}"#,
            "ticketdesc",
            "required",
        ),
        case(
            "an update of what is not there, without what is required",
            "helpdesk",
            r#"{"mobile_id":"ID","version":4,"comments":"x"}"#,
            "ticketdesc",
            "required",
        ),
        case(
            "an end before its start",
            "activity",
            r#"{"mobile_id":"ID","jobdesc":"Backwards","plandatetime":"2026-03-02T00:00:00Z","expirydatetime":"2026-03-01T00:00:00Z"}"#,
            "expirydatetime",
            "order",
        ),
        case(
            "the other way about by offset",
            "work-orders",
            r#"{"mobile_id":"ID","description":"Backwards","scheduled_start":"2026-03-01T10:00:00+01:00","scheduled_end":"2026-03-01T10:00:00+02:00"}"#,
            "scheduled_end",
            "order",
        ),
        case(
            "off the earth",
            "attendance",
            r#"{"mobile_id":"ID","deviceid":"phone-1","gpslocation":{"type":"Point","coordinates":[200,10]}}"#,
            "gpslocation",
            "geojson_point",
        ),
        case(
            "a list for a point",
            "attendance",
            r#"{"mobile_id":"ID","deviceid":"phone-1","gpslocation":["Point",[1,2]]}"#,
            "gpslocation",
            "geojson_point",
        ),
        case(
            "no point",
            "attendance",
            r#"{"mobile_id":"ID","deviceid":"phone-1","gpslocation":"somewhere"}"#,
            "gpslocation",
            "geojson_point",
        ),
        case(
            "a mood of eleven",
            "journal",
            &format!(r#"{{"mobile_id":"ID",{entry},"mood_rating":11}}"#),
            "mood_rating",
            "max",
        ),
        case(
            "a list of other things",
            "journal",
            &format!(r#"{{"mobile_id":"ID",{entry},"tags":["a",1]}}"#),
            "tags",
            "strings",
        ),
        case(
            "a flag of text",
            "journal",
            &format!(r#"{{"mobile_id":"ID",{entry},"is_draft":"yes"}}"#),
            "is_draft",
            "boolean",
        ),
        case(
            "a title of 201",
            "journal",
            &format!(r#"{{"mobile_id":"ID",{entry},"title":"{}"}}"#, "t".repeat(201)),
            "title",
            "max_length",
        ),
        case(
            "a child without its parent",
            "journal-media",
            r#"{"mobile_id":"ID","media_type":"PHOTO","original_filename":"a.jpg","mime_type":"image/jpeg"}"#,
            "journal_entry",
            "required",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_item_is_told_and_its_neighbours_go_through() {
    let mut wrong = Vec::new();
    for (name, domain, item, code, field, rule) in cases() {
        let phone = phone_of("flaw");
        let good = |n: usize| good_item(domain, n);
        let id = Uuid::new_v4().to_string();
        let entries = [good(0), item.replace("ID", &id), good(1)];
        let answer = phone.post(domain, &entries).await.expect(200).json();
        let error = &answer["errors"][0];
        let told = [&error["error_code"], &error["field"], &error["rule"]].map(|v| v.as_str().unwrap_or("-"));
        let expected_id = if item.contains("ID") {
            json!(id)
        } else {
            error["mobile_id"].clone()
        };
        let all = (
            &error["index"],
            &error["mobile_id"],
            error["error_message"].as_str().is_some_and(|m| !m.is_empty()),
        );
        if told != [code, field, rule] || all != (&json!(1), &expected_id, true) {
            wrong.push(format!("{name}: {error}"));
        }
        let synced: Vec<&Value> = answer["synced_items"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|e| &e["index"])
            .collect();
        if synced != [&json!(0), &json!(2)] || answer["errors"].as_array().map(Vec::len) != Some(1) {
            wrong.push(format!("{name}: the others: {}", answer["synced_items"]));
        }
        if phone.pull(domain, "limit=100").await.len() != 2 {
            wrong.push(format!("{name}: the feed does not hold the two good ones"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn good_item(domain: &str, n: usize) -> String {
    (crate::support::items::Known::of(domain).item)(n).text
}

#[tokio::test(flavor = "multi_thread")]
async fn telemetry_counts_what_it_refuses() {
    let phone = phone_of("telemetry");
    for (domain, good, bad, id, field) in [
        (
            "voice",
            r#"{"verification_id":"v1","timestamp":"2026-03-01T10:00:00Z","verified":true}"#,
            r#"{"verification_id":"v2","timestamp":"2999-03-01T10:00:00Z","verified":true}"#,
            json!("v2"),
            "timestamp",
        ),
        (
            "voice",
            r#"{"verification_id":"v3","timestamp":"2026-03-01T10:00:00Z","verified":true}"#,
            r#"{"verification_id":"v4","timestamp":"2026-03-01T10:00:00Z"}"#,
            json!("v4"),
            "verified",
        ),
        (
            "voice",
            r#"{"verification_id":"v5","timestamp":"2026-03-01T10:00:00Z","verified":true}"#,
            r#"{"verification_id":"v6","timestamp":"2026-03-01T10:00:00Z","verified":true,"quality_score":1.01}"#,
            json!("v6"),
            "quality_score",
        ),
        (
            "behavioral",
            r#"{"id":1,"timestamp":"2026-03-01T10:00:00Z"}"#,
            r#"{"timestamp":"2026-03-01T10:00:00Z"}"#,
            json!(null),
            "event_id",
        ),
        (
            "sessions",
            r#"{"session_id":"s","duration_ms":0}"#,
            r#"{"session_id":"t","duration_ms":-1}"#,
            json!("t"),
            "duration_ms",
        ),
        (
            "metrics",
            r#"{"metric_name":"m","value":1}"#,
            r#"{"metric_name":"n","value":"1"}"#,
            json!("n"),
            "value",
        ),
    ] {
        let answer = phone.post(domain, &[good, bad]).await.expect(200).json();
        assert_eq!(
            (&answer["synced_items"], &answer["failed_items"]),
            (&1.into(), &1.into()),
            "{domain}: {answer}"
        );
        let error = &answer["errors"][0];
        assert_eq!(
            (&error["index"], &error["item_id"], &error["field"]),
            (&1.into(), &id, &field.into()),
            "{domain}: {answer}"
        );
        assert!(
            error["error"].as_str().is_some_and(|text| !text.is_empty()),
            "{answer}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_the_state_machine_does_not_know_is_refused() {
    let phone = phone_of("steps");
    let id = Uuid::new_v4();
    phone
        .apply("helpdesk", ticket(id, "A ticket that is closed too soon"))
        .await;
    let answer = phone
        .post(
            "helpdesk",
            &[json!({"mobile_id": id, "version": 1, "status": "closed"}).to_string()],
        )
        .await;
    let error = &answer.expect(200).json()["errors"][0];
    assert_eq!(
        (&error["error_code"], &error["field"]),
        (&"INVALID_TRANSITION".into(), &"status".into()),
        "{error}"
    );
    assert_eq!(
        (&error["from"], &error["to"], &error["allowed"]),
        (&"NEW".into(), &"CLOSED".into(), &json!(["OPEN"])),
        "{error}"
    );
    phone
        .apply(
            "helpdesk",
            json!({"mobile_id": id, "version": 1, "status": "open"}),
        )
        .await;
    let record = phone.record("helpdesk", &id.to_string()).await.expect(200).json();
    assert_eq!(
        record["status"], "OPEN",
        "any letter case is taken, and stored in upper case"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_version_is_a_conflict_that_is_kept() {
    let phone = phone_of("stale");
    let other = Phone::of(
        deployment(),
        &phone.tenant,
        "ben",
        "phone-2",
        tidelog_http::auth::Role::User,
    );
    let id = Uuid::new_v4();
    phone
        .apply("helpdesk", ticket(id, "A ticket that two people edit"))
        .await;
    other
        .apply(
            "helpdesk",
            json!({"mobile_id": id, "version": 1, "comments": "theirs", "status": "OPEN"}),
        )
        .await;
    let answer = phone
        .post(
            "helpdesk",
            &[json!({"mobile_id": id, "version": 1, "comments": "mine", "status": "NEW"}).to_string()],
        )
        .await;
    let conflict = &answer.expect(200).json()["conflicts"][0];
    assert_eq!(
        (&conflict["status"], &conflict["mobile_id"]),
        (&"conflict".into(), &json!(id)),
        "{conflict}"
    );
    assert_eq!(
        (&conflict["server_version"], &conflict["client_version"]),
        (&3.into(), &1.into()),
        "{conflict}"
    );
    assert_eq!(
        (&conflict["resolution"], &conflict["winner"]),
        (&"preserve_escalation".into(), &"merged".into()),
        "{conflict}"
    );
    let db = deployment().db().await;
    let kept = db
        .objects("SELECT * FROM conflicts WHERE tenant_id = $1", &[&phone.tenant])
        .await;
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0]["conflict_id"], conflict["conflict_id"]);
    assert_eq!(
        (
            &kept[0]["client_doc"]["comments"],
            &kept[0]["server_doc"]["comments"]
        ),
        (&"mine".into(), &"theirs".into())
    );
    assert_eq!(kept[0]["kept"], json!({"comments": "client", "status": "server"}));
    let record = phone.record("helpdesk", &id.to_string()).await.expect(200).json();
    assert_eq!(
        (&record["comments"], &record["status"], &record["version"]),
        (&"mine".into(), &"OPEN".into(), &3.into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_record_is_forbidden_without_a_word_about_it() {
    let phone = phone_of("foreign");
    let other = Phone::of(
        deployment(),
        &phone.tenant,
        "ben",
        "phone-2",
        tidelog_http::auth::Role::User,
    );
    let id = Uuid::new_v4();
    let row = json!({"mobile_id": id, "deviceid": "phone-1", "gpslocation": {"type": "Point", "coordinates": [1, 2]}});
    phone.apply("attendance", row).await;
    for item in [
        json!({"mobile_id": id, "version": 1, "reference": "not mine"}),
        json!({"mobile_id": id, "version": 0, "deviceid": "phone-2", "gpslocation": {"type": "Point", "coordinates": [1, 2]}}),
        json!({"mobile_id": id, "version": 1, "sync_status": "pending_delete"}),
    ] {
        let answer = other
            .post("attendance", &[item.to_string()])
            .await
            .expect(200)
            .json();
        let error = &answer["errors"][0];
        assert_eq!(error["error_code"], "FORBIDDEN", "{answer}");
        assert!(
            error.get("server_version").is_none() && error.get("version").is_none(),
            "{answer}"
        );
    }
    let record = phone
        .record("attendance", &id.to_string())
        .await
        .expect(200)
        .json();
    assert_eq!((&record["version"], &record.get("reference")), (&1.into(), &None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_items_of_which_every_tenth_is_bad() {
    let phone = phone_of("thousand");
    let mut entries = tickets(1000);
    for at in (0..1000).step_by(10) {
        entries[at] = json!({"mobile_id": Uuid::new_v4(), "ticketdesc": "short"}).to_string();
    }
    let answer = phone.post("helpdesk", &entries).await.expect(200).json();
    let indexes = |list: &str| -> BTreeSet<u64> {
        answer[list]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|entry| entry["index"].as_u64())
            .collect()
    };
    assert_eq!(indexes("errors"), (0..1000).step_by(10).collect());
    assert_eq!(
        indexes("synced_items"),
        (0..1000).filter(|n| n % 10 != 0).collect()
    );
    assert_eq!(phone.pull("helpdesk", "limit=1000").await.len(), 900);
}
