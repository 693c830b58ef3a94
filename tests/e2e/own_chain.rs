//! A device is never behind itself: what one phone did, in order, gives the same record however it was split over batches,
//! retried or mixed with other records. With another phone's change in between it is a conflict.

use std::sync::OnceLock;

use futures_util::StreamExt;
use serde_json::{Value, json};
use tidelog_http::auth::Role;
use uuid::Uuid;

use crate::support::Dice;
use crate::support::items::ticket;
use crate::support::phone::{Phone, tenant};
use crate::support::service::{Deployment, Service};

static SERVICE: OnceLock<Service> = OnceLock::new();

fn deployment() -> &'static Deployment {
    &Service::shared(&SERVICE, "own-chain").deployment
}

/// A create, three edits, a deletion, a revival and an edit of it, as a phone without network makes them: it has seen no
/// version but the one that it was told before it lost the network.
fn chain(id: Uuid) -> Vec<Value> {
    let step = |minute: u8, members: Value| {
        let mut item = json!({"mobile_id": id, "version": 0, "client_timestamp": format!("2026-03-01T10:{minute:02}:00Z")});
        for (name, value) in members.as_object().expect("an object") {
            item[name] = value.clone();
        }
        item
    };
    vec![
        step(
            0,
            json!({"ticketdesc": "The lift is stuck again", "comments": "first"}),
        ),
        step(1, json!({"comments": "second"})),
        step(2, json!({"status": "OPEN", "priority": "HIGH"})),
        step(3, json!({"comments": "second", "priority": null})),
        step(4, json!({"sync_status": "pending_delete"})),
        step(
            5,
            json!({"ticketdesc": "It was the other lift", "comments": "back"}),
        ),
        step(6, json!({"status": "OPEN"})),
    ]
}

/// The record's version and document, and its feed: versions with what each did and touched.
async fn left(tenant: &str, id: Uuid) -> (Value, Vec<Value>) {
    let db = deployment().db().await;
    let rows = db
        .objects(
            "SELECT version, deleted, doc - 'ticketno' AS doc, owner_id, user_id, device_id, run_from, ahead_base FROM helpdesk
              WHERE tenant_id = $1 AND mobile_id = $2",
            &[&tenant, &id],
        )
        .await;
    let feed = db
        .objects(
            "SELECT version, operation, fields, before - 'ticketno' AS before FROM helpdesk_changes
              WHERE tenant_id = $1 AND mobile_id = $2 ORDER BY version",
            &[&tenant, &id],
        )
        .await;
    assert_eq!(rows.len(), 1, "one record");
    (rows[0].clone(), feed)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_is_the_same_however_it_is_split_retried_or_interleaved() {
    let tenant = tenant("chain");
    let phone = Phone::new(deployment(), &tenant, "asha");
    let whole = Uuid::new_v4();
    let steps: Vec<String> = chain(whole).iter().map(Value::to_string).collect();
    phone.post("helpdesk", &steps).await.expect(200);
    let expected = left(&tenant, whole).await;
    assert_eq!(
        (&expected.0["version"], expected.1.len()),
        (&json!(7), 7),
        "{expected:?}"
    );
    assert_eq!(expected.0["doc"]["comments"], "back", "{expected:?}");

    let (tenant, phone, expected) = (&tenant, &phone, &expected);
    // Every way to split seven items over batches.
    let splits = (0..1u32 << 6).map(|cuts| async move {
        let id = Uuid::new_v4();
        let mut dice = Dice::new(u64::from(cuts));
        let mut batch = Vec::new();
        for (at, step) in chain(id).iter().enumerate() {
            // Others in between, of this phone too.
            if dice.roll(3) == 0 {
                batch.push(ticket(Uuid::new_v4(), "Another ticket altogether").to_string());
            }
            batch.push(step.to_string());
            if at < 6 && cuts & (1 << at) == 0 {
                continue;
            }
            // Sent once, or again under its key, or again under another, or the answer never seen.
            phone.post("helpdesk", &batch).await.expect(200);
            match dice.roll(4) {
                0 => drop(phone.post("helpdesk", &batch).await.expect(200)),
                1 => {
                    let key = format!("another-key-{}", Uuid::new_v4());
                    phone.post_keyed("helpdesk", &key, &batch).await.expect(200);
                }
                2 => {
                    let key = format!("without-waiting-{}", Uuid::new_v4());
                    let headers = [("prefer", "wait=0"), ("idempotency-key", key.as_str())];
                    phone.send_batch("helpdesk", &headers, phone.batch(&batch)).await;
                }
                _ => {}
            }
            batch.clear();
        }
        // What was sent last, without waiting, is applied when a later batch of the same record's partition is.
        let done = json!({"mobile_id": id, "version": 0, "status": "OPEN", "client_timestamp": "2026-03-01T10:06:00Z"}).to_string();
        let key = format!("the-last-key-{}", Uuid::new_v4());
        let again = phone.post_keyed("helpdesk", &key, &[done]).await.expect(200).json();
        let status = &again["synced_items"][0]["status"];
        assert_eq!(status, "duplicate", "split {cuts:06b}: {again} {:?}", left(tenant, id).await);
        assert_eq!(&left(tenant, id).await, expected, "split {cuts:06b}");
    });
    // Eight phones' worth at a time.
    futures_util::stream::iter(splits)
        .buffer_unordered(8)
        .collect::<Vec<()>>()
        .await;
    let db = deployment().db().await;
    assert_eq!(
        db.count("SELECT count(*) FROM conflicts WHERE tenant_id = $1", &[tenant])
            .await,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn with_another_phones_change_in_between_it_is_a_conflict() {
    let tenant = tenant("between");
    let phone = Phone::new(deployment(), &tenant, "asha");
    // Another user's, and the same user's on another device.
    let ben = Phone::of(deployment(), &tenant, "ben", "phone-2", Role::User);
    let tablet = Phone::of(deployment(), &tenant, "asha", "tablet-1", Role::User);
    for other in [&ben, &tablet] {
        for cut in 1..4 {
            let id = Uuid::new_v4();
            let steps = chain(id);
            let texts = |steps: &[Value]| steps.iter().map(Value::to_string).collect::<Vec<_>>();
            phone.post("helpdesk", &texts(&steps[..cut])).await.expect(200);
            other
                .apply(
                    "helpdesk",
                    json!({"mobile_id": id, "version": cut, "location": "north"}),
                )
                .await;
            let answer = phone
                .post("helpdesk", &texts(&steps[cut..=cut]))
                .await
                .expect(200)
                .json();
            assert_eq!(
                answer["conflicts"][0]["client_version"], 0,
                "{} after {cut}: {answer}",
                other.device
            );
        }
    }
}
