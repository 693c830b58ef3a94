//! A tenant sees its own data, and in it a user what is theirs to see: in changes, records and receipts alike; and
//! what leaves that sight arrives as a removal at those who saw it, and at nobody else.

use std::sync::OnceLock;

use serde_json::{Value, json};
use tidelog_http::auth::Role;
use uuid::Uuid;

use crate::support::items::{id_of, ticket, tickets};
use crate::support::phone::{Phone, Replica, tenant};
use crate::support::service::{Deployment, Service};

static SERVICE: OnceLock<Service> = OnceLock::new();

fn deployment() -> &'static Deployment {
    &Service::shared(&SERVICE, "visibility").deployment
}

/// The people of a tenant.
struct People {
    author: Phone,
    colleague: Phone,
    stranger: Phone,
    supervisor: Phone,
    operator: Phone,
}

fn people(name: &str) -> People {
    let tenant = tenant(name);
    let phone = |user: &str, role| Phone::of(deployment(), &tenant, user, "phone-1", role);
    People {
        author: phone("asha", Role::User),
        colleague: phone("ben", Role::User),
        stranger: phone("cleo", Role::User),
        supervisor: phone("dora", Role::Supervisor),
        operator: phone("emil", Role::Operator),
    }
}

impl People {
    fn all(&self) -> [(&'static str, &Phone); 5] {
        [
            ("author", &self.author),
            ("colleague", &self.colleague),
            ("stranger", &self.stranger),
            ("supervisor", &self.supervisor),
            ("operator", &self.operator),
        ]
    }
}

fn entry(id: Uuid, scope: &str) -> Value {
    json!({
        "mobile_id": id, "entry_type": "site_inspection", "timestamp": "2026-03-01T10:00:00Z",
        "privacy_scope": scope, "team_members": ["ben"],
    })
}

fn medium(id: Uuid, entry: Uuid) -> Value {
    json!({
        "mobile_id": id, "journal_entry": entry, "media_type": "PHOTO",
        "original_filename": "gate.jpg", "mime_type": "image/jpeg",
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_entry_and_its_media_are_seen_by_whom_its_scope_names() {
    for (scope, sees) in [
        ("private", vec!["author"]),
        ("manager", vec!["author", "supervisor"]),
        ("team", vec!["author", "colleague"]),
        ("aggregate", vec!["author"]),
        (
            "shared",
            vec!["author", "colleague", "stranger", "supervisor", "operator"],
        ),
    ] {
        let people = people(scope);
        let (id, photo) = (Uuid::new_v4(), Uuid::new_v4());
        people.author.apply("journal", entry(id, scope)).await;
        people.author.apply("journal-media", medium(photo, id)).await;
        for (name, phone) in people.all() {
            let expected = usize::from(sees.contains(&name));
            for (domain, id) in [("journal", id), ("journal-media", photo)] {
                let what = format!("{domain} of scope {scope} by {name}");
                for query in ["", "since=2020-01-01T00:00:00Z"] {
                    assert_eq!(phone.pull(domain, query).await.len(), expected, "{what}, {query}");
                }
                let status = if expected == 1 { 200 } else { 404 };
                assert_eq!(
                    phone.record(domain, &id.to_string()).await.status,
                    status,
                    "{what}"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_scope_an_entry_is_private() {
    let people = people("default");
    let mut item = entry(Uuid::new_v4(), "private");
    item.as_object_mut().expect("an object").remove("privacy_scope");
    people.author.apply("journal", item).await;
    assert_eq!(people.author.pull("journal", "").await.len(), 1);
    assert!(people.supervisor.pull("journal", "").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_turns_private_is_removed_from_those_who_saw_it() {
    let people = people("turns");
    let (id, photo) = (Uuid::new_v4(), Uuid::new_v4());
    people.author.apply("journal", entry(id, "team")).await;
    people.author.apply("journal-media", medium(photo, id)).await;
    let mut copies = Vec::new();
    for domain in ["journal", "journal-media"] {
        for (name, phone) in people.all() {
            let mut copy = Replica::default();
            copy.catch_up(phone, domain, 10).await;
            copies.push((name, phone, domain, copy));
        }
    }
    people
        .author
        .apply(
            "journal",
            json!({"mobile_id": id, "version": 1, "privacy_scope": "private"}),
        )
        .await;
    for (name, phone, domain, copy) in &mut copies {
        let told = copy.catch_up(phone, domain, 10).await;
        let removals = told.iter().filter(|item| item["deleted"] == true).count();
        let expected = match *name {
            "author" => (1, 0, 1),
            "colleague" => (1, 1, 0),
            _ => (0, 0, 0),
        };
        assert_eq!(
            (told.len(), removals, copy.records.len()),
            expected,
            "{name} in {domain}: {told:?}"
        );
    }
    people
        .colleague
        .record("journal", &id.to_string())
        .await
        .expect(404);
    // And back into sight, of everybody.
    people
        .author
        .apply(
            "journal",
            json!({"mobile_id": id, "version": 2, "privacy_scope": "shared"}),
        )
        .await;
    for (name, phone, domain, copy) in &mut copies {
        let told = copy.catch_up(phone, domain, 10).await;
        assert_eq!(
            (told.len(), copy.records.len()),
            (1, 1),
            "{name} in {domain}: {told:?}"
        );
    }
    // A deletion is told to those who saw it: all.
    people
        .author
        .apply(
            "journal",
            json!({"mobile_id": id, "version": 3, "is_deleted": true}),
        )
        .await;
    for (name, phone, domain, copy) in &mut copies {
        let told = copy.catch_up(phone, domain, 10).await;
        assert_eq!(
            (told.len(), copy.records.len()),
            (1, 0),
            "{name} in {domain}: {told:?}"
        );
        assert_eq!(told[0]["deleted"], true);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_is_told_only_to_those_who_could_see_the_record() {
    let people = people("deleted");
    let id = Uuid::new_v4();
    people.author.apply("journal", entry(id, "private")).await;
    let mut copies: Vec<(&str, &Phone, Replica)> = Vec::new();
    for (name, phone) in people.all() {
        let mut copy = Replica::default();
        copy.catch_up(phone, "journal", 10).await;
        copies.push((name, phone, copy));
    }
    people
        .author
        .apply(
            "journal",
            json!({"mobile_id": id, "version": 1, "sync_status": "pending_delete"}),
        )
        .await;
    for (name, phone, copy) in &mut copies {
        let told = copy.catch_up(phone, "journal", 10).await;
        assert_eq!(told.len(), usize::from(*name == "author"), "{name}: {told:?}");
        let since = phone.pull("journal", "since=2020-01-01T00:00:00Z").await;
        assert_eq!(since.len(), usize::from(*name == "author"), "{name}: {since:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn media_that_come_before_their_entry_are_their_owners_and_follow_it_later() {
    let people = people("media");
    let (id, photo) = (Uuid::new_v4(), Uuid::new_v4());
    people.author.apply("journal-media", medium(photo, id)).await;
    let mut colleague = Replica::default();
    assert!(
        colleague
            .catch_up(&people.colleague, "journal-media", 10)
            .await
            .is_empty()
    );
    assert_eq!(people.author.pull("journal-media", "").await.len(), 1);
    people.author.apply("journal", entry(id, "team")).await;
    let told = colleague.catch_up(&people.colleague, "journal-media", 10).await;
    assert_eq!(
        (told.len(), &told[0]["mobile_id"]),
        (1, &json!(photo)),
        "{told:?}"
    );
    assert_eq!(told[0]["version"], 1, "who sees it is no version of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_writes_a_journal_entry() {
    let people = people("writes");
    let (private, team, shared) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    for (id, scope) in [(private, "private"), (team, "team"), (shared, "shared")] {
        people.author.apply("journal", entry(id, scope)).await;
    }
    let edit = |id, version| json!({"mobile_id": id, "version": version, "content": "edited"});
    people.colleague.apply("journal", edit(team, 1)).await;
    people.stranger.apply("journal", edit(shared, 1)).await;
    for (phone, id, version) in [
        (&people.colleague, private, 1),
        (&people.stranger, team, 2),
        (&people.supervisor, private, 1),
    ] {
        let answer = phone
            .post("journal", &[edit(id, version).to_string()])
            .await
            .expect(200)
            .json();
        assert_eq!(answer["errors"][0]["error_code"], "FORBIDDEN", "{answer}");
        assert!(answer["errors"][0].get("server_version").is_none(), "{answer}");
    }
    // An edit never changes the owner: turned private, it is the author's alone.
    people
        .stranger
        .apply(
            "journal",
            json!({"mobile_id": shared, "version": 2, "privacy_scope": "private"}),
        )
        .await;
    people
        .stranger
        .record("journal", &shared.to_string())
        .await
        .expect(404);
    people
        .author
        .record("journal", &shared.to_string())
        .await
        .expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn attendance_is_seen_by_its_owner_alone() {
    let people = people("attendance");
    let id = Uuid::new_v4();
    let row = json!({"mobile_id": id, "deviceid": "phone-1", "gpslocation": {"type": "Point", "coordinates": [1, 2]}});
    people.author.apply("attendance", row).await;
    for (name, phone) in people.all() {
        let expected = usize::from(name == "author");
        assert_eq!(phone.pull("attendance", "").await.len(), expected, "{name}");
        assert_eq!(
            phone.record("attendance", &id.to_string()).await.status == 200,
            expected == 1,
            "{name}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn telemetry_is_ones_own_and_supervisors_and_operators_see_all() {
    let people = people("telemetry");
    let item = json!({"verification_id": "v", "timestamp": "2026-03-01T10:00:00Z", "verified": true});
    people.author.post("voice", &[item.to_string()]).await.expect(200);
    for (name, phone) in people.all() {
        let expected = usize::from(["author", "supervisor", "operator"].contains(&name));
        assert_eq!(phone.pull("voice", "").await.len(), expected, "{name}");
        assert_eq!(
            phone.record("voice", "v").await.status == 200,
            expected == 1,
            "{name}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_tenants_records_are_as_if_absent() {
    let (mine, foreign) = (people("mine"), people("foreign"));
    let id = Uuid::new_v4();
    mine.author
        .apply("helpdesk", ticket(id, "A ticket of my tenant"))
        .await;
    for (_, phone) in foreign.all() {
        assert!(phone.pull("helpdesk", "").await.is_empty());
        assert!(
            phone
                .pull("helpdesk", "since=2020-01-01T00:00:00Z")
                .await
                .is_empty()
        );
        let there = phone.record("helpdesk", &id.to_string()).await;
        let absent = phone.record("helpdesk", &Uuid::new_v4().to_string()).await;
        assert_eq!(
            (there.status, &there.body),
            (404, &absent.body),
            "{}",
            there.text()
        );
    }
    // The same identity in another tenant is another record, new to it.
    let entry = foreign
        .author
        .apply("helpdesk", ticket(id, "A ticket of their tenant"))
        .await;
    assert_eq!(
        (&entry["status"], &entry["server_version"]),
        (&"created".into(), &1.into())
    );
    let again = json!({"mobile_id": id, "version": 1, "comments": "edited"});
    foreign.author.apply("helpdesk", again).await;
    let record = mine
        .author
        .record("helpdesk", &id.to_string())
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&record["version"], &record["ticketdesc"]),
        (&1.into(), &"A ticket of my tenant".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_that_was_lent_shows_no_more_than_ones_own() {
    let people = people("lent");
    people
        .author
        .post("journal", &[entry(Uuid::new_v4(), "private").to_string()])
        .await
        .expect(200);
    let before = people
        .author
        .page("journal", "since=2020-01-01T00:00:00Z&limit=1")
        .await;
    people
        .author
        .post("journal", &[entry(Uuid::new_v4(), "private").to_string()])
        .await
        .expect(200);
    let cursor = before["cursor"].as_str().expect("a cursor");
    assert_eq!(
        people
            .author
            .pull("journal", &format!("cursor={cursor}"))
            .await
            .len(),
        1
    );
    assert!(
        people
            .stranger
            .pull("journal", &format!("cursor={cursor}"))
            .await
            .is_empty()
    );
    let entries = tickets(1);
    people.author.post("helpdesk", &entries).await.expect(200);
    assert!(
        people
            .stranger
            .record("helpdesk", &id_of(&entries[0]))
            .await
            .status
            == 200
    );
}
