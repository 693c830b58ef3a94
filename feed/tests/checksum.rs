//! Whoever follows the feed has the count and sum that the service tells, at every cursor that they ever stood at; what is
//! wrong in a copy is found by going down, and nothing else; and others' records, writers and bad input change none of it.
#![allow(clippy::unwrap_used)]

mod support;

use std::cell::Cell;

use serde_json::{Value, json};
use support::proof::{Copy, Wrong, descend, tally, told};
use support::rows::{TICKET, ann, change, position, record, with_a_ticket};
use support::world::{DOMAINS, Random, TENANTS, USERS, World};
use support::{Asker, Stage, stage};
use tidelog_events::ids::Role;

/// Somebody who follows a domain, what they hold, and every place where they stood with what they held there.
struct Follower {
    who: Asker,
    domain: &'static str,
    cursor: Option<String>,
    copy: Copy,
    stood: Vec<(String, Copy)>,
}

fn id_column(domain: &str) -> &'static str {
    if domain == "metrics" {
        "item_id"
    } else {
        "mobile_id"
    }
}

fn checksum(domain: &str, query: &str) -> String {
    format!("/api/v1/{domain}/checksum?{query}")
}

impl Follower {
    /// Takes a page; tells whether more follows. Amid a pull there is nothing to be told.
    async fn pull(&mut self, stage: &Stage, limit: usize) -> bool {
        let from = self
            .cursor
            .as_ref()
            .map_or(String::new(), |cursor| format!("&cursor={cursor}"));
        let path = format!("/api/v1/{}/changes?limit={limit}{from}", self.domain);
        let page = stage.get(&self.who, &path).await;
        for item in page["items"].as_array().unwrap() {
            let id = item[id_column(self.domain)].as_str().unwrap().to_owned();
            match item.get("deleted") {
                Some(_) => self.copy.remove(&id),
                None => self.copy.insert(id, item["version"].as_i64().unwrap()),
            };
        }
        let cursor = page["cursor"].as_str().unwrap().to_owned();
        let more = page["has_more"].as_bool().unwrap();
        if more {
            let told = stage
                .ask(
                    &self.who,
                    &checksum(self.domain, &format!("cursor={cursor}")),
                    &[],
                )
                .await;
            assert_eq!(told.status, 409, "{}", told.text);
            assert!(told.text.contains("has_more"), "{}", told.text);
        } else {
            self.stood.push((cursor.clone(), self.copy.clone()));
        }
        self.cursor = Some(cursor);
        more
    }

    async fn is_proved(&self, stage: &Stage, what: &str) {
        for (at, (cursor, copy)) in self.stood.iter().enumerate() {
            let body = stage
                .get(&self.who, &checksum(self.domain, &format!("cursor={cursor}")))
                .await;
            let which = format!("{what}: {:?} {} at cursor {at}", self.who, self.domain);
            assert_eq!(told(&body), tally(copy, ""), "{which}");
            assert_eq!(body["cursor"], cursor.as_str(), "{which}");
            let ask = async |prefix: String| {
                stage
                    .get(
                        &self.who,
                        &checksum(self.domain, &format!("cursor={cursor}&prefix={prefix}")),
                    )
                    .await
            };
            assert_eq!(
                descend(copy, id_column(self.domain), ask).await,
                Wrong::default(),
                "{which}"
            );
        }
    }
}

fn followers() -> Vec<Follower> {
    let mut followers = Vec::new();
    for tenant in TENANTS {
        for (user, role) in [
            (USERS[0], Role::User),
            (USERS[1], Role::User),
            ("eve", Role::Supervisor),
        ] {
            for domain in DOMAINS {
                followers.push(Follower {
                    who: Asker::new(tenant, user, role),
                    domain,
                    cursor: None,
                    copy: Copy::new(),
                    stood: Vec::new(),
                });
            }
        }
    }
    followers
}

async fn history(seed: u64) {
    let stage = stage().await;
    let (mut world, mut random, mut followers) = (World::default(), Random(seed), followers());
    for round in 0..8 {
        for _ in 0..random.below(60) {
            world.append(&mut random);
        }
        world.apply_some(&stage, &mut random, round == 7).await;
        for follower in &mut followers {
            let limit = 1 + random.below(7);
            match random.below(3) {
                0 if round < 7 => {}
                1 if round < 7 => drop(follower.pull(&stage, limit).await),
                _ => while follower.pull(&stage, limit).await {},
            }
        }
    }
    for follower in &followers {
        follower.is_proved(&stage, &format!("seed {seed}")).await;
        // Who asks without a cursor is told what there is, and where that is.
        let body = stage.get(&follower.who, &checksum(follower.domain, "")).await;
        assert_eq!(
            told(&body),
            tally(&world.seen(&follower.who, follower.domain), ""),
            "seed {seed}"
        );
        let cursor = format!("cursor={}", body["cursor"].as_str().unwrap());
        let there = stage
            .get(&follower.who, &checksum(follower.domain, &cursor))
            .await;
        assert_eq!(there, body);
    }
    stage.strike().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_has_the_sum_of_every_cursor_that_they_ever_held() {
    let seeds: u64 = std::env::var("TIDELOG_TEST_SEEDS").map_or(2, |n| n.parse().unwrap());
    for seed in 0..seeds {
        history(seed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_change_nothing_at_a_cursor_that_somebody_holds() {
    let stage = stage().await;
    let (mut world, mut random, mut followers) = (World::default(), Random(77), followers());
    for _ in 0..80 {
        world.append(&mut random);
    }
    world.apply_some(&stage, &mut random, true).await;
    for follower in &mut followers {
        while follower.pull(&stage, 1000).await {}
    }
    for _ in 0..200 {
        world.append(&mut random);
    }
    let written = Cell::new(false);
    let writing = async {
        world.apply_some(&stage, &mut random, true).await;
        written.set(true);
    };
    let reading = async {
        let mut rounds = 0;
        while !written.get() {
            for follower in &followers {
                follower.is_proved(&stage, "while others write").await;
                // What is told without a cursor is of one moment: it is told again for the cursor that came with it.
                let now = stage.get(&follower.who, &checksum(follower.domain, "")).await;
                let cursor = now["cursor"].as_str().unwrap();
                let again = stage
                    .get(
                        &follower.who,
                        &checksum(follower.domain, &format!("cursor={cursor}")),
                    )
                    .await;
                assert_eq!(now, again);
            }
            rounds += 1;
        }
        rounds
    };
    let ((), rounds) = tokio::join!(writing, reading);
    assert!(rounds > 0);
    stage.strike().await;
}

/// Tickets of Ann's tenant and of another one, in three partitions.
async fn many(stage: &Stage, count: i64) {
    let rows = |table: &str, columns: &str, values: &str| {
        format!(
            r#"INSERT INTO {table} (tenant_id, mobile_id, version, {columns}, user_id, device_id, partition, "offset")
               SELECT t, md5(s::text)::uuid, 1, {values}, 'ann', 'phone-1', s % 3, s
                 FROM generate_series(1, {count}) s, unnest(ARRAY['acme', 'other']) t;"#
        )
    };
    let state = rows(
        "helpdesk",
        "deleted, doc, last_sync_timestamp, updated_at, created_at, owner_id, run_from, ahead_base",
        "false, '{}', now(), now(), now(), 'ann', 0, 0",
    );
    let feed = rows(
        "helpdesk_changes",
        "operation, fields, changed_at, item_time, batch_id, batch_index, base_version, item_hash",
        "'create', '{}', now(), now(), md5(t)::uuid, s, 0, md5(t)::uuid",
    );
    let positions = format!(
        "INSERT INTO positions (topic, partition, next_offset, applied_through)
         SELECT 't.sync.helpdesk.v1', p, {count} + 1, now() FROM generate_series(0, 2) p;"
    );
    stage.execute(&format!("{state}{feed}{positions}ANALYZE;")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_in_a_copy_is_found_by_going_down_and_nothing_else() {
    let stage = stage().await;
    many(&stage, 5000).await;
    let mut follower = followers().remove(0);
    assert_eq!(follower.domain, "helpdesk");
    while follower.pull(&stage, 1000).await {}
    follower.is_proved(&stage, "whole").await;
    let (cursor, whole) = follower.stood.pop().unwrap();
    let ids: Vec<String> = whole.keys().cloned().collect();
    let mut copy = whole.clone();
    copy.remove(&ids[17]);
    copy.insert(ids[1234].clone(), 7);
    let stranger = "ffffffff-0000-4000-8000-000000000001".to_owned();
    copy.insert(stranger.clone(), 1);
    // The service goes on meanwhile; the cursor stays what it was.
    let gone = change(&ids[40], "delete", 2, 0, 5001);
    let newer = change(&ids[41], "update", 2, 1, 5001);
    let moved = "UPDATE positions SET next_offset = 5002;";
    stage.execute(&format!("{gone}{newer}{moved}")).await;
    let asks = Cell::new(0);
    let ask = async |prefix: String| {
        asks.set(asks.get() + 1);
        stage
            .get(
                &follower.who,
                &checksum("helpdesk", &format!("cursor={cursor}&prefix={prefix}")),
            )
            .await
    };
    let wrong = descend(&copy, "mobile_id", &ask).await;
    assert_eq!(wrong.get.iter().collect::<Vec<_>>(), [&ids[17], &ids[1234]]);
    assert_eq!(wrong.drop.iter().collect::<Vec<_>>(), [&stranger]);
    assert!(asks.get() <= 1 + 3 * 2, "{} questions", asks.get());
    // One identity alone, as far down as it goes; and where nothing is.
    let first = ask("0123456789abcdef".into()).await;
    assert_eq!((&first["count"], &first["records"]), (&json!(0), &json!([])));
    follower.stood.push((cursor, whole.clone()));
    follower.is_proved(&stage, "an old cursor").await;
    while follower.pull(&stage, 1000).await {}
    follower.is_proved(&stage, "the new one").await;
    assert_eq!(follower.copy.len(), whole.len() - 1);
    stage.strike().await;
}

/// The vector of the documentation.
#[tokio::test]
async fn a_sum_is_the_one_that_any_language_gets() {
    let stage = with_a_ticket().await;
    let second = "4f0c2f5e-8a35-4c1b-9d0e-2b7a6c3d1e90";
    let rows = record("helpdesk", second, "ann", "{}", 1);
    let later = change(second, "update", 3, 0, 2);
    stage
        .execute(&format!("{rows}{later}{}", position("sync.helpdesk.v1", 3)))
        .await;
    for path in ["checksum", "checksum/"] {
        let body = stage.get(&ann(), &format!("/api/v1/helpdesk/{path}")).await;
        assert_eq!(
            (&body["count"], &body["hash"]),
            (&json!(2), &json!("244ea853021596ba"))
        );
        assert_eq!(body.as_object().unwrap().len(), 3, "{body}");
    }
    let body = stage.get(&ann(), &checksum("helpdesk", "prefix=39")).await;
    assert_eq!(body["records"], json!([{"mobile_id": TICKET, "version": 1}]));
    assert_eq!(
        (&body["prefix"], &body["hash"]),
        (&json!("39"), &json!("c0fdc342c8396a0c"))
    );
    let empty = stage.get(&ann(), &checksum("activity", "")).await;
    assert_eq!(
        (&empty["count"], &empty["hash"]),
        (&json!(0), &json!("0000000000000000"))
    );
    stage.strike().await;
}

/// A person may decide for a deletion of what somebody else has deleted meanwhile: the record was gone before that too.
#[tokio::test]
async fn a_record_that_is_deleted_twice_was_gone_in_between() {
    let stage = with_a_ticket().await;
    let deleted = |version, offset: i64| {
        support::rows::version("helpdesk", TICKET, "delete", version, offset - 1, offset)
    };
    stage
        .execute(&format!("{}{}", deleted(2, 1), position("sync.helpdesk.v1", 2)))
        .await;
    let path = checksum("helpdesk", "");
    let before = stage.get(&ann(), &path).await;
    assert_eq!(before["count"], 0);
    stage
        .execute(&format!("{}{}", deleted(3, 2), position("sync.helpdesk.v1", 3)))
        .await;
    let query = format!("cursor={}", before["cursor"].as_str().unwrap());
    assert_eq!(stage.get(&ann(), &checksum("helpdesk", &query)).await, before);
    stage.strike().await;
}

#[tokio::test]
async fn bad_input_is_told_what_is_wrong() {
    let stage = with_a_ticket().await;
    let cursor = async |who: &Asker, domain: &str| -> String {
        let body: Value = stage.get(who, &format!("/api/v1/{domain}/changes")).await;
        body["cursor"].as_str().unwrap().to_owned()
    };
    let (mine, foreign) = (
        cursor(&ann(), "helpdesk").await,
        Asker::new("other", "ann", Role::Operator),
    );
    let theirs = cursor(&foreign, "helpdesk").await;
    for (query, status, says) in [
        ("nowhere/checksum".to_owned(), 404, "nowhere"),
        ("helpdesk/checksum?cursor=x".to_owned(), 400, "starts anew"),
        ("helpdesk/checksum?cursor=".to_owned(), 400, "starts anew"),
        (format!("helpdesk/checksum?cursor={theirs}"), 400, "starts anew"),
        (format!("activity/checksum?cursor={mine}"), 400, "starts anew"),
        (
            format!("helpdesk/checksum?cursor={mine}&cursor={mine}"),
            400,
            "twice",
        ),
        ("helpdesk/checksum?prefix=XYZ".to_owned(), 400, "prefix"),
        ("helpdesk/checksum?priority=HIGH".to_owned(), 400, "priority"),
        (
            "helpdesk/checksum?since=2026-01-01T00:00:00Z".to_owned(),
            400,
            "since",
        ),
        ("helpdesk/checksum?wait_for=x".to_owned(), 400, "wait_for"),
    ] {
        let told = stage.ask(&ann(), &format!("/api/v1/{query}"), &[]).await;
        assert_eq!(told.status, status, "{query}: {}", told.text);
        assert!(told.text.contains(says), "{query}: {}", told.text);
    }
    // The same cursor of the other tenant holds nothing of this one.
    let body = stage
        .get(
            &foreign,
            &checksum("helpdesk", &format!("cursor={theirs}&prefix=")),
        )
        .await;
    assert_eq!((&body["count"], &body["records"]), (&json!(0), &json!([])));
    // The database was brought back from a backup: what the cursor has seen is not there yet.
    stage.execute("UPDATE positions SET next_offset = 0").await;
    let told = stage
        .ask(&ann(), &checksum("helpdesk", &format!("cursor={mine}")), &[])
        .await;
    assert_eq!(
        (told.status, told.retry_after.as_deref()),
        (503, Some("1")),
        "{}",
        told.text
    );
    assert!(told.text.contains("ahead"), "{}", told.text);
    let none = warp::test::request().path("/api/v1/helpdesk/checksum");
    let none = none
        .reply(&warp::Filter::recover(
            stage.routes.clone(),
            tidelog_http::problem::recover,
        ))
        .await;
    assert_eq!(none.status(), 401);
    stage.strike().await;
}
