//! An analyst has every event in exactly one file, with what became of it, in whichever format; and an export that was
//! stopped, killed or started too early ends with the very files that an undisturbed one makes.

use std::path::Path;
use std::sync::OnceLock;

mod events;
mod killed;
mod read_back;

use chrono::{DateTime, NaiveDate, Utc};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use self::events::{appended, at, day, every_outcome, stamped};
use self::read_back::{csv_rows, files, folder, is_of, json_rows, names, parquet_rows};
use crate::support::items::Known;
use crate::support::kafka::{Stamped, produce, produce_stamped, read_topic};
use crate::support::phone::{Phone, tenant};
use crate::support::service::{Deployment, Ran, Service};

static SERVICE: OnceLock<Service> = OnceLock::new();

/// The tests share a service and keep to a domain each, since an export is about a topic.
fn deployment() -> &'static Deployment {
    &Service::shared(&SERVICE, "exporting").deployment
}

fn export(deployment: &Deployment, domain: &str, into: &Path, args: &[&str]) -> Ran {
    let into = into.display().to_string();
    let all = ["export", "--domain", domain, "--into", &into];
    deployment.run(&[&all, args].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_is_a_row_with_what_became_of_it_in_each_format() {
    let deployment = deployment();
    let tenant = every_outcome(deployment).await;
    let into = folder(deployment, "told");
    let of = |format: &str| into.join(format);
    for format in ["parquet", "jsonl", "csv"] {
        let ran = export(
            deployment,
            "helpdesk",
            &of(format),
            &["--format", format, "--include-today", "--output", "json"],
        );
        let told = ran.json();
        assert_eq!(
            (&told["events"], &told["behind"]),
            (&json!(14), &json!([])),
            "{told}"
        );
    }
    let rows = json_rows(&of("jsonl"), "helpdesk");
    let log = read_topic(&deployment.brokers, &deployment.topic("sync.helpdesk.v1"));
    assert_eq!(rows.len(), log.len());
    rows.iter().zip(&log).for_each(|(row, record)| is_of(row, record));
    let mut outcomes: Vec<&str> = rows.iter().filter_map(|row| row["outcome"].as_str()).collect();
    outcomes.sort_unstable();
    assert_eq!(
        outcomes,
        [
            "applied",
            "applied",
            "applied",
            "applied",
            "applied",
            "applied",
            "conflict",
            "conflict",
            "dead_letter",
            "dead_letter",
            "duplicate",
            "no_effect",
            "refused",
            "resolved"
        ],
        "{rows:?}"
    );
    let one = |what: &str, value: &str| -> &Map<String, Value> {
        rows.iter()
            .find(|row| row[what] == value)
            .unwrap_or_else(|| panic!("no {what} {value}"))
    };
    let refused = one("outcome", "refused");
    assert_eq!(
        (&refused["error_code"], &refused["error_field"], &refused["user"]),
        (
            &json!("INVALID_TRANSITION"),
            &json!("status"),
            &json!("=HYPERLINK(\"x\")")
        )
    );
    assert_eq!(one("outcome", "duplicate")["first_outcome"], "applied");
    let conflict = one("conflict_policy", "preserve_escalation");
    assert_eq!(
        (
            &conflict["conflict_winner"],
            &conflict["version"],
            &conflict["conflict_client_version"]
        ),
        (&json!("merged"), &json!(3), &json!(1))
    );
    let waited = one("conflict_policy", "manual");
    assert_eq!(waited["conflict_winner"], "none");
    let resolved = one("outcome", "resolved");
    assert_eq!(
        (
            &resolved["resolution"],
            &resolved["conflict_id"],
            &resolved["role"]
        ),
        (
            &json!("client_wins"),
            &waited["conflict_id"],
            &json!("supervisor")
        )
    );
    let update = one("field_status", "OPEN");
    assert_eq!(
        (
            &update["field_escalation_level"],
            &update["operation"],
            &update["tenant"]
        ),
        (&json!(2), &json!("update"), &json!(tenant))
    );
    let garbage = one("payload", "=no event");
    assert_eq!(
        (&garbage["reason"], &garbage["tenant"]),
        (&json!("the header ce_specversion is missing"), &Value::Null)
    );
    assert_eq!(one("payload", "[1, 2]")["tenant"], tenant);

    // The same in every format.
    assert_eq!(parquet_rows(&of("parquet"), "helpdesk"), rows);
    let texts = csv_rows(&of("csv"), "helpdesk");
    assert_eq!(texts.len(), rows.len());
    for (text, row) in texts.iter().zip(&rows) {
        assert_eq!(text.len(), row.len());
        for (name, cell) in text {
            let expected = match &row[name] {
                Value::Null => None,
                Value::String(text) => Some(text.clone()),
                other => Some(other.to_string()),
            };
            assert_eq!(*cell, expected, "{name}");
        }
    }
    let audit = deployment.run(&["audit", "--output", "json"]).json();
    let export = audit["rows"]
        .as_array()
        .expect("rows")
        .iter()
        .find(|row| row["command"] == "export" && row["arguments"]["into"] == json!(of("csv")));
    assert_eq!(export.expect("a row")["detail"]["events"], 14, "{audit}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_counts_to_one_day_and_a_day_that_is_not_over_is_written_again() {
    let deployment = deployment();
    let (known, mine) = (Known::of("activity"), tenant("days"));
    let topic = deployment.topic(known.topic);
    let (first, second) = (day(2), day(1));
    let event = |at: DateTime<Utc>| appended(known, &mine, 0, at);
    let into = folder(deployment, "days");
    let file = |day: NaiveDate| format!("date={day}/partition=0000.jsonl");
    let run = |into: &Path, args: &[&str]| {
        let all = [&["--format", "jsonl", "--output", "json"], args].concat();
        export(deployment, "activity", into, &all).json()
    };
    let offsets = |day: NaiveDate| -> Vec<i64> {
        let text = String::from_utf8(files(&into, "activity")[&file(day)].clone()).expect("UTF-8");
        let row = |line: &str| serde_json::from_str::<Value>(line).expect("JSON")["offset"].as_i64();
        text.lines().filter_map(row).collect()
    };
    // The third steps back over midnight.
    produce_stamped(
        &deployment.brokers,
        &topic,
        &[
            event(at(first, "23:59:59.900")),
            event(at(second, "00:00:00.100")),
            event(at(first, "23:59:59.950")),
            event(at(second, "10:00:00")),
        ],
    )
    .await;
    let told = run(&into, &["--dry-run"]);
    assert_eq!(told["events"], 4, "{told}");
    assert!(!into.exists(), "a trial makes nothing");
    let told = run(&into, &[]);
    assert_eq!(
        told["files"]
            .as_array()
            .expect("files")
            .iter()
            .map(|file| &file["open"])
            .collect::<Vec<_>>(),
        [&json!(false), &json!(true)],
        "{told}"
    );
    assert_eq!((offsets(first), offsets(second)), (vec![0], vec![1, 2, 3]));
    assert_eq!(run(&into, &[])["files"], json!([]), "nothing is new");

    // More for the last day, and one of today, which is not over.
    produce_stamped(
        &deployment.brokers,
        &topic,
        &[
            event(at(second, "11:00:00")),
            event(Utc::now()),
            event(at(first, "01:00:00")),
        ],
    )
    .await;
    let told = run(&into, &[]);
    assert_eq!(
        (&told["events"], &told["files"][0]["first_offset"]),
        (&json!(4), &json!(1))
    );
    assert_eq!(told["of_today"], 2, "what is left is said: {told}");
    let nothing = export(deployment, "activity", &into, &["--format", "jsonl"]).ok();
    assert!(
        nothing.contains("nothing new")
            && nothing.contains("2 events")
            && nothing.contains("--include-today"),
        "{nothing}"
    );
    assert_eq!(offsets(second), [1, 2, 3, 4]);
    assert_eq!(names(&into, "activity"), [file(first), file(second)]);
    let before = files(&into, "activity");
    run(&into, &["--include-today"]);
    // However late, a time that steps back counts to the day that the log has come to; and a day that is over stays.
    assert_eq!(offsets(day(0)), [5, 6]);
    let after = files(&into, "activity");
    assert!(before.iter().all(|(name, bytes)| after[name] == *bytes));

    // However many runs it took, the files are those of a single one.
    let whole = folder(deployment, "days");
    run(&whole, &["--include-today"]);
    assert_eq!(files(&whole, "activity"), after);
    // And of a range by offsets or times.
    let part = folder(deployment, "days");
    let told = run(&part, &["--from", "1", "--to", "4", "--partition", "0"]);
    assert_eq!(
        (&told["events"], &told["files"][0]["file"]),
        (&json!(3), &json!(file(second)))
    );
    let part = folder(deployment, "days");
    let midnight = at(second, "00:00:00").to_rfc3339();
    run(&part, &["--from", &midnight]);
    assert_eq!(files(&part, "activity")[&file(second)], before[&file(second)]);
    assert_eq!(names(&part, "activity"), [file(second)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_export_has_nothing_of_anothers() {
    let deployment = deployment();
    let (mine, other) = (tenant("mine"), tenant("other"));
    let known = Known::of("attendance");
    for tenant in [&mine, &other] {
        let items: Vec<String> = (1..4).map(|n| (known.item)(n).text).collect();
        let phone = Phone::new(deployment, tenant, "asha");
        phone.post("attendance", &items).await.expect(200);
    }
    let topic = deployment.topic(known.topic);
    produce(&deployment.brokers, &topic, "key", &[], "nobody's");
    let headers = stamped(&mine, Uuid::new_v4(), known.table);
    let broken: Vec<(&str, &str)> = headers
        .iter()
        .filter(|(name, _)| name != "ce_time")
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    produce(&deployment.brokers, &topic, "key", &broken, "mine, though broken");
    let into = folder(deployment, "tenant");
    let args = ["--format", "jsonl", "--include-today"];
    export(
        deployment,
        "attendance",
        &into,
        &[&args[..], &["--tenant", &mine]].concat(),
    )
    .ok();
    let rows = json_rows(&into, "attendance");
    assert_eq!(rows.len(), 4, "{rows:?}");
    assert!(rows.iter().all(|row| row["tenant"] == mine), "{rows:?}");
    let letter = rows
        .iter()
        .find(|row| row["outcome"] == "dead_letter")
        .expect("a letter");
    assert_eq!(letter["reason"], "the header ce_time is missing");
    let ran = export(
        deployment,
        "attendance",
        &into,
        &[&args[..], &["--tenant", &other]].concat(),
    );
    assert!(
        ran.code == 1 && ran.stderr.contains("another tenant"),
        "one folder would be both tenants': {ran:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_domains_on_one_topic_are_two_exports() {
    let deployment = deployment();
    let phone = Phone::new(deployment, &tenant("topic"), "asha");
    let entry = (Known::of("journal").item)(1);
    phone.post("journal", &[&entry.text]).await.expect(200);
    let media = (Known::of("journal-media").item)(1).text;
    let media = media.replace(
        (Known::of("journal-media").item)(1)
            .parent
            .as_deref()
            .unwrap_or_default(),
        &entry.identity[0],
    );
    phone.post("journal-media", &[media]).await.expect(200);
    let into = folder(deployment, "topic");
    for domain in ["journal", "journal-media"] {
        export(
            deployment,
            domain,
            &into,
            &["--format", "jsonl", "--include-today"],
        )
        .ok();
        let rows = json_rows(&into, domain);
        assert_eq!(rows.len(), 1, "{rows:?}");
        assert_eq!(rows[0]["domain"], domain);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_projection_has_not_come_to_is_left_or_written_again() {
    let deployment = Deployment::new("export-pending");
    deployment.prepare();
    let known = Known::of("activity");
    let mine = tenant("pending");
    let topic = deployment.topic(known.topic);
    let records = |ago: u64| -> Vec<Stamped> {
        (0..6)
            .map(|n| appended(known, &mine, n % 2, at(day(ago), "10:00:00")))
            .collect()
    };
    produce_stamped(&deployment.brokers, &topic, &records(3)).await;
    produce_stamped(&deployment.brokers, &topic, &records(2)).await;
    let (left, pending) = (folder(&deployment, "left"), folder(&deployment, "pending"));
    let args = ["--format", "jsonl", "--wait", "100ms"];
    let ran = export(&deployment, "activity", &left, &args);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(
        ran.stdout
            .contains("has not come to partition 0 from offset 0 on (6 events)"),
        "{ran:?}"
    );
    assert_eq!(names(&left, "activity"), [""; 0]);
    let all = [&args[..], &["--with-pending"]].concat();
    let ran = export(&deployment, "activity", &pending, &all);
    assert_eq!(ran.code, 3, "{ran:?}");
    let rows = json_rows(&pending, "activity");
    assert_eq!(rows.len(), 12);
    assert!(rows.iter().all(|row| row["outcome"] == "pending"), "{rows:?}");

    let mut project = deployment.start("project");
    let args = ["--format", "jsonl", "--wait", "60s"];
    for into in [&left, &pending] {
        export(&deployment, "activity", into, &args).ok();
        let rows = json_rows(into, "activity");
        assert_eq!(rows.len(), 12);
        assert!(rows.iter().all(|row| row["outcome"] == "applied"), "{rows:?}");
    }
    assert_eq!(files(&left, "activity"), files(&pending, "activity"));
    assert!(project.ended().is_none());
    // Nothing was due any more, whatever was pending once.
    let ran = export(&deployment, "activity", &pending, &args).ok();
    assert!(ran.contains("nothing new"), "{ran}");
}

#[test]
fn what_cannot_be_exported_is_told() {
    let deployment = deployment();
    let into = folder(deployment, "wrong");
    let told = |domain: &str, into: &Path, args: &[&str], code: i32, said: &str| {
        let ran = export(deployment, domain, into, args);
        assert!(ran.code == code && ran.stderr.contains(said), "{said}: {ran:?}");
    };
    told(
        "helpdesks",
        &into,
        &[],
        1,
        "there is no domain \"helpdesks\"; there are activity",
    );
    told(
        "metrics",
        &into,
        &["--partition", "9"],
        1,
        "has no partition 9: it has 3 of them",
    );
    told(
        "metrics",
        &into,
        &["--from", "yesterday"],
        2,
        "how long ago, like 7d",
    );
    told("metrics", &into, &["--format", "xml"], 2, "parquet, jsonl, csv");
    // An empty log is no error.
    let ran = export(deployment, "voice", &into, &["--include-today"]).ok();
    assert!(ran.contains("nothing new"), "{ran}");
    told(
        "voice",
        &into,
        &["--format", "csv"],
        1,
        "another format: parquet, and not csv",
    );
    told(
        "voice",
        &into,
        &["--from", "7d"],
        1,
        "another from: beginning, and not 7d",
    );
    let file = into.join("file");
    std::fs::write(&file, "").expect("a file");
    told("voice", &file, &[], 1, "give one that can be written with --into");
    let strange = into.join("strange");
    std::fs::create_dir_all(strange.join("voice/mine")).expect("a folder");
    told("voice", &strange, &[], 1, "holds mine and no _export.json");
}
