//! What each fuzz target does with a stranger's bytes: it reads them, and holds what was read to what is promised of it.
//! Used by the targets of cargo-fuzz and by the test `corpus`, which replays what they found, on any compiler.

use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use serde_json::Value;
use serde_json::value::RawValue;
use tidelog_events::batch::{Batch, Endpoint, Fingerprint};
use tidelog_events::domain::Registry;
use tidelog_events::envelope::Event;
use tidelog_events::ids::{DeviceId, TenantId, UserId};
use tidelog_events::item::{self, Entry, Item, MAX_ITEM_BYTES, MAX_SUBJECT_BYTES, Posting};
use tidelog_events::position::Place;
use tidelog_events::{mixed, token};
use tidelog_feed::cursor::Cursor;
use tidelog_http::auth::Auth;
use tidelog_projector::event::Arrived;

/// A name, which its corpus has too, and what is done.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// All of them.
pub(crate) const TARGETS: [Target; 5] = [
    ("cursor", cursor),
    ("item", item),
    ("headers", headers),
    ("batch", batch),
    ("jwt", jwt),
];

static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::shipped);

fn ids() -> (TenantId, UserId, DeviceId) {
    let tenant = TenantId::parse("acme").expect("a tenant");
    let user = UserId::parse("asha").expect("a user");
    (tenant, user, DeviceId::parse("phone-1").expect("a device"))
}

/// A cursor as a client hands it back; and the bytes as what one of ours would hold. What opens is what was sealed, for the
/// same tenant and domain alone.
pub(crate) fn cursor(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (tenant, ..) = ids();
    let other = TenantId::parse("other").expect("a tenant");
    let forged = serde_json::from_str::<Value>(text)
        .map(|payload| token::seal(&["cursor", tenant.as_str(), "helpdesk"], &payload));
    for text in [Some(text.to_owned()), forged.ok()].into_iter().flatten() {
        for uuids in [true, false] {
            let Ok(cursor) = Cursor::open(&text, &tenant, "helpdesk", uuids) else {
                continue;
            };
            let again = cursor.seal(&tenant, "helpdesk");
            assert_eq!(Cursor::open(&again, &tenant, "helpdesk", uuids), Ok(cursor));
            assert!(Cursor::open(&text, &other, "helpdesk", uuids).is_err());
            assert!(Cursor::open(&text, &tenant, "activity", uuids).is_err());
        }
    }
}

/// An item of each domain, and of a mixed batch: what passes has an identity that keys and tables take, and a text that
/// jsonb takes.
pub(crate) fn item(data: &[u8]) {
    let Ok(raw) = serde_json::from_slice::<&RawValue>(data) else {
        return;
    };
    let entry = Entry::of(raw);
    for accepted in accepted(&entry) {
        assert!(
            (1..=MAX_SUBJECT_BYTES).contains(&accepted.subject.len()),
            "{}",
            accepted.subject
        );
        assert!(
            accepted.key.starts_with("acme/") && accepted.key.ends_with(&accepted.subject),
            "{} {}",
            accepted.key,
            accepted.subject
        );
        assert!(accepted.base >= 0, "{}", accepted.base);
        assert!(accepted.raw.len() <= MAX_ITEM_BYTES);
        let document: Value = serde_json::from_str(&accepted.raw).expect("JSON");
        assert!(document.is_object(), "{document}");
        assert!(!holds_nul(&document), "{document}");
    }
}

/// The same item as every endpoint that takes it sees it.
pub(crate) fn accepted<'a>(entry: &Entry<'a>) -> Vec<Item<'a>> {
    let (tenant, user, device) = ids();
    let now = DateTime::<Utc>::from_timestamp(1_800_000_000, 0).expect("a time");
    let posting = Posting {
        tenant: &tenant,
        user: &user,
        device: &device,
        device_now: now,
        default_time: now,
        item_bytes: MAX_ITEM_BYTES,
    };
    let each = REGISTRY
        .iter()
        .filter_map(|domain| item::judge(domain, entry, &posting).ok());
    let mixed = mixed::judge(&REGISTRY, entry, &posting)
        .ok()
        .map(|(_, item)| item);
    each.chain(mixed).collect()
}

fn holds_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(holds_nul),
        Value::Object(members) => members
            .iter()
            .any(|(name, value)| name.contains('\0') || holds_nul(value)),
        _ => false,
    }
}

/// The headers of a record, a line each, `name: value`, and after an empty line its value.
pub(crate) fn headers(data: &[u8]) {
    let split = data.windows(2).position(|two| two == b"\n\n");
    let (head, value) = match split {
        Some(at) => (&data[..at], Some(&data[at + 2..])),
        None => (data, None),
    };
    let headers: Vec<(String, &[u8])> = head
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let at = line.windows(2).position(|two| two == b": ")?;
            Some((String::from_utf8_lossy(&line[..at]).into_owned(), &line[at + 2..]))
        })
        .collect();
    let given = || headers.iter().map(|(name, value)| (name.as_str(), Some(*value)));
    if let Ok(event) = Event::from_headers(given(), &REGISTRY) {
        assert!((1..=MAX_SUBJECT_BYTES).contains(&event.subject.len()) && !event.subject.contains('\0'));
    }
    let place = Place {
        partition: 0,
        offset: 0,
    };
    let now = DateTime::<Utc>::from_timestamp(1_800_000_000, 0).expect("a time");
    for domain in REGISTRY.iter() {
        // Whatever it comes to, it is told and not a panic.
        let _ = Arrived::read(&REGISTRY, &domain.topic, given(), value, place, now);
    }
}

/// A body. A batch has the same fingerprint when it is written anew.
pub(crate) fn batch(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let anew = serde_json::from_str::<Value>(text).map(|body| body.to_string());
    for endpoint in [Endpoint::Domain("helpdesk"), Endpoint::Mixed] {
        let Some(print) = fingerprint(endpoint, text) else {
            continue;
        };
        assert_eq!(fingerprint(endpoint, text), Some(print));
        // What serde_json's own value does not hold, such as a number beyond a double, has only its text.
        if let Ok(anew) = &anew {
            assert_eq!(fingerprint(endpoint, anew), Some(print), "{text} and {anew}");
        }
    }
}

/// Of what is a batch.
fn fingerprint(endpoint: Endpoint<'_>, text: &str) -> Option<Fingerprint> {
    let (tenant, user, device) = ids();
    let batch = match endpoint {
        Endpoint::Mixed => Batch::parse_mixed(text),
        _ => Batch::parse(text),
    };
    let entries = batch.ok()?.entries;
    Some(Fingerprint::of(endpoint, &tenant, &user, &device, &entries))
}

/// What the corpus' good tokens are signed with.
pub(crate) const SECRET: &str = "a-secret-of-the-corpus-with-32-bytes";

/// A header `Authorization`. Nothing opens but what is signed with the secret, and that for no other secret.
pub(crate) fn jwt(data: &[u8]) {
    static OURS: LazyLock<Auth> = LazyLock::new(|| Auth::new(SECRET).expect("a secret"));
    static OTHER: LazyLock<Auth> =
        LazyLock::new(|| Auth::new("another-secret-of-the-corpus-with-32").expect("a secret"));
    let Ok(value) = http::HeaderValue::from_bytes(data) else {
        return;
    };
    let mut headers = http::HeaderMap::new();
    headers.insert(http::header::AUTHORIZATION, value);
    assert!(
        OTHER.authenticate(&headers).is_err(),
        "a secret that nobody has signed with"
    );
    if let Ok(caller) = OURS.authenticate(&headers) {
        assert!(!caller.tenant.as_str().is_empty() && !caller.user.as_str().is_empty());
    }
}
