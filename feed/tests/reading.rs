//! What a read answers, and what it refuses: by tenant, role and filter.
#![allow(clippy::unwrap_used)]

mod support;

use support::rows::{BATCH, TICKET, ann, change, position, record, with_a_ticket};
use support::{Asker, Stage, stage};
use tidelog_events::ids::Role;
use uuid::Uuid;

#[tokio::test]
async fn a_page_and_a_record_say_what_the_surface_promises() {
    let stage = with_a_ticket().await;
    let document = serde_json::json!({
        "mobile_id": TICKET, "version": 1, "sync_status": "synced",
        "last_sync_timestamp": "2026-01-31T09:30:00.123000Z",
        "ticketdesc": "The lift is stuck", "priority": "HIGH",
    });
    for path in [
        "changes",
        "changes/",
        "changes?since=2026-01-31T09:30:00.123Z",
        "changes?priority=high&unknown=1",
    ] {
        let page = stage.get(&ann(), &format!("/api/v1/helpdesk/{path}")).await;
        assert_eq!(page["items"], serde_json::json!([document]), "{path}");
        assert_eq!(page["has_more"], false);
        assert_eq!(page["next_timestamp"], "2026-01-31T10:00:00.000000Z");
        let next = format!(
            "/api/v1/helpdesk/changes?cursor={}",
            page["cursor"].as_str().unwrap()
        );
        assert_eq!(stage.get(&ann(), &next).await["items"], serde_json::json!([]));
    }
    for path in [
        "changes?since=2026-01-31T09:30:00.124Z",
        "changes?priority=LOW",
        "changes?priority=LOW&since=2026-01-01T00:00:00Z",
    ] {
        assert_eq!(
            stage.get(&ann(), &format!("/api/v1/helpdesk/{path}")).await["items"],
            serde_json::json!([]),
            "{path}"
        );
    }
    for slash in ["", "/"] {
        assert_eq!(
            stage
                .get(&ann(), &format!("/api/v1/helpdesk/records/{TICKET}{slash}"))
                .await,
            document
        );
    }
    stage.strike().await;
}

#[tokio::test]
async fn what_is_absent_foreign_or_hidden_is_told_by_one_answer() {
    let stage = with_a_ticket().await;
    let absent = "00000000-0000-0000-0000-00000000000b";
    stage.execute(&record("attendance", absent, "bob", "{}", 0)).await;
    let foreign = Asker::new("other", "ann", Role::Operator);
    let cases = [
        (&ann(), format!("helpdesk/records/{absent}")),
        (&ann(), "helpdesk/records/no-uuid".to_owned()),
        (&ann(), "helpdesk/records/%00".to_owned()),
        (&ann(), format!("attendance/records/{absent}")),
        (&foreign, format!("helpdesk/records/{TICKET}")),
    ];
    let mut bodies = Vec::new();
    for (who, path) in cases {
        let told = stage.ask(who, &format!("/api/v1/{path}"), &[]).await;
        assert_eq!(told.status, 404, "{path}");
        bodies.push(told.text);
    }
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    assert_eq!(
        stage.get(&foreign, "/api/v1/helpdesk/changes").await["items"],
        serde_json::json!([])
    );
    stage.strike().await;
}

#[tokio::test]
async fn bad_input_is_told_what_is_wrong() {
    let stage = with_a_ticket().await;
    let cursor = stage.get(&ann(), "/api/v1/helpdesk/changes").await["cursor"]
        .as_str()
        .unwrap()
        .to_owned();
    for (path, status, says) in [
        ("nowhere/changes".to_owned(), 404, "nowhere"),
        ("nowhere/records/x".to_owned(), 404, "nowhere"),
        ("helpdesk/records".to_owned(), 404, ""),
        ("helpdesk/changes?limit=0".to_owned(), 400, "limit"),
        ("helpdesk/changes?limit=1001".to_owned(), 400, "limit"),
        ("helpdesk/changes?since=yesterday".to_owned(), 400, "since"),
        (
            "helpdesk/changes?priority=urgent".to_owned(),
            400,
            "HIGH, MEDIUM, LOW",
        ),
        ("attendance/changes?date_from=soon".to_owned(), 400, "date_from"),
        ("helpdesk/changes?wait_for=x".to_owned(), 400, "wait_for"),
        ("helpdesk/changes?cursor=x".to_owned(), 400, "starts anew"),
        (format!("activity/changes?cursor={cursor}"), 400, "starts anew"),
        (
            format!("helpdesk/changes?cursor={cursor}&since=2026-01-01T00:00:00Z"),
            400,
            "since",
        ),
    ] {
        let told = stage.ask(&ann(), &format!("/api/v1/{path}"), &[]).await;
        assert_eq!(told.status, status, "{path}: {}", told.text);
        assert!(told.text.contains(says), "{path}: {}", told.text);
    }
    let none = warp::test::request().path("/api/v1/helpdesk/changes");
    let none = none
        .reply(&warp::Filter::recover(
            stage.routes.clone(),
            tidelog_http::problem::recover,
        ))
        .await;
    assert_eq!(none.status(), 401);
    stage.strike().await;
}

#[tokio::test]
async fn telemetry_is_found_by_its_identity_however_it_is_written() {
    let stage = stage().await;
    let id = "phone-1/battery%20level/2026";
    stage
        .execute(&record(
            "metrics",
            id,
            "ann",
            r#"{"value": 7, "item_id": "theirs"}"#,
            0,
        ))
        .await;
    stage.execute(&position("telemetry.metrics.v1", 1)).await;
    for path in [
        "phone-1/battery%20level/2026",
        "phone-1%2Fbattery%2520level%2F2026",
        "phone-1/battery%20level/2026/",
    ] {
        let told = stage
            .get(&ann(), &format!("/api/v1/metrics/records/{path}"))
            .await;
        assert_eq!(
            (told["item_id"].as_str(), told["value"].as_i64()),
            (Some(id), Some(7)),
            "{path}"
        );
    }
    let seen = |who: Asker| {
        let stage = &stage;
        async move {
            stage.get(&who, "/api/v1/metrics/changes").await["items"]
                .as_array()
                .unwrap()
                .len()
        }
    };
    assert_eq!(seen(ann()).await, 1);
    assert_eq!(seen(Asker::new("acme", "bob", Role::User)).await, 0);
    assert_eq!(seen(Asker::new("acme", "eve", Role::Supervisor)).await, 1);
    stage.strike().await;
}

/// All entries of all pages of the feed.
async fn entries(stage: &Stage, limit: usize) -> Vec<serde_json::Value> {
    let (mut all, mut from) = (Vec::new(), "since=2026-01-01T00:00:00Z".to_owned());
    loop {
        let page = stage
            .get(&ann(), &format!("/api/v1/helpdesk/changes?limit={limit}&{from}"))
            .await;
        all.extend_from_slice(page["items"].as_array().unwrap());
        if page["has_more"] == false {
            return all;
        }
        from = format!("cursor={}", page["cursor"].as_str().unwrap());
    }
}

#[tokio::test]
async fn a_record_that_changed_ten_times_is_told_once_and_one_that_came_back_is_not_gone() {
    let stage = with_a_ticket().await;
    for offset in 1..10 {
        let operation = ["update", "delete", "create"][offset as usize % 3];
        stage
            .execute(&change(TICKET, operation, offset + 1, 0, offset))
            .await;
    }
    stage.execute(&position("sync.helpdesk.v1", 10)).await;
    for limit in [1, 2, 1000] {
        let told = entries(&stage, limit).await;
        assert_eq!(told.len(), 1, "limit {limit}: {told:?}");
        assert_eq!((&told[0]["version"], told[0].get("deleted")), (&10.into(), None));
    }
    stage
        .execute(&format!(
            "{}{}",
            change(TICKET, "delete", 11, 0, 10),
            position("sync.helpdesk.v1", 11)
        ))
        .await;
    let removal = serde_json::json!({"mobile_id": TICKET, "deleted": true, "version": 11});
    assert_eq!(entries(&stage, 1000).await, [removal]);
    assert_eq!(
        stage.get(&ann(), "/api/v1/helpdesk/changes").await["items"],
        serde_json::json!([])
    );
    stage.strike().await;
}

#[tokio::test]
async fn a_feed_that_lies_in_one_partition_is_read_whole_and_in_the_order_of_time() {
    let stage = with_a_ticket().await;
    let mut sql = String::new();
    for n in 1..=400 {
        // Most changes lie in one partition, and each of the few others is as old as one of these.
        let (partition, offset) = if n % 40 == 0 { (1, n) } else { (0, n) };
        let id = Uuid::from_u128(1000 + n as u128).to_string();
        sql.push_str(&record("helpdesk", &id, "ann", "{}", offset));
        sql.push_str(&format!("DELETE FROM helpdesk_changes WHERE mobile_id = '{id}';"));
        sql.push_str(&change(&id, "create", 1, partition, offset));
    }
    let second = position("sync.helpdesk.v1", 401).replace("', 0, 401", "', 1, 401");
    stage
        .execute(&format!("{sql}{}{second}", position("sync.helpdesk.v1", 401)))
        .await;
    for limit in [7, 100, 1000] {
        let told: Vec<String> = entries(&stage, limit)
            .await
            .iter()
            .map(|item| item["mobile_id"].as_str().unwrap().to_owned())
            .collect();
        let expected: Vec<String> = (1..=400).map(|n| Uuid::from_u128(1000 + n).to_string()).collect();
        assert_eq!((told.len(), &told[1..]), (401, &expected[..]), "limit {limit}");
    }
    stage.strike().await;
}

#[tokio::test]
async fn a_database_that_is_away_is_a_503_that_says_when_to_come_back() {
    let nowhere = stage_nowhere().await;
    for path in [
        "helpdesk/changes".to_owned(),
        format!("helpdesk/records/{TICKET}"),
        format!("sync/batches/{BATCH}"),
    ] {
        let told = nowhere.ask(&ann(), &format!("/api/v1/{path}"), &[]).await;
        assert_eq!(
            (told.status, told.retry_after.as_deref()),
            (503, Some("1")),
            "{path}: {}",
            told.text
        );
    }
}

async fn stage_nowhere() -> Stage {
    support::stage_in("postgres://nobody@127.0.0.1:1/nothing", "s", false).await
}
