//! A user is forgotten: what he wrote was never anywhere in plain, and after his keys are destroyed nobody reads it any more, in
//! no answer, no table, no file and no rebuild; while everybody else reads what they read before, and he may begin anew.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use serde_json::{Map, Value, json};
use tidelog_http::auth::Role;
use uuid::Uuid;

use crate::support::eventually;
use crate::support::kafka::{produce, read_topic};
use crate::support::phone::{Phone, tenant};
use crate::support::service::{Deployment, PARTITIONS, Ran, Service};

const SECRET: (&str, &str) = ("TIDELOG_SEAL_SECRET", "a secret for tests, of 32 bytes or more");

/// Every domain with something personal, and its topic.
const DOMAINS: [(&str, &str); 10] = [
    ("activity", "sync.activity.v1"),
    ("work-orders", "sync.work_orders.v1"),
    ("attendance", "sync.attendance.v1"),
    ("helpdesk", "sync.helpdesk.v1"),
    ("journal", "sync.journal.v1"),
    ("journal-media", "sync.journal.v1"),
    ("voice", "telemetry.voice.v1"),
    ("behavioral", "telemetry.behavioral.v1"),
    ("sessions", "telemetry.sessions.v1"),
    ("metrics", "telemetry.metrics.v1"),
];

/// A word that is nowhere else. All of one test begin alike.
struct Words {
    stem: String,
}

impl Words {
    fn new() -> Words {
        Words {
            stem: format!("w{}", Uuid::new_v4().simple()),
        }
    }

    fn of(&self, user: &str, what: &str) -> String {
        format!("{}-{user}-{what}", self.stem)
    }
}

/// An item of that domain in which everything personal is a word of that user's.
fn item(words: &Words, domain: &str, user: &str, entry: Uuid) -> Value {
    let id = if domain == "journal" {
        entry
    } else {
        Uuid::new_v4()
    };
    let word = |what: &str| words.of(user, &format!("{domain}-{what}"));
    let point = json!({"type": "Point", "coordinates": [72.5, 19.25]});
    let metadata = json!({"note": word("note"), "deep": {"list": [1, word("deep")], "n": 3.5}});
    let time = "2026-03-01T10:00:00Z";
    match domain {
        "activity" => {
            json!({"mobile_id": id, "jobdesc": word("jobdesc"), "remarks": word("remarks"), "gpslocation": point, "own": word("own")})
        }
        "work-orders" => json!({"mobile_id": id, "description": word("description")}),
        "attendance" => {
            json!({"mobile_id": id, "deviceid": "handset-1", "gpslocation": point, "reference": word("reference")})
        }
        "helpdesk" => {
            json!({"mobile_id": id, "ticketdesc": word("ticketdesc"), "comments": word("comments"), "priority": "HIGH"})
        }
        "journal" => {
            json!({"mobile_id": id, "entry_type": "stress_log", "timestamp": time, "privacy_scope": "shared", "title": word("title"),
            "content": word("content"), "tags": [word("tag a"), word("tag b")], "severity": word("severity"), "quality_score": 7.5,
            "mood_rating": 3, "metadata": metadata})
        }
        "journal-media" => {
            json!({"mobile_id": id, "journal_entry": entry, "media_type": "PHOTO", "original_filename": word("file"), "mime_type": "image/png",
            "caption": word("caption")})
        }
        "voice" => {
            json!({"verification_id": id, "timestamp": time, "verified": true, "quality_score": 0.5, "metadata": metadata})
        }
        "behavioral" => {
            json!({"event_id": id, "timestamp": time, "performance_score": 0.75, "metadata": metadata})
        }
        "sessions" => json!({"session_id": id, "session_start": time, "metadata": metadata}),
        _ => json!({"metric_name": format!("m-{id}"), "value": 1, "timestamp": time, "metadata": metadata}),
    }
}

/// What one user sees of all domains, and of the record's past and conflicts that are given.
async fn seen(phone: &Phone, histories: &[(&str, Uuid)], conflicts: &[String]) -> BTreeMap<String, Value> {
    let mut seen = BTreeMap::new();
    for (domain, _) in DOMAINS {
        for item in phone.pull(domain, "limit=100").await {
            let id = item
                .get("mobile_id")
                .or(item.get("item_id"))
                .and_then(Value::as_str);
            let id = id.expect("an identity").to_owned();
            let path = format!("/api/v1/{domain}/records/{id}");
            if item["deleted"] != true {
                let record = phone.get(&path).await.expect(200).json();
                assert_eq!(record, item, "a record is on a page as it is alone");
            }
            seen.insert(format!("{domain}/{id}"), item);
        }
    }
    for (domain, id) in histories {
        let path = format!("/api/v1/{domain}/records/{id}/history");
        seen.insert(path.clone(), phone.get(&path).await.expect(200).json());
    }
    for conflict in conflicts {
        let path = format!("/api/v1/conflicts/{conflict}");
        seen.insert(path.clone(), phone.get(&path).await.expect(200).json());
    }
    seen
}

fn text(seen: &BTreeMap<String, Value>) -> String {
    json!(seen).to_string()
}

#[track_caller]
fn holds(seen: &BTreeMap<String, Value>, domain: &str, sent: &Value) {
    let names = [
        "mobile_id",
        "verification_id",
        "event_id",
        "session_id",
        "metric_name",
    ];
    let id = names
        .iter()
        .find_map(|name| sent[*name].as_str())
        .expect("an identity");
    let found = seen
        .iter()
        .find(|(key, _)| key.starts_with(&format!("{domain}/")) && key.contains(id));
    let (_, found) = found.unwrap_or_else(|| panic!("{domain} {id} is not there"));
    for (name, value) in sent.as_object().expect("an object") {
        if name != "version" {
            assert_eq!(&found[name], value, "{domain} {name}");
        }
    }
}

fn test_stack() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows where it lies");
    let target = test.ancestors().nth(3).expect("tests lie in target/*/deps");
    target.join("test-stack")
}

/// Files of Postgres, its log of writes with them, that hold those bytes.
async fn files_with(deployment: &Deployment, word: &str) -> String {
    // A copy of a database begins with a checkpoint, which only a superuser may ask for.
    let (db, copy) = (deployment.db().await, format!("copy_{}", Uuid::new_v4().simple()));
    let made = format!("CREATE DATABASE {copy} TEMPLATE template0 STRATEGY FILE_COPY");
    for sql in [made, format!("DROP DATABASE {copy}")] {
        db.rows(&sql, &[]).await;
    }
    let found = Command::new("grep")
        .args(["-raFl", "--exclude=dev.log", word])
        .arg(test_stack().join("postgres"))
        .output()
        .expect("grep is there");
    // Files come and go while it looks, which it complains about.
    String::from_utf8_lossy(&found.stdout).into_owned()
}

fn topics_with(deployment: &Deployment, word: &str) -> Vec<String> {
    let mut topics: Vec<&str> = DOMAINS.iter().map(|(_, topic)| *topic).collect();
    topics.extend(["sync.dlq.v1", "sync.keys.v1"]);
    topics.dedup();
    let records = topics
        .iter()
        .flat_map(|topic| read_topic(&deployment.brokers, &deployment.topic(topic)));
    records
        .filter(|record| record.value.contains(word))
        .map(|record| record.value)
        .collect()
}

fn exported(deployment: &Deployment) -> String {
    let lines = deployment
        .run(&["dead-letters", "export", "--status", "all"])
        .ok();
    let value = |line: &str| {
        let letter: Value = serde_json::from_str(line).expect("JSON");
        let text = letter["value_base64"].as_str().expect("a value").to_owned();
        String::from_utf8_lossy(&STANDARD.decode(text).expect("base64")).into_owned()
    };
    lines.lines().map(value).collect()
}

fn tailed(deployment: &Deployment, secret: bool) -> String {
    let args = [
        "tail",
        "--from",
        "beginning",
        "--no-follow",
        "--payload",
        "--output",
        "json",
    ];
    let mut command = deployment.command(&args);
    if !secret {
        command.env_remove(SECRET.0);
    }
    let output = command.output().expect("tidelog can be run");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn erase(deployment: &Deployment, tenant: &str, user: &str, more: &[&str]) -> Ran {
    deployment.run(
        &[
            &["erase", "--tenant", tenant, "--user", user, "--output", "json"],
            more,
        ]
        .concat(),
    )
}

/// Asha, who will be forgotten, Ben, who works with her, and Sue, who decides.
struct Team {
    service: Service,
    tenant: String,
    words: Words,
    asha: Phone,
    ben: Phone,
    sue: Phone,
    /// What each of them sent, as it has to read back.
    sent: Vec<(&'static str, &'static str, Value)>,
    histories: Vec<(&'static str, Uuid)>,
    conflicts: Vec<String>,
}

impl Team {
    fn new(name: &str) -> Team {
        let deployment = Deployment::new(name)
            .with(SECRET.0, SECRET.1)
            .with("TIDELOG_DRILL_NUMBERS", "key_life_ms=300");
        let service = Service::of(deployment);
        let tenant = tenant(name);
        let phone =
            |user: &str, device: &str, role| Phone::of(&service.deployment, &tenant, user, device, role);
        Team {
            words: Words::new(),
            asha: phone("asha", "phone-1", Role::User),
            ben: phone("ben", "phone-2", Role::User),
            sue: phone("sue", "desk-1", Role::Supervisor),
            sent: Vec::new(),
            histories: Vec::new(),
            conflicts: Vec::new(),
            tenant,
            service,
        }
    }

    fn deployment(&self) -> &Deployment {
        &self.service.deployment
    }

    /// One item of every domain, of each of them.
    async fn write(&mut self) {
        for user in ["asha", "ben", "sue"] {
            let entry = Uuid::new_v4();
            for (domain, _) in DOMAINS {
                let item = item(&self.words, domain, user, entry);
                let phone = match user {
                    "asha" => &self.asha,
                    "ben" => &self.ben,
                    _ => &self.sue,
                };
                let answer = phone.post(domain, &[item.to_string()]).await.expect(200).json();
                let refused = answer["errors"].as_array().map_or(0, Vec::len);
                assert_eq!(refused, 0, "{domain}: {answer}");
                self.sent.push((user, domain, item));
            }
        }
    }

    /// Ben sends the whole of Asha's ticket again with a comment of his own, a deletion, a merge, and conflicts that wait.
    async fn meet(&mut self) {
        let settings =
            json!({"domains": {"activity": {"policy": "merge"}, "helpdesk": {"policy": "manual"}}});
        let olga = Phone::of(self.deployment(), &self.tenant, "olga", "desk-2", Role::Operator);
        olga.send(Method::PUT, "/api/v1/settings/sync", &[], settings.to_string())
            .await
            .expect(200);
        let ticket = self.of("asha", "helpdesk");
        let id: Uuid = serde_json::from_value(ticket["mobile_id"].clone()).expect("an id");
        let mut whole = ticket.clone();
        whole["version"] = 1.into();
        whole["comments"] = json!(self.words.of("ben", "resent"));
        self.ben.apply("helpdesk", whole).await;
        let behind = json!({"mobile_id": id, "version": 1, "comments": self.words.of("asha", "behind")});
        let answer = self
            .asha
            .post("helpdesk", &[behind.to_string()])
            .await
            .expect(200)
            .json();
        let conflict = answer["conflicts"][0]["conflict_id"]
            .as_str()
            .expect("a conflict")
            .to_owned();
        let decision =
            json!({"strategy": "manual", "data": {"own": {"decided": self.words.of("sue", "decided")}}});
        let path = format!("/api/v1/conflicts/{conflict}/resolve");
        let headers = [("prefer", "wait=30")];
        self.sue
            .send(Method::POST, &path, &headers, decision.to_string())
            .await
            .expect(200);
        self.conflicts.push(conflict);
        self.histories.push(("helpdesk", id));

        let task = self.of("asha", "activity");
        let id: Uuid = serde_json::from_value(task["mobile_id"].clone()).expect("an id");
        let bens = json!({"mobile_id": id, "version": 1, "remarks": self.words.of("ben", "merged")});
        self.ben.apply("activity", bens).await;
        let tablet = Phone::of(self.deployment(), &self.tenant, "asha", "tablet-1", Role::User);
        let mut again = task.clone();
        again["version"] = 1.into();
        again["jobdesc"] = json!(self.words.of("asha", "merged"));
        let answer = tablet
            .post("activity", &[again.to_string()])
            .await
            .expect(200)
            .json();
        let merged = &answer["conflicts"][0];
        assert_eq!(merged["winner"], "merged", "{answer}");
        self.conflicts
            .push(merged["conflict_id"].as_str().expect("an id").to_owned());
        self.histories.push(("activity", id));
        let record = self
            .ben
            .record("activity", &id.to_string())
            .await
            .expect(200)
            .json();
        assert_eq!(record["jobdesc"], json!(self.words.of("asha", "merged")));
        assert_eq!(
            record["remarks"],
            json!(self.words.of("ben", "merged")),
            "both sides, seen as such"
        );

        let order = self.of("asha", "work-orders");
        let gone = json!({"mobile_id": order["mobile_id"], "version": 1, "sync_status": "pending_delete"});
        self.asha.apply("work-orders", gone).await;
        self.sent.retain(|(user, domain, _)| {
            *user != "asha" || !matches!(*domain, "helpdesk" | "activity" | "work-orders")
        });
    }

    fn of(&self, user: &str, domain: &str) -> Value {
        let found = self
            .sent
            .iter()
            .find(|(who, what, _)| (*who, *what) == (user, domain));
        found.expect("an item").2.clone()
    }

    /// What is refused is told without a word of it.
    async fn be_refused(&self) {
        let word = self.words.of("asha", "refused");
        for wrong in [
            json!({"mobile_id": Uuid::new_v4(), "ticketdesc": {"not": word}}).to_string(),
            format!(
                r#"{{"mobile_id":"{}","ticketdesc":"{word}","comments":"{word}\u0000"}}"#,
                Uuid::new_v4()
            ),
            json!({"mobile_id": Uuid::new_v4(), "comments": word}).to_string(),
            format!(
                r#"{{"mobile_id":"{}","ticketdesc":"{word}","x":123456789012345678901234567890}}"#,
                Uuid::new_v4()
            ),
        ] {
            let answer = self.asha.post("helpdesk", &[wrong]).await.expect(200).json();
            assert_eq!(answer["errors"].as_array().map(Vec::len), Some(1), "{answer}");
            let told = answer.to_string();
            assert!(!told.contains(&word) && !told.contains("1234567890"), "{told}");
        }
        // Many small values are large when each is sealed; the item is refused alone.
        let many: Map<String, Value> = (0..15_000).map(|n| (n.to_string(), n.into())).collect();
        let large = json!({"mobile_id": Uuid::new_v4(), "ticketdesc": word, "many": many}).to_string();
        let small =
            json!({"mobile_id": Uuid::new_v4(), "ticketdesc": self.words.of("asha", "beside")}).to_string();
        let answer = self
            .asha
            .post("helpdesk", &[large, small])
            .await
            .expect(200)
            .json();
        assert_eq!(answer["errors"][0]["error_code"], "TOO_LARGE", "{answer}");
        assert_eq!(
            answer["synced_items"].as_array().map(Vec::len),
            Some(1),
            "{answer}"
        );
    }

    /// Something that no projector can read, with words in it.
    async fn leave_a_letter(&self) {
        let deployment = self.deployment();
        let topic = deployment.topic("sync.helpdesk.v1");
        let records = read_topic(&deployment.brokers, &topic);
        let ashas = records
            .iter()
            .find(|record| record.header("ce_source").contains("/users/asha/"));
        let ashas = ashas.expect("an event of hers");
        let headers: Vec<(&str, &str)> = ashas
            .headers
            .iter()
            .map(|(name, value)| match name.as_str() {
                "ce_type" => ("ce_type", "tidelog.nowhere.create"),
                name => (name, value.as_str()),
            })
            .collect();
        produce(&deployment.brokers, &topic, &ashas.key, &headers, &ashas.value);
        let db = deployment.db().await;
        eventually("the letter is there", async || {
            (db.count("SELECT count(*) FROM dead_letters", &[]).await == 1).then_some(())
        })
        .await;
    }

    async fn seen(&self) -> [BTreeMap<String, Value>; 3] {
        [
            seen(&self.asha, &self.histories, &self.conflicts).await,
            seen(&self.ben, &self.histories, &[]).await,
            seen(&self.sue, &self.histories, &self.conflicts).await,
        ]
    }

    /// No word of that beginning lies anywhere in plain.
    async fn is_nowhere_in_plain(&self, stem: &str) {
        assert_eq!(topics_with(self.deployment(), stem), [""; 0], "topics");
        assert_eq!(files_with(self.deployment(), stem).await, "", "files of Postgres");
        assert!(!exported(self.deployment()).contains(stem), "dead letters");
    }
}

/// Documents without the words of the one who was erased.
fn without(seen: &BTreeMap<String, Value>, word: &str) -> BTreeMap<String, Value> {
    fn replace(value: &mut Value, word: &str) {
        match value {
            Value::String(text) if text.starts_with(word) => *text = "[erased]".into(),
            Value::Array(list) => list.iter_mut().for_each(|inner| replace(inner, word)),
            Value::Object(members) => members.values_mut().for_each(|inner| replace(inner, word)),
            _ => {}
        }
    }
    let mut seen = seen.clone();
    seen.values_mut().for_each(|value| replace(value, word));
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erased_user_is_forgotten_everywhere_and_nobody_else_is() {
    let mut team = Team::new("erasing");
    team.write().await;
    team.meet().await;
    team.be_refused().await;
    team.leave_a_letter().await;
    let before = team.seen().await;
    for (user, domain, sent) in &team.sent {
        let eyes = match *user {
            "asha" => &before[0],
            "ben" => &before[1],
            _ => &before[2],
        };
        holds(eyes, domain, sent);
    }
    let hers = team.words.of("asha", "");
    assert!(text(&before[1]).contains(&team.words.of("asha", "helpdesk-ticketdesc")));
    assert!(tailed(team.deployment(), true).contains(&hers));
    assert!(!tailed(team.deployment(), false).contains(&team.words.stem));
    team.is_nowhere_in_plain(&team.words.stem).await;

    // What would be done, and that it is not done without being asked for.
    let trial = erase(team.deployment(), &team.tenant, "asha", &["--dry-run"]).json();
    assert_eq!(
        (&trial["keys_destroyed"], &trial["complete"]),
        (&json!(1), &json!(true)),
        "{trial}"
    );
    assert_eq!(erase(team.deployment(), &team.tenant, "asha", &[]).code, 2);
    assert_eq!(team.seen().await, before, "nothing was done");

    // Killed half-way, when only the log knows; and run again.
    let args = ["erase", "--tenant", &team.tenant, "--user", "asha", "--yes"];
    let mut killed = team.deployment().command(&args);
    let killed = killed
        .env("TIDELOG_DRILL_STOP", "erase.logged:kill")
        .output()
        .expect("tidelog can be run");
    assert!(!killed.status.success(), "{killed:?}");
    let done = erase(
        team.deployment(),
        &team.tenant,
        "asha",
        &["--yes", "--as", "olga"],
    )
    .json();
    assert_eq!(
        (&done["keys_destroyed_before"], &done["complete"]),
        (&json!(1), &json!(true)),
        "{done}"
    );
    let audited = team.deployment().run(&["audit"]).ok();
    assert!(audited.contains("erase") && audited.contains("olga"), "{audited}");

    let forgotten = eventually("gateways show it no more", async || {
        let seen = team.seen().await;
        (!seen.iter().any(|seen| text(seen).contains(&hers))).then_some(seen)
    })
    .await;
    for (eyes, (before, after)) in before.iter().zip(&forgotten).enumerate() {
        let (mut before, mut after) = (without(before, &hers), after.clone());
        // Of hers, what was no string is null now: told above, not compared here.
        let others = |seen: &mut BTreeMap<String, Value>| {
            seen.retain(|_, value| !value.to_string().contains("[erased]"))
        };
        let all = (before.len(), after.len());
        others(&mut before);
        others(&mut after);
        assert_eq!(before, after, "eyes {eyes}: what others wrote reads as before");
        assert!(all.0 == all.1 && !after.is_empty());
    }
    let (domain, ticket) = team.histories[0];
    let record = team
        .ben
        .record(domain, &ticket.to_string())
        .await
        .expect(200)
        .json();
    assert_eq!(
        record["ticketdesc"], "[erased]",
        "sent again by another, it stays hers"
    );
    assert_eq!(record["comments"], json!(team.words.of("ben", "resent")));
    assert_eq!(record["own"]["decided"], json!(team.words.of("sue", "decided")));
    // What Ben sent again lies in the log as he sent it, under his key; the fold gave it hers.
    let told = tailed(team.deployment(), true);
    let events: Vec<Value> = told
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let with_hers = events.iter().filter(|event| event.to_string().contains(&hers));
    let users: Vec<&Value> = with_hers.map(|event| &event["user"]).collect();
    assert_eq!(users, ["ben"], "of hers, only what he sent");
    team.is_nowhere_in_plain(&team.words.stem).await;

    // She posts again, and that lives.
    let anew = json!({"mobile_id": Uuid::new_v4(), "ticketdesc": team.words.of("asha", "anew")});
    team.asha.apply("helpdesk", anew.clone()).await;
    holds(&seen(&team.asha, &[], &[]).await, "helpdesk", &anew);
    let rebuilt = team.deployment().run(&["rebuild", "--domain", "helpdesk"]);
    assert_eq!(rebuilt.code, 0, "{rebuilt:?}");
    let verified = team.deployment().run(&["verify", "--domain", "journal"]);
    assert_eq!(verified.code, 0, "{verified:?}");
    assert_eq!(team.service.process.terminate(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_through_two_gateways_is_one_and_a_projection_made_anew_has_forgotten_too() {
    let settings = |deployment: Deployment| {
        deployment
            .with(SECRET.0, SECRET.1)
            .with("TIDELOG_DRILL_NUMBERS", "key_life_ms=300")
    };
    let service = Service::of(settings(Deployment::new("sealing-twice")));
    let (words, tenant) = (Words::new(), tenant("sealing-twice"));
    let beside = |schema: &str| {
        let mut beside = settings(Deployment::new("sealing-beside"));
        beside.prefix = service.deployment.prefix.clone();
        schema.clone_into(&mut beside.schema);
        beside
    };
    let second = beside(&service.deployment.schema);
    let gateway = second.start_listening("ingest", "/readyz");

    let ticket = json!({"mobile_id": Uuid::new_v4(), "ticketdesc": words.of("asha", "ticket"), "tags": [words.of("asha", "tag")]});
    let bens = json!({"mobile_id": Uuid::new_v4(), "ticketdesc": words.of("ben", "ticket")});
    let (here, there) = (
        Phone::new(&service.deployment, &tenant, "asha"),
        Phone::new(&second, &tenant, "asha"),
    );
    here.apply("helpdesk", ticket.clone()).await;
    let key = Uuid::new_v4().to_string();
    let again = there
        .post_keyed("helpdesk", &key, &[ticket.to_string()])
        .await
        .expect(200)
        .json();
    assert_eq!(again["synced_items"][0]["status"], "duplicate", "{again}");
    let ben = Phone::new(&second, &tenant, "ben");
    ben.apply("helpdesk", bens.clone()).await;
    let topic = service.deployment.topic("sync.helpdesk.v1");
    let records = read_topic(&service.deployment.brokers, &topic);
    let hers = |record: &&crate::support::kafka::Record| record.header("ce_source").contains("/users/asha/");
    let values: Vec<&str> = records
        .iter()
        .filter(hers)
        .map(|record| record.value.as_str())
        .collect();
    assert!(
        values.len() == 2 && values[0] != values[1],
        "two keys: {values:?}"
    );
    holds(&seen(&here, &[], &[]).await, "helpdesk", &ticket);

    let done = erase(&service.deployment, &tenant, "asha", &["--yes"]).json();
    assert_eq!(done["keys_destroyed"], 2, "{done}");
    let anew = beside(&format!("{}_anew", service.deployment.schema));
    let projection = Service::of(anew);
    let eyes = Phone::new(&projection.deployment, &tenant, "ben");
    let seen = eventually("the new projection has both", async || {
        let seen = seen(&eyes, &[], &[]).await;
        (seen.len() == 2).then_some(seen)
    })
    .await;
    holds(&seen, "helpdesk", &bens);
    let told = text(&seen);
    assert!(
        told.contains("[erased]") && !told.contains(&words.of("asha", "")),
        "{told}"
    );
    let partitions: Vec<i32> = records.iter().map(|record| record.partition).collect();
    assert!(
        partitions
            .iter()
            .all(|partition| (0..PARTITIONS).contains(partition))
    );
    assert_eq!(projection.process.terminate(), 0);
    assert_eq!(gateway.terminate(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_secret_nothing_is_sealed_and_an_erasure_says_so() {
    let service = Service::start("never-sealed");
    let (words, tenant) = (Words::new(), tenant("never-sealed"));
    let asha = Phone::new(&service.deployment, &tenant, "asha");
    let sent = format!(
        r#"{{"mobile_id":"{}" , "ticketdesc":"{}"}}"#,
        Uuid::new_v4(),
        words.of("asha", "ticket")
    );
    let answer = asha.post("helpdesk", &[&sent]).await.expect(200).json();
    assert_eq!(answer["synced_items"][0]["status"], "created", "{answer}");
    let topic = service.deployment.topic("sync.helpdesk.v1");
    let records = read_topic(&service.deployment.brokers, &topic);
    assert_eq!(
        records
            .iter()
            .map(|record| record.value.as_str())
            .collect::<Vec<_>>(),
        [&sent]
    );
    let keys = service.deployment.topic("sync.keys.v1");
    assert!(read_topic(&service.deployment.brokers, &keys).is_empty());

    let nobody = erase(&service.deployment, &tenant, "nobody", &["--yes"]).json();
    assert_eq!(
        (&nobody["keys_destroyed"], &nobody["complete"]),
        (&json!(0), &json!(true))
    );
    let told = erase(&service.deployment, &tenant, "asha", &["--yes"]);
    assert_eq!(told.code, 1, "{told:?}");
    let told: Value = serde_json::from_str(&told.stdout).expect("JSON");
    assert_eq!(
        (&told["complete"], &told["never_sealed"]),
        (&json!(false), &json!({"helpdesk": 1}))
    );
    // Sealed from now on: what was sent before reads as it was, and only that stays.
    assert_eq!(service.process.terminate(), 0);
    let service = Service::of(service.deployment.with(SECRET.0, SECRET.1));
    let more = json!({"mobile_id": Uuid::new_v4(), "ticketdesc": words.of("asha", "sealed")});
    asha.apply("helpdesk", more.clone()).await;
    let seen = seen(&asha, &[], &[]).await;
    holds(&seen, "helpdesk", &more);
    holds(&seen, "helpdesk", &serde_json::from_str(&sent).expect("JSON"));
    let args = ["erase", "--tenant", &tenant, "--user", "asha", "--yes"];
    let told = service.deployment.run(&args);
    assert!(
        told.code == 1 && told.stdout.contains("Destroyed 1 key"),
        "{told:?}"
    );
    assert!(
        told.stdout.contains("NOT COMPLETE") && told.stdout.contains("helpdesk 1"),
        "{told:?}"
    );
    let short = service.deployment.clone().with(SECRET.0, "too short");
    let refused = short.run(&["serve"]);
    assert!(
        refused.code == 2 && !refused.stderr.contains("too short"),
        "{refused:?}"
    );
}
