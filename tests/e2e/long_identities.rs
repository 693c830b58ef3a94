//! An identity that is too long harms its own item alone: it is told, its neighbours pass, and its partition goes on.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::Dice;
use crate::support::phone::{Phone, tenant};
use crate::support::service::Service;

use super::own_domain::deployment_with;

const READINGS: &str = r#"# Meters, by whatever they call themselves.
domain = "readings"
kind = "telemetry"
topic = "telemetry.readings.v1"
identity = ["meter"]

[visibility]
rule = "owner"
readers = []

[fields]
meter = { type = "string", min = 1, max = 20000, required = true }
"#;

fn verification(id: &str) -> String {
    json!({"verification_id": id, "timestamp": "2026-03-01T10:00:00Z", "verified": true}).to_string()
}

fn reading(meter: &str) -> String {
    json!({ "meter": meter }).to_string()
}

/// Letters that no database can make much shorter.
fn noise(length: usize) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut dice = Dice::new(7);
    (0..length)
        .map(|_| char::from(LETTERS[dice.roll(LETTERS.len())]))
        .collect()
}

/// Posts one among good ones, which pass; answers the only error, if there is one.
async fn among_good_ones(phone: &Phone, domain: &str, item: fn(&str) -> String, id: &str) -> Option<Value> {
    let good = || item(&Uuid::new_v4().to_string());
    let answer = phone
        .post(domain, &[good(), item(id), good()])
        .await
        .expect(200)
        .json();
    let errors = answer["errors"].as_array().expect("errors").clone();
    assert_eq!(answer["status"], "complete", "{answer}");
    assert_eq!(answer["synced_items"], 3 - errors.len(), "{answer}");
    errors
        .into_iter()
        .next()
        .inspect(|error| assert_eq!(error["index"], 1, "{answer}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_that_is_too_long_harms_itself_alone() {
    let service = Service::of(deployment_with("long-identity", "readings.toml", READINGS));
    let phone = Phone::new(&service.deployment, &tenant("long"), "asha");
    // As long as it may be, of four bytes a character.
    assert_eq!(
        among_good_ones(&phone, "voice", verification, &"🙂".repeat(255)).await,
        None
    );
    // Its length is counted without the spaces around it, and its key is not. Or it is long where a domain allows that.
    let padded = format!("{}a", " ".repeat(2000));
    for (domain, item, id, field) in [
        (
            "voice",
            verification as fn(&str) -> String,
            padded,
            "verification_id",
        ),
        ("readings", reading, noise(5000), "meter"),
    ] {
        let error = among_good_ones(&phone, domain, item, &id)
            .await
            .expect("an error");
        assert_eq!(
            (&error["field"], &error["rule"]),
            (&json!(field), &json!("max_size")),
            "{error}"
        );
    }
    // No longer than that, and more than an index of Postgres holds.
    let error = among_good_ones(&phone, "readings", reading, &noise(4000))
        .await
        .expect("an error");
    assert_eq!(error["rule"], "storable", "{error}");
    // Nothing of it is in the way of what comes after, in any partition.
    let fine: Vec<String> = (0..30).map(|n| reading(&format!("{n}-{}", noise(600)))).collect();
    let answer = phone.post("readings", &fine).await.expect(200).json();
    assert_eq!(
        (&answer["synced_items"], &answer["failed_items"]),
        (&json!(30), &json!(0)),
        "{answer}"
    );
}
