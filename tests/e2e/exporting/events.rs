//! What is exported: everything that has an outcome of its own, and events with a log time of the test's choosing.

use chrono::{DateTime, Days, NaiveDate, NaiveTime, Utc};
use http::Method;
use serde_json::json;
use tidelog_events::batch::BatchId;
use tidelog_events::domain::Policy;
use tidelog_events::envelope::Stamp;
use tidelog_events::ids::{DeviceId, TenantId, UserId};
use tidelog_events::item::Operation;
use tidelog_http::auth::Role;
use uuid::Uuid;

use crate::support::items::{Known, ticket, tickets};
use crate::support::kafka::{Stamped, produce};
use crate::support::phone::{Phone, tenant};
use crate::support::service::Deployment;

/// Does everything that has an outcome of its own; answers the tenant.
pub(super) async fn every_outcome(deployment: &Deployment) -> String {
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
    asha.apply("helpdesk", ticket(two, "The other lift is stuck"))
        .await;
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

pub(super) fn stamped(tenant: &str, id: Uuid, table: &str) -> Vec<(String, String)> {
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
pub(super) fn appended(known: &Known, tenant: &str, partition: i32, logged_at: DateTime<Utc>) -> Stamped {
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
pub(super) fn day(ago: u64) -> NaiveDate {
    Utc::now().date_naive() - Days::new(ago)
}

pub(super) fn at(day: NaiveDate, time: &str) -> DateTime<Utc> {
    let time: NaiveTime = time.parse().expect("a time");
    day.and_time(time).and_utc()
}
