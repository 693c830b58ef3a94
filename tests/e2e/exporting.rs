//! An analyst has every event in exactly one file, with what became of it, in whichever format; and an export that was
//! stopped, killed or started too early ends with the very files that an undisturbed one makes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use chrono::{DateTime, Days, NaiveDate, NaiveTime, SecondsFormat, Utc};
use http::Method;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Map, Value, json};
use tidelog_events::batch::BatchId;
use tidelog_events::domain::Policy;
use tidelog_events::envelope::Stamp;
use tidelog_events::ids::{DeviceId, TenantId, UserId};
use tidelog_events::item::Operation;
use tidelog_http::auth::Role;
use uuid::Uuid;

use crate::support::eventually_blocking;
use crate::support::items::{Known, ticket, tickets};
use crate::support::kafka::{Record, Stamped, produce, produce_stamped, read_topic};
use crate::support::phone::{Phone, tenant};
use crate::support::service::{Deployment, PARTITIONS, Ran, Service};

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

/// A folder of a test's own.
fn folder(deployment: &Deployment, name: &str) -> PathBuf {
    deployment.dir.join(format!("{name}-{}", Uuid::new_v4().simple()))
}

/// The files of an export by their paths within the domain's folder.
fn files(into: &Path, domain: &str) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let Ok(days) = std::fs::read_dir(into.join(domain)) else {
        return files;
    };
    for day in days.map(|day| day.expect("an entry")).filter(|day| day.path().is_dir()) {
        for file in std::fs::read_dir(day.path()).expect("a day") {
            let file = file.expect("an entry");
            let name = format!(
                "{}/{}",
                day.file_name().to_string_lossy(),
                file.file_name().to_string_lossy()
            );
            // One that is being written may get its name meanwhile.
            if let Ok(bytes) = std::fs::read(file.path()) {
                files.insert(name, bytes);
            }
        }
    }
    files
}

fn names(into: &Path, domain: &str) -> Vec<String> {
    files(into, domain).into_keys().collect()
}

type Rows = Vec<Map<String, Value>>;

/// All rows, by partition and offset.
fn in_order(mut rows: Rows) -> Rows {
    rows.sort_by_key(|row| (row["partition"].as_i64(), row["offset"].as_i64()));
    rows
}

fn json_rows(into: &Path, domain: &str) -> Rows {
    let mut rows = Vec::new();
    for (name, bytes) in files(into, domain) {
        let text = String::from_utf8(bytes).expect("UTF-8");
        rows.extend(text.lines().map(|line| {
            let row: Map<String, Value> =
                serde_json::from_str(line).unwrap_or_else(|e| panic!("{name}: {e}: {line}"));
            let partition = format!("/partition={:04}.jsonl", row["partition"].as_i64().expect("one"));
            assert!(name.ends_with(&partition), "{name}: {line}");
            row
        }));
    }
    in_order(rows)
}

/// What parquet files hold, in the words of JSON lines.
fn parquet_rows(into: &Path, domain: &str) -> Rows {
    let mut rows = Vec::new();
    for (name, _) in files(into, domain) {
        let file = std::fs::File::open(into.join(domain).join(&name)).expect("a file");
        let reader = SerializedFileReader::new(file).expect("parquet");
        for row in reader.get_row_iter(None).expect("rows") {
            let row = row.expect("a row");
            let cells = row
                .get_column_iter()
                .map(|(name, field)| (name.clone(), value(field)));
            rows.push(cells.collect());
        }
    }
    in_order(rows)
}

fn value(field: &Field) -> Value {
    let time = |at: Option<DateTime<Utc>>, digits| {
        Value::from(at.expect("a time").to_rfc3339_opts(digits, true))
    };
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => json!(value),
        Field::Int(number) => json!(number),
        Field::Long(number) => json!(number),
        Field::Double(number) => json!(number),
        Field::Str(text) => json!(text),
        Field::TimestampMillis(at) => time(DateTime::from_timestamp_millis(*at), SecondsFormat::Millis),
        Field::TimestampMicros(at) => time(DateTime::from_timestamp_micros(*at), SecondsFormat::Micros),
        other => panic!("no column is of {other:?}"),
    }
}

/// What CSV files hold: an empty cell is none, and text that could be a formula has its `'` taken away.
fn csv_rows(into: &Path, domain: &str) -> Vec<Vec<(String, Option<String>)>> {
    let mut rows = Vec::new();
    for (_, bytes) in files(into, domain) {
        let mut lines = csv(&String::from_utf8(bytes).expect("UTF-8")).into_iter();
        let heading = lines.next().expect("a heading");
        for line in lines {
            assert_eq!(line.len(), heading.len(), "{line:?}");
            let names = heading.iter().map(|name| name.clone().expect("a name"));
            rows.push(names.zip(line).collect());
        }
    }
    rows.sort_by_key(|row: &Vec<(String, Option<String>)>| {
        let number = |name: &str| {
            let cell = row.iter().find(|(known, _)| known == name);
            cell.and_then(|(_, cell)| cell.as_deref()?.parse::<i64>().ok())
        };
        (number("partition"), number("offset"))
    });
    rows
}

/// RFC 4180, read as strictly as it is written.
fn csv(text: &str) -> Vec<Vec<Option<String>>> {
    let (mut rows, mut row, mut chars) = (Vec::new(), Vec::new(), text.chars().peekable());
    while chars.peek().is_some() {
        let mut cell = String::new();
        let quoted = chars.next_if_eq(&'"').is_some();
        loop {
            match chars.peek() {
                Some('"') if quoted => {
                    chars.next();
                    match chars.next_if_eq(&'"') {
                        Some(quote) => cell.push(quote),
                        None => break,
                    }
                }
                Some(',' | '\r') if !quoted => break,
                Some(_) => cell.extend(chars.next()),
                None => panic!("a file that ends in a cell: {cell}"),
            }
        }
        if cell.trim_start_matches('\'').starts_with(['=', '+', '-', '@', '\t']) {
            assert!(!quoted || cell.starts_with('\''), "a formula: {cell}");
        }
        if quoted && cell.trim_start_matches('\'').starts_with(['=', '+', '-', '@', '\t']) {
            cell.remove(0);
        }
        row.push((quoted || !cell.is_empty()).then_some(cell));
        match chars.next() {
            Some(',') => {}
            Some('\r') => {
                assert_eq!(chars.next(), Some('\n'), "a line ends in CR LF");
                rows.push(std::mem::take(&mut row));
            }
            other => panic!("{other:?} after a cell"),
        }
    }
    rows
}

/// What a row says of its record is what the log has.
fn is_of(row: &Map<String, Value>, record: &Record) {
    assert_eq!(
        (row["partition"].as_i64(), row["offset"].as_i64()),
        (Some(record.partition.into()), Some(record.offset)),
    );
    let at = DateTime::from_timestamp_millis(record.logged_at).expect("a time");
    assert_eq!(row["log_time"], at.to_rfc3339_opts(SecondsFormat::Millis, true));
    assert_eq!(row["payload"], record.value);
    if row["unreadable"].is_null() {
        assert_eq!(row["event_id"], record.header("ce_id"));
        assert_eq!(row["type"], record.header("ce_type"));
        assert_eq!(row["record"], record.header("ce_subject"));
        let batch = format!(
            "{}/{}",
            row["batch_id"].as_str().expect("one"),
            row["batch_index"]
        );
        assert_eq!(batch, record.header("ce_batch"));
        assert_eq!(
            row["base_version"].to_string(),
            record.header("ce_baseversion")
        );
    }
}

/// Does everything that has an outcome of its own; answers the tenant.
async fn every_outcome(deployment: &Deployment) -> String {
    let tenant = tenant("=told");
    let phone = |user: &str, device: &str, role| Phone::of(deployment, &tenant, user, device, role);
    let (asha, ben) = (
        phone("=HYPERLINK(\"x\")", "phone-1", Role::User),
        phone("ben", "phone-2", Role::User),
    );
    let (one, two) = (Uuid::new_v4(), Uuid::new_v4());
    asha.apply("helpdesk", ticket(one, "The lift, is \"stuck\"\nagain"))
        .await;
    ben.apply(
        "helpdesk",
        json!({"mobile_id": one, "version": 1, "status": "open", "escalation_level": 2}),
    )
    .await;
    let late = json!({"mobile_id": one, "version": 1, "comments": "asha's"}).to_string();
    asha.post("helpdesk", &[late]).await.expect(200);
    let wrong = json!({"mobile_id": one, "version": 3, "status": "CLOSED"}).to_string();
    asha.post("helpdesk", &[wrong]).await.expect(200);
    let again = ticket(one, "The lift, is \"stuck\"\nagain").to_string();
    asha.post("helpdesk", &[again, tickets(1).remove(0)])
        .await
        .expect(200);
    let gone = json!({"mobile_id": Uuid::new_v4(), "version": 1, "sync_status": "pending_delete"});
    asha.post("helpdesk", &[gone.to_string()]).await.expect(200);
    let gone = json!({"mobile_id": one, "version": 3, "sync_status": "pending_delete"});
    asha.post("helpdesk", &[gone.to_string()]).await.expect(200);

    // One that waits for a person, who decides it.
    let olga = phone("olga", "desk-1", Role::Operator);
    olga.send(
        Method::PUT,
        "/api/v1/settings/sync",
        &[],
        json!({"domains": {"helpdesk": {"policy": "manual"}}}).to_string(),
    )
    .await
    .expect(200);
    asha.apply("helpdesk", ticket(two, "The other lift is stuck")).await;
    ben.apply(
        "helpdesk",
        json!({"mobile_id": two, "version": 1, "comments": "ben's"}),
    )
    .await;
    let mine = json!({"mobile_id": two, "version": 1, "comments": "asha's"}).to_string();
    let answer = asha.post("helpdesk", &[mine]).await.expect(200).json();
    let conflict = answer["conflicts"][0]["conflict_id"].as_str().expect("an id");
    phone("sue", "desk-2", Role::Supervisor)
        .send(
            Method::POST,
            &format!("/api/v1/conflicts/{conflict}/resolve"),
            &[("prefer", "wait=30")],
            json!({"strategy": "client_wins"}).to_string(),
        )
        .await
        .expect(200);

    // Garbage: without headers, and with a value that is no item.
    let topic = deployment.topic("sync.helpdesk.v1");
    produce(&deployment.brokers, &topic, "key", &[], "=no event");
    let headers = stamped(&tenant, Uuid::new_v4(), "helpdesk");
    let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    produce(&deployment.brokers, &topic, "key", &headers, "[1, 2]");
    tenant
}

fn stamped(tenant: &str, id: Uuid, table: &str) -> Vec<(String, String)> {
    let stamp = Stamp::new(
        TenantId::parse(tenant).expect("a tenant"),
        UserId::parse("asha").expect("a user"),
        DeviceId::parse("phone-1").expect("a device"),
        Role::User,
        None,
        BatchId(Uuid::new_v4()),
    );
    let headers = stamp.headers(
        table,
        Operation::Create,
        &id.to_string(),
        0,
        Utc::now(),
        0,
        Policy::MostRecentWins,
        None,
    );
    headers
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.into_owned()))
        .collect()
}

/// A new record of the domain `activity` or one like it, appended at this time.
fn appended(known: &Known, tenant: &str, partition: i32, logged_at: DateTime<Utc>) -> Stamped {
    let made = (known.item)(partition as usize);
    let id = made.subject("asha", "phone-1").parse().expect("a UUID");
    Stamped {
        partition,
        logged_at: logged_at.timestamp_millis(),
        key: made.key(tenant, "asha", "phone-1"),
        headers: stamped(tenant, id, known.table),
        value: made.text,
    }
}

/// A day so long ago, and a time of it.
fn day(ago: u64) -> NaiveDate {
    Utc::now().date_naive() - Days::new(ago)
}

fn at(day: NaiveDate, time: &str) -> DateTime<Utc> {
    let time: NaiveTime = time.parse().expect("a time");
    day.and_time(time).and_utc()
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
        assert_eq!((&told["events"], &told["behind"]), (&json!(14), &json!([])), "{told}");
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
            "applied", "applied", "applied", "applied", "applied", "applied", "conflict", "conflict",
            "dead_letter", "dead_letter", "duplicate", "no_effect", "refused", "resolved"
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
        (&json!("INVALID_TRANSITION"), &json!("status"), &json!("=HYPERLINK(\"x\")"))
    );
    assert_eq!(one("outcome", "duplicate")["first_outcome"], "applied");
    let conflict = one("conflict_policy", "preserve_escalation");
    assert_eq!(
        (&conflict["conflict_winner"], &conflict["version"], &conflict["conflict_client_version"]),
        (&json!("merged"), &json!(3), &json!(1))
    );
    let waited = one("conflict_policy", "manual");
    assert_eq!(waited["conflict_winner"], "none");
    let resolved = one("outcome", "resolved");
    assert_eq!(
        (&resolved["resolution"], &resolved["conflict_id"], &resolved["role"]),
        (&json!("client_wins"), &waited["conflict_id"], &json!("supervisor"))
    );
    let update = one("field_status", "OPEN");
    assert_eq!(
        (&update["field_escalation_level"], &update["operation"], &update["tenant"]),
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
    let export = audit["rows"].as_array().expect("rows").iter().find(|row| {
        row["command"] == "export" && row["arguments"]["into"] == json!(of("csv"))
    });
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
        told["files"].as_array().expect("files").iter().map(|file| &file["open"]).collect::<Vec<_>>(),
        [&json!(false), &json!(true)],
        "{told}"
    );
    assert_eq!((offsets(first), offsets(second)), (vec![0], vec![1, 2, 3]));
    assert_eq!(run(&into, &[])["files"], json!([]), "nothing is new");

    // More for the last day, and one of today, which is not over.
    produce_stamped(
        &deployment.brokers,
        &topic,
        &[event(at(second, "11:00:00")), event(Utc::now()), event(at(first, "01:00:00"))],
    )
    .await;
    let told = run(&into, &[]);
    assert_eq!((&told["events"], &told["files"][0]["first_offset"]), (&json!(4), &json!(1)));
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
    assert_eq!((&told["events"], &told["files"][0]["file"]), (&json!(3), &json!(file(second))));
    let part = folder(deployment, "days");
    let midnight = at(second, "00:00:00").to_rfc3339();
    run(&part, &["--from", &midnight]);
    assert_eq!(files(&part, "activity")[&file(second)], before[&file(second)]);
    assert_eq!(names(&part, "activity"), [file(second)]);
}

/// A running export.
struct Running(Child);

impl Running {
    fn start(deployment: &Deployment, domain: &str, into: &Path, args: &[&str]) -> Running {
        let into = into.display().to_string();
        let all = ["export", "--domain", domain, "--into", &into];
        let mut command = deployment.command(&[&all, args].concat());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Running(child.expect("tidelog can be run"))
    }

    /// Ends it once there is a new file, whole or begun; answers its exit code if it was done before.
    fn cut(&mut self, signal: Signal, into: &Path, domain: &str, after: Duration) -> Option<i32> {
        let before = names(into, domain);
        let ended = eventually_blocking("a new file, or the end", || {
            let ended = self.0.try_wait().expect("a child can be waited for");
            (ended.is_some() || names(into, domain) != before).then_some(ended)
        });
        if let Some(status) = ended {
            return status.code();
        }
        std::thread::sleep(after);
        kill_process(Pid::from_child(&self.0), signal).expect("it is not waited for yet");
        match self.0.wait().expect("a child can be waited for").code() {
            Some(0) => Some(0),
            code => {
                assert!(signal == Signal::KILL || code == Some(1), "{code:?}");
                None
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_is_killed_goes_on_and_misses_nothing() {
    let deployment = deployment();
    let (known, mine) = (Known::of("work-orders"), tenant("killed"));
    let topic = deployment.topic(known.topic);
    let mut records = Vec::new();
    for ago in (1..=4).rev() {
        for n in 0..900 {
            let time = at(day(ago), "00:00:00") + chrono::Duration::seconds(n * 90);
            records.push(appended(known, &mine, n as i32 % PARTITIONS, time));
        }
    }
    produce_stamped(&deployment.brokers, &topic, &records).await;
    let wait = ["--wait", "60s"];
    for format in ["jsonl", "parquet"] {
        let args = [&wait[..], &["--format", format]].concat();
        let whole = folder(deployment, "whole");
        assert!(export(deployment, known.url, &whole, &args).ok().contains("3,600 events in 12 files"));
        let cut = folder(deployment, "cut");
        let mut cuts = 0;
        for turn in 0.. {
            let signal = if turn % 3 == 2 { Signal::INT } else { Signal::KILL };
            let mut running = Running::start(deployment, known.url, &cut, &args);
            let after = Duration::from_millis(turn * 3 % 20);
            if let Some(code) = running.cut(signal, &cut, known.url, after) {
                assert_eq!(code, 0);
                break;
            }
            cuts += 1;
        }
        assert!(cuts > 0, "it was never cut");
        assert_eq!(files(&cut, known.url), files(&whole, known.url), "{format} after {cuts} cuts");
        if format == "jsonl" {
            let rows = json_rows(&cut, known.url);
            let log = read_topic(&deployment.brokers, &topic);
            assert_eq!((rows.len(), log.len()), (3600, 3600));
            rows.iter().zip(&log).for_each(|(row, record)| is_of(row, record));
        }
    }
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
    export(deployment, "attendance", &into, &[&args[..], &["--tenant", &mine]].concat()).ok();
    let rows = json_rows(&into, "attendance");
    assert_eq!(rows.len(), 4, "{rows:?}");
    assert!(rows.iter().all(|row| row["tenant"] == mine), "{rows:?}");
    let letter = rows.iter().find(|row| row["outcome"] == "dead_letter").expect("a letter");
    assert_eq!(letter["reason"], "the header ce_time is missing");
    let ran = export(deployment, "attendance", &into, &[&args[..], &["--tenant", &other]].concat());
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
        (Known::of("journal-media").item)(1).parent.as_deref().unwrap_or_default(),
        &entry.identity[0],
    );
    phone.post("journal-media", &[media]).await.expect(200);
    let into = folder(deployment, "topic");
    for domain in ["journal", "journal-media"] {
        export(deployment, domain, &into, &["--format", "jsonl", "--include-today"]).ok();
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
        ran.stdout.contains("has not come to partition 0 from offset 0 on (6 events)"),
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
    told("helpdesks", &into, &[], 1, "there is no domain \"helpdesks\"; there are activity");
    told("metrics", &into, &["--partition", "9"], 1, "has no partition 9: it has 3 of them");
    told("metrics", &into, &["--from", "yesterday"], 2, "how long ago, like 7d");
    told("metrics", &into, &["--format", "xml"], 2, "parquet, jsonl, csv");
    // An empty log is no error.
    let ran = export(deployment, "voice", &into, &["--include-today"]).ok();
    assert!(ran.contains("nothing new"), "{ran}");
    told("voice", &into, &["--format", "csv"], 1, "another format: parquet, and not csv");
    told("voice", &into, &["--from", "7d"], 1, "another from: beginning, and not 7d");
    let file = into.join("file");
    std::fs::write(&file, "").expect("a file");
    told("voice", &file, &[], 1, "give one that can be written with --into");
    let strange = into.join("strange");
    std::fs::create_dir_all(strange.join("voice/mine")).expect("a folder");
    told("voice", &strange, &[], 1, "holds mine and no _export.json");
}
