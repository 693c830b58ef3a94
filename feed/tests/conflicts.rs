//! What became of records and of the items that were behind them: in what order it is told, by which pages, and to
//! whom.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use support::rows::{BATCH, Clash, TICKET, ann, clash_id, position, record, version, with_a_ticket};
use support::{Asker, Stage, stage};
use tidelog_events::ids::Role;

const ENTRY: &str = "00000000-0000-0000-0000-0000000000e1";
const PHOTO: &str = "00000000-0000-0000-0000-0000000000f1";

fn clash<'a>(domain: &'a str, id: &'a str, offset: i64) -> Clash<'a> {
    Clash {
        domain,
        id,
        user: "ben",
        policy: "server_wins",
        winner: "server",
        offset,
        versions: (2, 2),
        client_doc: r#"{"remarks": "late", "bu": 7}"#,
    }
}

/// A ticket with three versions; between the second and the third an attempt that made none, and the third decided a
/// conflict.
async fn with_a_past() -> Stage {
    let stage = with_a_ticket().await;
    let mut merged = clash("helpdesk", TICKET, 4);
    (merged.policy, merged.winner, merged.versions) = ("merge", "merged", (2, 3));
    let mut sql = version("helpdesk", TICKET, "update", 2, 0, 1);
    sql += &clash("helpdesk", TICKET, 3).sql();
    sql += &version("helpdesk", TICKET, "update", 3, 1, 4);
    sql += &format!(
        "UPDATE helpdesk_changes SET conflict_id = '{}' WHERE \"offset\" = 4;",
        clash_id(4)
    );
    sql += &merged.sql();
    sql += &position("sync.helpdesk.v1", 5);
    stage.execute(&sql).await;
    stage
}

fn path(domain: &str, id: &str) -> String {
    format!("/api/v1/{domain}/records/{id}/history")
}

/// Everything that pages tell, put in one order.
async fn walked(stage: &Stage, path: &str, limit: usize, newest_last: bool) -> Vec<Value> {
    let (mut all, mut cursor): (Vec<Value>, String) = (Vec::new(), String::new());
    loop {
        let page = stage.get(&ann(), &format!("{path}?limit={limit}{cursor}")).await;
        let items = page["items"].as_array().unwrap().clone();
        assert!(items.len() <= limit);
        all = if newest_last {
            [items, all].concat()
        } else {
            [all, items].concat()
        };
        if page["has_more"] == false {
            assert_eq!(page["cursor"], Value::Null);
            return all;
        }
        cursor = format!("&cursor={}", page["cursor"].as_str().unwrap());
    }
}

#[tokio::test]
async fn a_history_tells_every_version_and_every_attempt_oldest_first() {
    let stage = with_a_past().await;
    let page = stage.get(&ann(), &path("helpdesk", TICKET)).await;
    let items = page["items"].as_array().unwrap();
    let told: Vec<_> = items
        .iter()
        .map(|item| (item["version"].as_i64().unwrap(), item["applied"] == true))
        .collect();
    assert_eq!(told, [(1, true), (2, true), (2, false), (3, true)], "{page}");
    assert_eq!(
        items[1],
        json!({
            "version": 2, "applied": true, "operation": "update", "user": "ben", "device": "phone-2",
            "fields": ["remarks"], "before": {"remarks": 2.10}, "changed_at": "2026-01-31T09:30:01.000000Z",
            "client_timestamp": "2026-01-31T09:00:00.000000Z", "batch_id": BATCH, "batch_index": 1,
        })
    );
    assert_eq!(
        (&items[2]["conflict_id"], &items[2]["winner"], &items[2]["fields"]),
        (&json!(clash_id(3)), &json!("server"), &json!(["bu", "remarks"]))
    );
    assert_eq!(
        (&items[3]["conflict_id"], &items[3]["resolution"]),
        (&json!(clash_id(4)), &json!("merge"))
    );
    assert_eq!(
        (&items[0]["before"], &items[0]["operation"]),
        (&json!({}), &json!("create"))
    );
    for limit in [1, 2, 3, 4, 1000] {
        assert_eq!(
            &walked(&stage, &path("helpdesk", TICKET), limit, true).await,
            items,
            "limit {limit}"
        );
    }
    assert_eq!(
        stage.get(&ann(), &format!("{}/", path("helpdesk", TICKET))).await,
        page
    );
    // What Postgres keeps of a number is passed on as it is.
    let raw = stage.ask(&ann(), &path("helpdesk", TICKET), &[]).await;
    assert!(raw.text.contains(r#"{"remarks": 2.10}"#), "{}", raw.text);
    stage.strike().await;
}

#[tokio::test]
async fn conflicts_are_listed_in_the_order_of_time_and_filtered() {
    let stage = with_a_past().await;
    let mut waiting = clash("activity", ENTRY, 9);
    (waiting.policy, waiting.winner) = ("manual", "none");
    stage.execute(&waiting.sql()).await;
    let all = [clash_id(3), clash_id(4), clash_id(9)];
    for limit in [1, 2, 3, 1000] {
        let told = walked(&stage, "/api/v1/conflicts", limit, false).await;
        let ids: Vec<_> = told.iter().map(|c| c["conflict_id"].as_str().unwrap()).collect();
        assert_eq!(ids, all, "limit {limit}");
    }
    for (query, expected) in [
        ("", &all[..]),
        ("status=open", &all[2..]),
        ("status=decided", &all[..2]),
        ("domain=activity", &all[2..]),
        ("domain=metrics", &[]),
        ("device=phone-2", &all[..]),
        ("device=phone-1", &[]),
        ("since=2026-01-31T09:30:04Z", &all[1..]),
        ("until=2026-01-31T09:30:04Z", &all[..1]),
        (
            "since=2026-01-31T09:30:03.000001Z&until=2026-01-31T09:30:05Z",
            &all[1..2],
        ),
    ] {
        for slash in ["", "/"] {
            let page = stage
                .get(&ann(), &format!("/api/v1/conflicts{slash}?{query}"))
                .await;
            let told = page["items"].as_array().unwrap();
            let ids: Vec<_> = told.iter().map(|c| c["conflict_id"].as_str().unwrap()).collect();
            assert_eq!(ids, expected, "{query}");
        }
    }
    let told = stage.get(&ann(), "/api/v1/conflicts?status=open").await["items"][0].clone();
    let mut expected = json!({
        "conflict_id": clash_id(9), "domain": "activity", "mobile_id": ENTRY, "status": "open", "resolution": "manual",
        "winner": "none", "client_version": 1, "server_version": 2, "result_version": 2, "user": "ben",
        "device": "phone-2", "operation": "update", "occurred_at": "2026-01-31T09:30:09.000000Z",
        "client_timestamp": "2026-01-31T09:00:00.000000Z", "server_timestamp": "2026-01-31T09:10:00.000000Z",
    });
    assert_eq!(told, expected);
    expected["client_doc"] = json!({"remarks": "late", "bu": 7});
    expected["server_doc"] = json!({"n": 1.50});
    expected["kept"] = Value::Null;
    let one = format!("/api/v1/conflicts/{}", clash_id(9));
    assert_eq!(stage.get(&ann(), &one).await, expected);
    assert_eq!(stage.get(&ann(), &format!("{one}/")).await, expected);
    stage.strike().await;
}

#[tokio::test]
async fn a_page_is_filled_from_many_conflicts_that_are_not_for_it() {
    let stage = stage().await;
    let mut sql = String::new();
    for offset in 0..1200 {
        let mut one = clash("helpdesk", TICKET, offset);
        one.winner = if offset % 300 == 7 { "none" } else { "server" };
        sql += &one.sql();
    }
    stage.execute(&sql).await;
    let page = stage.get(&ann(), "/api/v1/conflicts?status=open&limit=3").await;
    assert_eq!(
        (page["items"].as_array().unwrap().len(), &page["has_more"]),
        (3, &json!(true))
    );
    let next = format!(
        "/api/v1/conflicts?status=open&limit=3&cursor={}",
        page["cursor"].as_str().unwrap()
    );
    let page = stage.get(&ann(), &next).await;
    assert_eq!(page["items"][0]["conflict_id"], clash_id(907));
    assert_eq!(
        (page["items"].as_array().unwrap().len(), &page["has_more"]),
        (1, &json!(false))
    );
    stage.strike().await;
}

/// An entry of that audience by `ann`, its photo, and an attempt of `ben` on each.
fn entry(audience: &str) -> String {
    let mut sql = String::new();
    for (table, id, parent, offset) in [
        ("journal", ENTRY, None, 10),
        ("journal_media", PHOTO, Some(ENTRY), 20),
    ] {
        let (column, value) = match parent {
            Some(parent) => (", parent_id", format!(", '{parent}'")),
            None => ("", String::new()),
        };
        sql += &format!(
            r#"INSERT INTO {table} (tenant_id, mobile_id, version, deleted, doc, last_sync_timestamp, updated_at, created_at,
                   owner_id, user_id, device_id, run_from, ahead_base, partition, "offset", audience{column})
            VALUES ('acme', '{id}', 2, false, '{{}}', now(), now(), now(), 'ann', 'ann', 'phone-1', 1, 0, 0, {offset},
                   '{audience}'{value});
            INSERT INTO {table}_changes (tenant_id, partition, "offset", mobile_id, version, operation, fields, changed_at,
                   item_time, user_id, device_id, batch_id, batch_index, base_version, item_hash, audience{column})
            VALUES ('acme', 0, {offset}, '{id}', 2, 'create', '{{}}', now(), now(), 'ann', 'phone-1', '{BATCH}', 0, 0,
                   '{BATCH}', '{audience}'{value});"#
        );
        let doc = format!(r#"{{"journal_entry": "{}"}}"#, ENTRY.to_uppercase());
        let domain = table.replace('_', "-");
        let mut attempt = clash(&domain, id, offset + 1);
        attempt.client_doc = &doc;
        sql += &attempt.sql();
    }
    sql
}

/// The offsets of the conflicts that somebody is told of: by the list, and by each one's own path.
async fn sees(stage: &Stage, who: &Asker) -> Vec<i64> {
    let page = stage.get(who, "/api/v1/conflicts").await;
    let listed: Vec<_> = page["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["conflict_id"].as_str().unwrap().to_owned())
        .collect();
    let mut seen = Vec::new();
    for offset in 0..40 {
        let told = stage
            .ask(who, &format!("/api/v1/conflicts/{}", clash_id(offset)), &[])
            .await;
        assert_eq!(told.status == 200, listed.contains(&clash_id(offset)), "{offset}");
        if told.status == 200 {
            seen.push(offset);
        }
    }
    assert_eq!(seen.len(), listed.len());
    seen
}

#[tokio::test]
async fn conflicts_and_history_are_told_to_who_sees_the_record_and_to_supervisors() {
    let stage = stage().await;
    let row = "00000000-0000-0000-0000-0000000000a1";
    let sql = record("attendance", row, "ann", "{}", 0) + &clash("attendance", row, 1).sql();
    stage.execute(&(sql + &entry("{user:ann,user:cleo}"))).await;
    let who = |user, role| Asker::new("acme", user, role);
    let paths = [
        path("attendance", row),
        path("journal", ENTRY),
        path("journal-media", PHOTO),
    ];
    for (asker, conflicts, histories) in [
        (who("ann", Role::User), vec![1, 11, 21], [200, 200, 200]),
        (who("cleo", Role::User), vec![11, 21], [404, 200, 200]),
        // Whose attempts these were, though the records are hidden from him by now.
        (who("ben", Role::User), vec![1, 11, 21], [404, 404, 404]),
        (who("dora", Role::User), vec![], [404, 404, 404]),
        (who("dora", Role::Supervisor), vec![1, 11, 21], [200, 200, 200]),
        (who("emil", Role::Operator), vec![1, 11, 21], [404, 404, 404]),
        (
            Asker::new("other", "ann", Role::Supervisor),
            vec![],
            [404, 404, 404],
        ),
    ] {
        assert_eq!(sees(&stage, &asker).await, conflicts, "{asker:?}");
        for (path, status) in paths.iter().zip(histories) {
            let told = stage.ask(&asker, path, &[]).await;
            assert_eq!(told.status, status, "{asker:?} {path}: {}", told.text);
            assert!(
                status == 404 || told.body["items"].as_array().unwrap().len() == 2,
                "{}",
                told.text
            );
        }
    }
    stage.strike().await;
}

#[tokio::test]
async fn a_deleted_records_past_is_told_to_those_who_saw_it() {
    let stage = stage().await;
    let gone = version("journal", ENTRY, "delete", 3, 10, 12)
        .replace("previous_offset)", "previous_offset, audience_before, audience)")
        .replace(", 10);", ", 10, '{user:ann}', '{}');")
        + "UPDATE journal SET audience = '{}';";
    stage.execute(&(entry("{user:ann}") + &gone)).await;
    let history = stage.ask(&ann(), &path("journal", ENTRY), &[]).await;
    assert_eq!(history.status, 200, "{}", history.text);
    let items = history.body["items"].as_array().unwrap();
    assert_eq!(items.last().unwrap()["operation"], "delete", "{}", history.text);
    assert_eq!(sees(&stage, &ann()).await, [11, 21]);
    let stranger = Asker::new("acme", "dora", Role::User);
    assert_eq!(
        stage.ask(&stranger, &path("journal", ENTRY), &[]).await.status,
        404
    );
    assert_eq!(sees(&stage, &stranger).await, [0_i64; 0]);
    stage.strike().await;
}

#[tokio::test]
async fn the_same_identity_under_another_parent_is_another_record() {
    let stage = stage().await;
    let other = "00000000-0000-0000-0000-0000000000e2";
    let mine = format!(
        r#"INSERT INTO journal_media (tenant_id, mobile_id, parent_id, version, deleted, doc, last_sync_timestamp, updated_at,
               created_at, owner_id, user_id, device_id, run_from, ahead_base, partition, "offset", audience)
        VALUES ('acme', '{PHOTO}', '{other}', 1, false, '{{}}', now(), now(), now(), 'eve', 'eve', 'phone-9', 1, 0, 0, 30,
               '{{user:eve}}');
        INSERT INTO journal_media_changes (tenant_id, partition, "offset", mobile_id, parent_id, version, operation, fields,
               changed_at, item_time, user_id, device_id, batch_id, batch_index, base_version, item_hash, audience)
        VALUES ('acme', 0, 30, '{PHOTO}', '{other}', 1, 'create', '{{}}', now(), now(), 'eve', 'phone-9', '{BATCH}', 0, 0,
               '{BATCH}', '{{user:eve}}');"#
    );
    stage.execute(&(entry("{user:ann}") + &mine)).await;
    let eve = Asker::new("acme", "eve", Role::User);
    assert_eq!(sees(&stage, &eve).await, [0_i64; 0]);
    let items = stage.get(&eve, &path("journal-media", PHOTO)).await["items"].clone();
    assert_eq!(
        (items.as_array().unwrap().len(), &items[0]["user"]),
        (1, &json!("eve"))
    );
    let items = stage.get(&ann(), &path("journal-media", PHOTO)).await["items"].clone();
    assert_eq!(
        (items.as_array().unwrap().len(), &items[0]["user"]),
        (2, &json!("ann"))
    );
    stage.strike().await;
}

#[tokio::test]
async fn what_cannot_be_answered_is_told_plainly() {
    let stage = with_a_past().await;
    let page = stage
        .get(&ann(), &format!("{}?limit=1", path("helpdesk", TICKET)))
        .await;
    let past = page["cursor"].as_str().unwrap().to_owned();
    let page = stage.get(&ann(), "/api/v1/conflicts?limit=1").await;
    let list = page["cursor"].as_str().unwrap().to_owned();
    let foreign = Asker::new("other", "ann", Role::Operator);
    for (who, path, status, says) in [
        (ann(), "conflicts?limit=1001".to_owned(), 400, "limit"),
        (
            ann(),
            "conflicts?status=closed".to_owned(),
            400,
            "open or decided",
        ),
        (ann(), "conflicts?domain=nowhere".to_owned(), 400, "domain"),
        (ann(), "conflicts?cursor=x".to_owned(), 400, "first page"),
        (ann(), format!("conflicts?cursor={past}"), 400, "first page"),
        (
            foreign.clone(),
            format!("conflicts?cursor={list}"),
            400,
            "first page",
        ),
        (ann(), "conflicts/no-uuid".to_owned(), 400, "UUID"),
        (ann(), format!("conflicts/{BATCH}"), 404, "conflict"),
        (foreign, format!("conflicts/{}", clash_id(3)), 404, "conflict"),
        (
            ann(),
            format!("helpdesk/records/{TICKET}/history?limit=0"),
            400,
            "limit",
        ),
        (
            ann(),
            format!("helpdesk/records/{TICKET}/history?cursor={list}"),
            400,
            "first page",
        ),
        (
            ann(),
            format!("helpdesk/records/{BATCH}/history?cursor={past}"),
            400,
            "first page",
        ),
        (ann(), format!("helpdesk/records/{BATCH}/history"), 404, "record"),
        (
            ann(),
            "helpdesk/records/no-uuid/history".to_owned(),
            404,
            "record",
        ),
        (ann(), format!("nowhere/records/{TICKET}/history"), 404, "nowhere"),
        (ann(), "metrics/records/phone-1/history".to_owned(), 404, "record"),
    ] {
        let told = stage.ask(&who, &format!("/api/v1/{path}"), &[]).await;
        assert_eq!(told.status, status, "{path}: {}", told.text);
        assert!(told.text.contains(says), "{path}: {}", told.text);
    }
    stage.strike().await;
}
