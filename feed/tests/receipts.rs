//! Receipts: what became of a batch, for its sender, and reading one's own write.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use support::rows::{BATCH, TICKET, ann, position, receipt, record, with_a_ticket};
use support::{Asker, PREFIX};
use tidelog_events::batch::BatchId;
use tidelog_events::ids::{Role, TenantId};
use tidelog_events::outcome::{FindOutcomes, Outcome};
use tidelog_feed::OutcomeStore;
use uuid::Uuid;

#[tokio::test]
async fn a_read_waits_for_a_write_and_says_when_it_was_in_vain() {
    let stage = with_a_ticket().await;
    let (done, due) = (receipt("acme", 1, 0), receipt("acme", 1, 1));
    let path = |receipt: &str| format!("/api/v1/helpdesk/changes?wait_for={receipt}");
    assert_eq!(
        stage
            .ask(&ann(), &path(&done), &[("prefer", "wait=0")])
            .await
            .status,
        200
    );
    let told = stage.ask(&ann(), &path(&due), &[("prefer", "wait=0")]).await;
    assert_eq!(
        (told.status, told.retry_after.is_some()),
        (503, true),
        "{}",
        told.text
    );
    assert_eq!(told.body["type"], "/problems/not-yet-applied");

    let second = record("helpdesk", "00000000-0000-0000-0000-00000000000c", "ann", "{}", 1);
    let notify = format!("SELECT pg_notify('{}_positions', '')", stage.schema);
    let (started, path) = (Instant::now(), path(&due));
    let who = ann();
    let (told, ()) = tokio::join!(stage.ask(&who, &path, &[("prefer", "wait=10")]), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        stage
            .execute(&format!(
                "BEGIN;{second}{}COMMIT;{notify}",
                position("sync.helpdesk.v1", 2)
            ))
            .await;
    });
    assert_eq!(
        (told.status, told.body["items"].as_array().unwrap().len()),
        (200, 2)
    );
    assert!(started.elapsed() < Duration::from_secs(5), "woken, not timed out");
    stage.strike().await;
}

fn noted(items: u32) -> String {
    format!(
        r#"INSERT INTO batches VALUES ('acme', '{BATCH}', 'helpdesk', 'ann', 'phone-1', '2026-01-31T09:00:00Z', 3, {items},
           '[["{PREFIX}sync.helpdesk.v1", 0, 0]]', '[{{"index": 2, "subject": null, "error":
           {{"error_code": "TOO_LARGE", "error_message": "too large"}}}}]')"#
    )
}

#[tokio::test]
async fn a_receipt_tells_what_became_of_each_item_to_who_sent_it() {
    let stage = with_a_ticket().await;
    let path = |id: &str| format!("/api/v1/sync/batches/{id}");
    let (two, foreign) = (receipt("acme", 2, 0), receipt("other", 2, 0));

    // Nothing noted: the receipt alone resolves.
    let told = stage.get(&ann(), &path(&two)).await;
    assert_eq!(
        (&told["status"], &told["synced_items"][0]["status"]),
        (&"accepted".into(), &"created".into())
    );

    stage.execute(&noted(2)).await;
    let told = stage.get(&ann(), &path(BATCH)).await;
    assert_eq!(
        (&told["status"], &told["receipt"]),
        (&"accepted".into(), &two.clone().into())
    );
    assert_eq!(told["errors"][0]["index"], 2);

    let detail = r#"{"outcome": "no_effect", "version": 4}"#;
    stage.execute(&format!(
        r#"INSERT INTO outcomes VALUES ('acme', '{BATCH}', 1, 'helpdesk', '{TICKET}', 'ann', 'phone-1', 't', 0, 1,
           '2026-01-31T09:31:00Z', 'updated', NULL, '{detail}')"#
    )).await;
    let final_answer = stage.ask(&ann(), &path(BATCH), &[]).await;
    assert_eq!(final_answer.body["status"], "complete", "{}", final_answer.text);
    assert_eq!(final_answer.body["synced_items"][1]["server_version"], 4);
    assert_eq!(
        stage.ask(&ann(), &format!("{}/", path(&two)), &[]).await.text,
        final_answer.text
    );
    assert_eq!(
        stage
            .get(&Asker::new("acme", "op", Role::Operator), &path(BATCH))
            .await["batch_id"],
        BATCH
    );

    for (who, id) in [
        (Asker::new("acme", "bob", Role::Supervisor), BATCH.to_owned()),
        (Asker::new("acme", "bob", Role::User), two.clone()),
        (Asker::new("other", "ann", Role::Operator), BATCH.to_owned()),
        (Asker::new("other", "ann", Role::Operator), two),
        (ann(), foreign),
        (ann(), Uuid::nil().to_string()),
        (ann(), "x".to_owned()),
    ] {
        assert_eq!(stage.ask(&who, &path(&id), &[]).await.status, 404, "{who:?} {id}");
    }
    stage.strike().await;
}

#[tokio::test]
async fn outcomes_are_found_across_domains_by_index_and_conflicts_with_their_decision() {
    let stage = with_a_ticket().await;
    let conflict = Uuid::from_u128(7);
    let place = record("attendance", TICKET, "ann", "{}", 5);
    stage.execute(&format!(
        r#"{place}
        UPDATE attendance_changes SET conflict_id = '{conflict}', operation = 'update', version = 9;
        INSERT INTO conflicts VALUES ('{conflict}', 'acme', 'attendance', '{TICKET}', 't', 0, 5, '{BATCH}', 5, now(), 'ann',
            'phone-1', 'update', 'client_wins', 'client', 3, 8, 9, NULL, NULL, now(), now());
        INSERT INTO outcomes VALUES ('acme', '{BATCH}', 0, 'helpdesk', '{TICKET}', 'ann', 'phone-1', 't', 0, 9, now(),
            'duplicate', NULL, '{{"outcome": "no_effect", "version": 1}}')"#
    )).await;
    let store = OutcomeStore::new(stage.pool.clone(), &stage.registry);
    let tenant = TenantId::parse("acme").unwrap();
    let found = store
        .of_batch(&tenant, BatchId(BATCH.parse().unwrap()))
        .await
        .unwrap();
    let short: Vec<_> = found
        .iter()
        .map(|item| (item.index, item.domain.as_str(), item.user.as_str()))
        .collect();
    assert_eq!(short, [(0, "helpdesk", "ann"), (5, "attendance", "ann")]);
    assert!(
        matches!(found[0].outcome, Outcome::Applied { version: 1, .. }),
        "the item applied; its repeat did not"
    );
    let Outcome::Conflict {
        conflict_id,
        server_version,
        client_version,
        ..
    } = &found[1].outcome
    else {
        panic!("{found:?}");
    };
    assert_eq!((*conflict_id, *server_version, *client_version), (conflict, 9, 3));
    let foreign = store
        .of_batch(
            &TenantId::parse("other").unwrap(),
            BatchId(BATCH.parse().unwrap()),
        )
        .await
        .unwrap();
    assert!(foreign.is_empty());
    stage.strike().await;
}
