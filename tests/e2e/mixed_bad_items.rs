//! A bad item of a mixed batch harms itself alone: it is told in its place by code, field and rule, the field with the
//! path that it has in the item, and what stands beside it goes through.

use uuid::Uuid;

use super::mixed_batches::phone_of;
use super::mixed_items::{done, told};
use crate::support::items::{ENTITY_TYPES, Known, id_of, mixed};

/// What is wrong, in an item that is good otherwise, and its error's code, field and rule.
type Case = (String, &'static str);

const DATA: &str = r#"{"ticketdesc":"A ticket with a flaw"}"#;

/// What the envelope may not say.
fn bad_envelopes() -> Vec<Case> {
    let good = mixed("ticket", "create", Uuid::new_v4(), 0, DATA);
    let id = id_of(&good);
    let with = |old: &str, new: &str| good.replace(old, new);
    let digits = "1".repeat(2 << 20);
    let late = format!(r#""version":0,"client_timestamp":"2026-03-01T10:00:00.{digits}Z""#);
    vec![
        (
            with(r#""ticket""#, r#""lorry""#),
            "VALIDATION_ERROR entity_type enum",
        ),
        (
            with(r#""ticket""#, r#""Ticket""#),
            "VALIDATION_ERROR entity_type enum",
        ),
        (
            with(r#""ticket""#, r#""voice""#),
            "VALIDATION_ERROR entity_type enum",
        ),
        (
            with(r#""ticket""#, r#""helpdesk""#),
            "VALIDATION_ERROR entity_type enum",
        ),
        (
            with(r#""ticket""#, r#""journal-media""#),
            "VALIDATION_ERROR entity_type enum",
        ),
        (
            with(r#""ticket""#, r#""a\u0000\ud83d""#),
            "VALIDATION_ERROR entity_type type",
        ),
        (
            with(r#""ticket""#, r#""a\u0000""#),
            "VALIDATION_ERROR entity_type enum",
        ),
        (with(r#""ticket""#, "7"), "VALIDATION_ERROR entity_type type"),
        (
            with(r#""entity_type":"ticket","#, ""),
            "VALIDATION_ERROR entity_type required",
        ),
        (
            with(r#""create""#, r#""upsert""#),
            "VALIDATION_ERROR operation enum",
        ),
        (
            with(r#""create""#, r#""resolve""#),
            "VALIDATION_ERROR operation enum",
        ),
        (
            with(r#""create""#, r#""append""#),
            "VALIDATION_ERROR operation enum",
        ),
        (with(r#""create""#, "null"), "VALIDATION_ERROR operation required"),
        (with(&id, "4711"), "VALIDATION_ERROR mobile_id uuid"),
        (
            with(&format!(r#""mobile_id":"{id}","#), ""),
            "VALIDATION_ERROR mobile_id required",
        ),
        (
            with(r#""version":0"#, r#""version":-1"#),
            "VALIDATION_ERROR version min",
        ),
        (
            with(r#""version":0"#, r#""version":1.5"#),
            "VALIDATION_ERROR version min",
        ),
        (
            with(r#""version":0"#, r#""version":9007199254740992"#),
            "UNSUPPORTED_VERSION version max",
        ),
        (
            with(r#""version":0"#, r#""version":0,"client_timestamp":7"#),
            "VALIDATION_ERROR client_timestamp type",
        ),
        (
            with(r#""version":0"#, r#""version":0,"client_timestamp":"now""#),
            "VALIDATION_ERROR client_timestamp rfc3339",
        ),
        (
            with(r#""version":0"#, &late),
            "VALIDATION_ERROR client_timestamp rfc3339",
        ),
        (with(r#""data""#, r#""dater""#), "VALIDATION_ERROR data required"),
        ("17".into(), "VALIDATION_ERROR  object"),
        ("[]".into(), "VALIDATION_ERROR  object"),
        ("null".into(), "VALIDATION_ERROR  object"),
        (r#"{"a\ud800":1}"#.into(), "VALIDATION_ERROR  unicode"),
    ]
}

/// What the data may not say.
fn bad_data() -> Vec<Case> {
    let data = |data: &str| mixed("ticket", "create", Uuid::new_v4(), 0, data);
    let flaw = |members: &str| data(&DATA.replace('}', &format!(",{members}}}")));
    let deep = format!(r#""x":{}1{}"#, r#"{"a":"#.repeat(1000), "}".repeat(1000));
    vec![
        (data("null"), "VALIDATION_ERROR data required"),
        (data("[1]"), "VALIDATION_ERROR data object"),
        (data(r#""text""#), "VALIDATION_ERROR data object"),
        (
            data(r#"{"ticketdesc":"short"}"#),
            "VALIDATION_ERROR data.ticketdesc min_length",
        ),
        (data("{}"), "VALIDATION_ERROR data.ticketdesc required"),
        (flaw(&deep), "VALIDATION_ERROR data.x max_nesting"),
        (
            flaw(r#""priority":"URGENT""#),
            "VALIDATION_ERROR data.priority enum",
        ),
        (
            flaw(r#""escalation_level":-1"#),
            "VALIDATION_ERROR data.escalation_level min",
        ),
        (flaw(r#""x":1e400"#), "VALIDATION_ERROR data.x number_range"),
        (flaw(r#""a\u0000b":1"#), "VALIDATION_ERROR data.a\\u0000b no_nul"),
        (flaw(r#""a\ud800b":1"#), "VALIDATION_ERROR data unicode"),
        (
            flaw(r#""comments":"\ud800""#),
            "VALIDATION_ERROR data.comments unicode",
        ),
        (
            flaw(r#""sync_status":"lost""#),
            "VALIDATION_ERROR data.sync_status enum",
        ),
        (
            flaw(r#""last_sync_timestamp":"now""#),
            "VALIDATION_ERROR data.last_sync_timestamp rfc3339",
        ),
        (
            flaw(&format!(r#""comments":"{}""#, "x".repeat(256 << 10))),
            "TOO_LARGE data.comments max_size",
        ),
        (
            flaw(&format!(r#""mobile_id":"{}""#, Uuid::new_v4())),
            "VALIDATION_ERROR data.mobile_id equal",
        ),
        (
            flaw(r#""mobile_id":"4711""#),
            "VALIDATION_ERROR data.mobile_id uuid",
        ),
        (flaw(r#""version":3"#), "VALIDATION_ERROR data.version equal"),
        (
            mixed("journal", "update", Uuid::new_v4(), 1, r#"{"is_deleted":true}"#),
            "VALIDATION_ERROR data.is_deleted equal",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_item_of_any_kind_harms_itself_alone() {
    let phone = phone_of("bad");
    let mut items = Vec::new();
    let bad: Vec<Case> = bad_envelopes().into_iter().chain(bad_data()).collect();
    for (n, (item, _)) in bad.iter().enumerate() {
        let (entity_type, domain) = ENTITY_TYPES[n % ENTITY_TYPES.len()];
        let made = (Known::of(domain).item)(n);
        let id: Uuid = made.identity[0].parse().expect("an id");
        items.push(item.clone());
        items.push(mixed(entity_type, "create", id, 0, &made.text));
    }
    let results = phone.results(&items).await;
    assert_eq!(results.len(), items.len());
    for ((item, error), pair) in bad.iter().zip(results.chunks(2)) {
        let item: String = item.chars().take(200).collect();
        assert_eq!(told(&pair[0]), ("error", None, (*error).to_owned()), "{item}");
        let message = pair[0]["error_message"].as_str().expect("a message");
        assert!(!message.is_empty() && message.len() < 300, "{message}");
        assert_eq!(told(&pair[1]), done("created", 1), "beside {item}: {}", pair[1]);
    }
}
