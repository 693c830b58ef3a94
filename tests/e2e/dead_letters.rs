//! What could not be read, and what an operator does about it: poison is looked at, exported and dropped; what can be read since an
//! upgrade is tried again, in order and once; and the audit tells who did it.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::db::Db;
use crate::support::eventually;
use crate::support::kafka::{end_offsets, produce, read_topic};
use crate::support::phone::{Phone, tenant};
use crate::support::process::Process;
use crate::support::service::{Deployment, PARTITIONS, Ran, Service};

const INSPECTIONS: &str = r#"domain = "inspections"
kind = "entity"
topic = "sync.inspections.v1"
[visibility]
rule = "scoped"
field = "scope"
[visibility.scopes]
shared = { read = ["everyone"], write = ["everyone"] }
[fields]
place = { type = "string", required = true }
scope = { type = "enum", values = ["shared"], default = "shared" }
"#;

/// Hangs on an inspection, and so lives on its topic.
const PHOTOS: &str = r#"domain = "inspection-photos"
kind = "entity"
topic = "sync.inspections.v1"
policy = "server_wins"
[parent]
domain = "inspections"
field = "inspection"
[fields]
inspection = { type = "uuid", required = true }
caption = { type = "string", required = true }
note = { type = "string" }
"#;

const LETTERS: &str = "SELECT * FROM dead_letters ORDER BY topic, partition, \"offset\"";

fn letters(deployment: &Deployment, args: &[&str]) -> Ran {
    deployment.run(&[&["dead-letters"], args].concat())
}

/// The places that `list` shows, with further arguments.
fn places(deployment: &Deployment, args: &[&str]) -> Vec<String> {
    let listed = letters(deployment, &[&["list", "--output", "json"], args].concat()).json();
    let lines = listed["letters"].as_array().expect("a list");
    let place = |line: &Value| line["place"].as_str().expect("a place").to_owned();
    lines.iter().map(place).collect()
}

/// Waits until so many letters are there, and answers their places.
async fn open_letters(deployment: &Deployment, db: &Db, number: i64) -> Vec<String> {
    eventually(&format!("{number} letters are open"), async || {
        let open = "SELECT count(*) FROM dead_letters WHERE status = 'open'";
        (db.count(open, &[]).await == number).then_some(())
    })
    .await;
    places(deployment, &[])
}

/// The headers of an item's event.
fn headers(tenant: &str, kind: &str, subject: Uuid) -> Vec<(&'static str, String)> {
    let tenant = tenant.replace('/', "%2F");
    vec![
        ("ce_specversion", "1.0".into()),
        ("ce_id", Uuid::new_v4().to_string()),
        ("ce_type", format!("tidelog.{kind}")),
        (
            "ce_source",
            format!("/tenants/{tenant}/users/asha/devices/phone-1"),
        ),
        ("ce_subject", subject.to_string()),
        ("ce_time", "2026-03-01T08:00:00Z".into()),
        ("ce_batch", format!("{}/0", Uuid::new_v4())),
        ("ce_baseversion", "0".into()),
        ("ce_policy", "client_wins".into()),
        ("content-type", "application/json".into()),
    ]
}

fn put(deployment: &Deployment, key: &str, headers: &[(&'static str, String)], value: &str) {
    let headers: Vec<(&str, &str)> = headers
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let topic = deployment.topic("sync.helpdesk.v1");
    produce(&deployment.brokers, &topic, key, &headers, value);
}

/// Rows of the audit, the first one first: command, result, whether it was a trial, and who.
fn audited(deployment: &Deployment) -> Vec<(String, String, bool, String)> {
    let shown = deployment.run(&["audit", "--limit", "1000", "--output", "json"]);
    for secret in [&deployment.database_url, &deployment.jwt_secret] {
        assert!(
            !shown.stdout.contains(secret.as_str()),
            "a secret is in the audit"
        );
    }
    let shown = shown.json();
    let text = |row: &Value, name: &str| row[name].as_str().unwrap_or("none").to_owned();
    let row = |row: &Value| {
        assert!(
            row["ended_at"].is_string() && !text(row, "host").is_empty(),
            "{row}"
        );
        let trial = row["dry_run"].as_bool().expect("yes or no");
        (text(row, "command"), text(row, "result"), trial, text(row, "who"))
    };
    shown["rows"]
        .as_array()
        .expect("a list")
        .iter()
        .rev()
        .map(row)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_is_listed_shown_exported_and_dropped() {
    let service = Service::start("poison");
    let (deployment, db) = (&service.deployment, service.deployment.db().await);
    let owner = tenant("poison");
    put(deployment, "nobody's", &[], "not JSON \u{7}\u{1b}[2J");
    let unknown = headers(&owner, "spells.create", Uuid::new_v4());
    put(deployment, "spell", &unknown, r#"{"spell":"abracadabra"}"#);
    let all = open_letters(deployment, &db, 2).await;
    assert_eq!(all.len(), 2);

    // By filters, and page by page.
    let spell = &places(deployment, &["--tenant", &owner])[0];
    let garbage = all.iter().find(|place| *place != spell).expect("another");
    assert!(places(deployment, &["--tenant", "somebody-else"]).is_empty());
    assert_eq!(
        places(deployment, &["--domain", "helpdesk", "--since", "1h"]),
        all
    );
    assert!(places(deployment, &["--domain", "journal"]).is_empty());
    assert!(places(deployment, &["--since", "2100-01-01T00:00:00Z"]).is_empty());
    assert!(places(deployment, &["--status", "dropped"]).is_empty());
    let page = letters(deployment, &["list", "--limit", "1", "--output", "json"]).json();
    assert_eq!(page["next"], all[0].as_str(), "{page}");
    assert_eq!(places(deployment, &["--after", &all[0]]), all[1..]);
    let text = letters(deployment, &["list"]).ok();
    assert!(text.contains(spell) && text.contains(&owner), "{text}");

    // What each holds.
    let shown = letters(deployment, &["show", garbage]).ok();
    assert!(
        shown.contains("readable now no: the header ce_specversion is missing"),
        "{shown}"
    );
    assert!(
        shown.contains("6e 6f 74 20 4a 53 4f 4e") && !shown.contains('\u{1b}'),
        "{shown}"
    );
    let shown = letters(deployment, &["show", spell, "--output", "json"]).json();
    assert_eq!(
        (
            &shown["readable"],
            &shown["value"]["spell"],
            &shown["key"],
            &shown["tenant"]
        ),
        (
            &json!(false),
            &json!("abracadabra"),
            &json!("spell"),
            &json!(owner)
        ),
        "{shown}"
    );
    let missing = format!("{}/0/999999", deployment.topic("sync.helpdesk.v1"));
    let ran = letters(deployment, &["show", &missing]);
    assert!(
        ran.code == 1 && ran.stderr.contains("no dead letter at"),
        "{ran:?}"
    );

    export(deployment, garbage, &all);
    drop_them(deployment, &db, garbage, spell).await;
}

fn export(deployment: &Deployment, garbage: &str, all: &[String]) {
    letters(deployment, &["export", "--to", "letters.jsonl"]).ok();
    let text = std::fs::read_to_string(deployment.dir.join("letters.jsonl")).expect("the file");
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(lines.len(), 2, "{text}");
    let line = lines
        .iter()
        .find(|line| line["headers"] == json!([]))
        .expect("the one without headers");
    // What `base64` makes of the same bytes.
    assert_eq!(line["value_base64"], "bm90IEpTT04gBxtbMko=", "{line}");
    let again = letters(deployment, &["export", "--to", "letters.jsonl"]);
    assert!(
        again.code == 1
            && again.stderr.contains("the file letters.jsonl is there already")
            && again.stderr.contains("--to"),
        "{again:?}"
    );
    let one = letters(deployment, &["export", garbage]).ok();
    assert_eq!(one.lines().count(), 1, "{one}");
    assert_eq!(
        letters(deployment, &["export", "--limit", "1"])
            .ok()
            .lines()
            .count(),
        1
    );
    let trial = letters(deployment, &["export", "--dry-run"]);
    assert!(
        trial.stdout.is_empty() && trial.stderr.contains(&format!("{} letters would", all.len())),
        "{trial:?}"
    );
    let row = |result: &str, trial: bool| ("dead-letters export".to_owned(), result.to_owned(), trial);
    let rows: Vec<_> = audited(deployment)
        .into_iter()
        .map(|(command, result, trial, _)| (command, result, trial))
        .collect();
    let expected = [
        row("done", false),
        row("failed", false),
        row("done", false),
        row("done", false),
        row("done", true),
    ];
    assert_eq!(rows, expected);
}

async fn drop_them(deployment: &Deployment, db: &Db, garbage: &str, spell: &str) {
    let before = db.objects(LETTERS, &[]).await;
    let of_audit = audited(deployment).len();
    let drop = |args: &[&str]| {
        letters(
            deployment,
            &[&["drop", "--why", "put there by hand", "--as", "olga"], args].concat(),
        )
    };
    let asked = drop(&[garbage]);
    assert!(
        asked.code == 2 && asked.stderr.contains("give --yes, and the letters' places"),
        "{asked:?}"
    );
    let unnamed = drop(&["--since", "1h", "--yes"]);
    assert!(
        unnamed.code == 2 && unnamed.stderr.contains("--yes is not enough"),
        "{unnamed:?}"
    );
    let everything = drop(&["--yes"]);
    assert!(
        everything.code == 2 && everything.stderr.contains("say which letters"),
        "{everything:?}"
    );
    let trial = drop(&[garbage, "--dry-run"]).ok();
    assert_eq!(trial.trim(), format!("would drop {garbage}"));
    assert_eq!(db.objects(LETTERS, &[]).await, before, "nothing has changed");

    assert_eq!(
        drop(&[garbage, "--yes"]).ok().trim(),
        format!("dropped {garbage}")
    );
    let again = drop(&[garbage, "--yes"]);
    assert!(
        again.code == 3 && again.stdout.contains("it was already dropped by olga"),
        "{again:?}"
    );
    let retried = letters(deployment, &["retry", garbage]);
    assert!(
        retried.code == 3 && retried.stdout.contains("it was already dropped by olga"),
        "{retried:?}"
    );
    drop(&["--domain", "helpdesk", "--yes"]).ok();
    assert_eq!(places(deployment, &[]), Vec::<String>::new());
    let dropped: BTreeSet<String> = places(deployment, &["--status", "dropped"]).into_iter().collect();
    assert_eq!(dropped, BTreeSet::from([garbage.to_owned(), spell.to_owned()]));
    let after = db.objects(LETTERS, &[]).await;
    for (before, after) in before.iter().zip(&after) {
        let closed = (&after["status"], &after["closed_by"], &after["closed_why"]);
        assert_eq!(
            closed,
            (&json!("dropped"), &json!("olga"), &json!("put there by hand"))
        );
        assert_eq!(
            (&before["value"], &before["headers"]),
            (&after["value"], &after["headers"]),
            "the bytes stay"
        );
    }
    let status = deployment.run(&["status", "--output", "json"]).json();
    assert_eq!(status["dead_letters"], 0, "{status}");

    let olgas = |result: &str, trial: bool| {
        (
            "dead-letters drop".to_owned(),
            result.to_owned(),
            trial,
            "olga".to_owned(),
        )
    };
    let mut rows = audited(deployment).split_off(of_audit);
    let (command, result, _, who) = rows.remove(5);
    assert_eq!(
        (command.as_str(), result.as_str()),
        ("dead-letters retry", "done")
    );
    assert!(!who.is_empty() && who != "none", "the system's user");
    let expected = [
        olgas("refused", false),
        olgas("refused", false),
        olgas("done", true),
        olgas("done", false),
        olgas("done", false),
        olgas("done", false),
    ];
    assert_eq!(rows, expected);
}

/// A deployment whose gateways know photos already, and one of whose projectors does not.
struct HalfUpgraded {
    new: Deployment,
    old: Deployment,
    db: Db,
    gateway: Process,
    projector: Process,
    inspection: Uuid,
    asha: Phone,
}

impl HalfUpgraded {
    async fn start(name: &str) -> HalfUpgraded {
        let deployment = Deployment::new(name);
        let with = |folder: &str, files: &[(&str, &str)]| {
            let folder = deployment.dir.join(folder);
            std::fs::create_dir_all(&folder).expect("a folder");
            for (name, text) in files {
                std::fs::write(folder.join(name), text).expect("a file");
            }
            deployment
                .clone()
                .with("TIDELOG_DOMAINS_DIR", folder.display().to_string())
        };
        let old = with("old", &[("1-inspections.toml", INSPECTIONS)]);
        let new = with(
            "new",
            &[("1-inspections.toml", INSPECTIONS), ("2-photos.toml", PHOTOS)],
        );
        new.prepare();
        let gateway = new.start_listening("ingest", "/readyz");
        let projector = old.start("project");
        let asha = Phone::new(&new, &tenant(name), "asha");
        let inspection = Uuid::new_v4();
        let item = json!({"mobile_id": inspection, "place": "Stairwell B"});
        asha.apply("inspections", item).await;
        HalfUpgraded {
            db: new.db().await,
            new,
            old,
            gateway,
            projector,
            inspection,
            asha,
        }
    }

    fn photo(&self, id: Uuid, version: i64, caption: &str) -> Value {
        json!({"mobile_id": id, "inspection": self.inspection, "version": version, "caption": caption})
    }

    /// Posts photos that nobody waits for; answers where their batch's outcomes will be.
    async fn send(&self, phone: &Phone, photos: &[Value]) -> String {
        let entries: Vec<String> = photos.iter().map(Value::to_string).collect();
        let answer = phone
            .send_batch(
                "inspection-photos",
                &[("prefer", "wait=0")],
                phone.batch(&entries),
            )
            .await;
        let answer = answer.expect(202).json();
        format!(
            "/api/v1/sync/batches/{}",
            answer["batch_id"].as_str().expect("an id")
        )
    }

    /// The projector of before ends, and one of now takes its place.
    fn upgrade(&mut self) {
        let new = self.new.start("project");
        let old = std::mem::replace(&mut self.projector, new);
        assert_eq!(old.terminate(), 0);
    }

    async fn stored(&self, id: Uuid, version: i64) -> Value {
        eventually(&format!("{id} has version {version}"), async || {
            let answer = self.asha.record("inspection-photos", &id.to_string()).await;
            (answer.status == 200 && answer.json()["version"] == version).then(|| answer.json())
        })
        .await
    }

    fn ends(&self) -> Vec<i64> {
        end_offsets(
            &self.new.brokers,
            &self.new.topic("sync.inspections.v1"),
            PARTITIONS,
        )
    }

    /// Waits until everything in the log has been applied.
    async fn applied(&self) {
        eventually("there is no lag", async || {
            let status = self.new.run(&["status", "--output", "json"]).json();
            (status["lag"] == 0).then_some(())
        })
        .await;
    }

    fn stop(self) {
        assert_eq!((self.projector.terminate(), self.gateway.terminate()), (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_read_since_an_upgrade_is_retried_in_order_and_once() {
    let mut half = HalfUpgraded::start("retry").await;
    let id = Uuid::new_v4();
    let mut change = half.photo(id, 0, "Extinguisher 7, sealed");
    change["note"] = json!("Seal 4711");
    let batch = half
        .send(&half.asha, &[half.photo(id, 0, "Extinguisher 7"), change])
        .await;
    let [first, second] = &open_letters(&half.new, &half.db, 2).await[..] else {
        panic!("two letters")
    };
    assert!(places(&half.new, &["--tenant", "somebody-else"]).is_empty());
    let (before, ends) = (half.db.objects(LETTERS, &[]).await, half.ends());

    let ran = letters(&half.old, &["retry", first, second]);
    assert!(
        ran.code == 3
            && ran
                .stdout
                .matches("no domain here has the table \"inspection_photos\"")
                .count()
                == 2,
        "{ran:?}"
    );
    let ran = letters(&half.new, &["retry", second]);
    assert!(
        ran.code == 3 && ran.stdout.contains(&format!("is open, {first}:")),
        "{ran:?}"
    );
    let trial = letters(&half.new, &["retry", "--domain", "inspections", "--dry-run"]).ok();
    assert_eq!(trial.trim(), format!("would retry {first}\nwould retry {second}"));
    let other = letters(&half.new, &["retry", "--tenant", "somebody-else"]).ok();
    assert_eq!(other.trim(), "No such dead letters are open.");
    assert_eq!(
        (half.db.objects(LETTERS, &[]).await, half.ends()),
        (before, ends.clone()),
        "nothing has changed"
    );

    half.upgrade();
    // The order in which they are given is not the log's.
    let done = letters(
        &half.new,
        &["retry", second, first, "--as", "olga", "--output", "json"],
    )
    .json();
    assert_eq!(done["retried"].as_array().map(Vec::len), Some(2), "{done}");
    assert_eq!(done["retried"][0]["place"], first.as_str(), "{done}");
    let stored = half.stored(id, 2).await;
    assert_eq!(
        (&stored["caption"], &stored["note"]),
        (&json!("Extinguisher 7, sealed"), &json!("Seal 4711"))
    );
    let told = half.asha.get(&batch).await.expect(200).json();
    assert_eq!(
        (&told["status"], told["synced_items"].as_array().map(Vec::len)),
        (&json!("complete"), Some(2)),
        "{told}"
    );
    same_record(
        &half,
        first,
        done["retried"][0]["now_at"].as_str().expect("a place"),
    );
    let shown = letters(&half.new, &["show", first, "--output", "json"]).json();
    assert_eq!(
        (
            &shown["status"],
            &shown["closed_by"],
            &shown["outcome"]["version"]
        ),
        (&json!("retried"), &json!("olga"), &json!(1)),
        "{shown}"
    );

    let ends = half.ends();
    let again = letters(&half.new, &["retry", first, second]);
    assert!(
        again.code == 3 && again.stdout.matches("it was already retried by olga").count() == 2,
        "{again:?}"
    );
    assert_eq!(half.ends(), ends, "nothing was appended");
    crash_after_the_append(&half, id, first).await;

    let results: Vec<String> = audited(&half.new)
        .into_iter()
        .map(|(_, result, ..)| result)
        .collect();
    assert_eq!(results, ["done"; 7]);
    half.stop();
}

/// The record that lies there now is the letter's, byte for byte.
fn same_record(half: &HalfUpgraded, letter: &str, now_at: &str) {
    let records = read_topic(&half.new.brokers, &half.new.topic("sync.inspections.v1"));
    let at = |place: &str| {
        let found = records
            .iter()
            .find(|record| place.ends_with(&format!("/{}/{}", record.partition, record.offset)));
        let record = found.expect("a record").clone();
        (record.partition, record.key, record.headers, record.value)
    };
    assert_eq!(at(letter), at(now_at));
}

/// As after a crash between the append and the row's update: the letter is open, and its record lies in the log twice. A third copy
/// is a repeat by its event's id, although the record has changed since.
async fn crash_after_the_append(half: &HalfUpgraded, id: Uuid, first: &str) {
    let offset: i64 = first
        .rsplit('/')
        .next()
        .and_then(|offset| offset.parse().ok())
        .expect("an offset");
    let partition: i32 = first
        .rsplit('/')
        .nth(1)
        .and_then(|number| number.parse().ok())
        .expect("a number");
    let open = "UPDATE dead_letters SET status = 'open', closed_at = NULL, closed_by = NULL, retried_offset = NULL \
                WHERE \"offset\" = $1 AND partition = $2 RETURNING 1";
    assert_eq!(half.db.rows(open, &[&offset, &partition]).await.len(), 1);
    let contents = async || {
        let of_record = "SELECT * FROM inspection_photos WHERE mobile_id = $1";
        let feed = "SELECT * FROM inspection_photos_changes WHERE mobile_id = $1 ORDER BY \"offset\"";
        (
            half.db.objects(of_record, &[&id]).await,
            half.db.objects(feed, &[&id]).await,
        )
    };
    let (before, ends) = (contents().await, half.ends());
    letters(&half.new, &["retry", first]).ok();
    assert_eq!(
        half.ends().iter().sum::<i64>(),
        ends.iter().sum::<i64>() + 1,
        "it was appended"
    );
    half.applied().await;
    assert_eq!(contents().await, before);
    assert_eq!(half.db.count("SELECT count(*) FROM outcomes", &[]).await, 0);
    assert_eq!(half.db.count("SELECT count(*) FROM dead_letters", &[]).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_does_not_undo_what_came_after_it() {
    let mut half = HalfUpgraded::start("later").await;
    let (own, others) = (Uuid::new_v4(), Uuid::new_v4());
    half.send(
        &half.asha,
        &[half.photo(own, 0, "Blurred"), half.photo(others, 0, "Asha's")],
    )
    .await;
    let all = open_letters(&half.new, &half.db, 2).await;
    let letter_of = |id: Uuid| {
        let about = |place: &&String| {
            let shown = letters(&half.new, &["show", place, "--output", "json"]).json();
            shown["value"]["mobile_id"] == id.to_string()
        };
        all.iter().find(about).expect("its letter").clone()
    };
    let (of_own, of_others) = (letter_of(own), letter_of(others));
    half.upgrade();
    let ben = Phone::of(
        &half.new,
        &half.asha.tenant,
        "asha",
        "tablet-1",
        tidelog_http::auth::Role::User,
    );
    half.asha
        .apply("inspection-photos", half.photo(own, 0, "Sharp"))
        .await;
    ben.apply("inspection-photos", half.photo(others, 0, "The tablet's"))
        .await;

    // Both photos hang on one inspection, so they have one key, and the earlier letter goes first.
    let ran = letters(&half.new, &["retry", &of_own]);
    assert!(
        ran.code == 3
            && ran
                .stdout
                .contains("the device phone-1 of asha has changed the record since"),
        "{ran:?}"
    );
    letters(&half.new, &["retry", &of_own, "--over-later"]).ok();
    assert_eq!(half.stored(own, 2).await["caption"], "Blurred");

    // Behind another device's change it is a conflict, decided by its domain's policy.
    letters(&half.new, &["retry", &of_others]).ok();
    half.applied().await;
    assert_eq!(half.stored(others, 1).await["caption"], "The tablet's");
    let shown = letters(&half.new, &["show", &of_others, "--output", "json"]).json();
    let outcome = &shown["outcome"];
    assert_eq!(
        (&outcome["outcome"], &outcome["winner"]),
        (&json!("conflict"), &json!("server")),
        "{shown}"
    );
    half.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_its_sender_was_told_of_is_not_retried() {
    let service = Service::start("answered");
    let (deployment, db) = (&service.deployment, service.deployment.db().await);
    let (owner, id) = (tenant("answered"), Uuid::new_v4());
    // Readable, and nothing that Postgres can hold: no gateway would let it pass.
    let value = format!(r#"{{"mobile_id":"{id}","ticketdesc":"Pump 3 \u0000 leaks oil"}}"#);
    let key = format!("{}/{id}", owner.replace('/', "%2F"));
    put(deployment, &key, &headers(&owner, "helpdesk.create", id), &value);
    let all = open_letters(deployment, &db, 1).await;
    assert_eq!(places(deployment, &["--tenant", &owner]), all);
    assert!(places(deployment, &["--tenant", "somebody-else"]).is_empty());
    let shown = letters(deployment, &["show", &all[0], "--output", "json"]).json();
    assert_eq!(
        (&shown["readable"], &shown["outcome"]["outcome"]),
        (&json!(true), &json!("refused")),
        "{shown}"
    );
    let ends = || {
        end_offsets(
            &deployment.brokers,
            &deployment.topic("sync.helpdesk.v1"),
            PARTITIONS,
        )
    };
    let before = ends();
    let ran = letters(deployment, &["retry", &all[0]]);
    assert!(
        ran.code == 3 && ran.stdout.contains("its sender was told that it was refused"),
        "{ran:?}"
    );
    assert_eq!(ends(), before, "nothing was appended");
}
