//! Values sealed and opened again: what was sent is what is read, for as long as there is a key and at no other place; and
//! equal values are known to be equal without any.

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use tidelog_events::doc::Doc;
use tidelog_events::domain::{Domain, Registry};
use tidelog_events::item::Operation;
use tidelog_events::seal::secret::RANDOM_BYTES;
use tidelog_events::seal::{
    DataKey, Found, KeyId, KeySource, Opened, Scope, SealSecret, Sealing, Seals, content, holds_plain, open,
    wanted,
};

const SUBJECT: &str = "6f1c3f6e-0d55-4f36-9c56-0d1f7a4f0001";

struct Desk {
    secret: SealSecret,
    registry: Registry,
    keys: HashMap<KeyId, Found>,
}

impl KeySource for Desk {
    fn key(&self, id: &KeyId) -> Found {
        self.keys.get(id).cloned().unwrap_or(Found::Unknown)
    }
}

fn scope(subject: &str) -> Scope<'_> {
    Scope {
        tenant: "acme",
        domain: "journal",
        subject,
    }
}

impl Desk {
    fn new() -> Desk {
        Desk {
            secret: SealSecret::new(&"secret".repeat(6)).expect("a secret"),
            registry: Registry::shipped(),
            keys: HashMap::new(),
        }
    }

    fn domain(&self) -> &Domain {
        self.registry.by_name("journal").expect("a domain")
    }

    fn made(&mut self, number: u8) -> Arc<DataKey> {
        let key = Arc::new(self.secret.make_key("acme", &[number; RANDOM_BYTES]));
        self.keys.insert(key.id().clone(), Found::Key(key.clone()));
        key
    }

    fn close(&self, key: &DataKey, item: &Value) -> Map<String, Value> {
        let tagger = self.secret.tagger("acme");
        let sealing = Sealing {
            key,
            tagger: &tagger,
            scope: scope(SUBJECT),
        };
        let plain = item.to_string();
        let sealed = sealing.item(self.domain(), Operation::Update, &plain);
        serde_json::from_str(&sealed.unwrap_or(plain)).expect("an object")
    }

    fn open(&self, subject: &str, doc: &Map<String, Value>) -> (Value, Opened) {
        let mut doc = doc.clone();
        let opened = open(&self.secret, self.domain(), scope(subject), &mut doc, self).expect("known keys");
        (Value::Object(doc), opened)
    }
}

fn rich() -> Value {
    json!({"mobile_id": SUBJECT, "version": 3, "entry_type": "gratitude", "mood_rating": 7, "title": "Ünsagbar \"gut\"",
        "content": null, "tags": ["a", "b", "a", ""], "learnings": [], "metadata": {"deep": {"n": -1.5, "t": true, "z": null, "l": [1, "x", null]},
        "a/b~c": "slashed", "empty": {}}, "team_members": ["ben"], "unknown": {"of": "the definition"}, "client_timestamp": "2026-01-01T00:00:00Z"})
}

#[test]
fn what_is_personal_is_sealed_and_reads_back_as_it_was_sent() {
    let mut desk = Desk::new();
    let key = desk.made(1);
    let sealed = desk.close(&key, &rich());
    let text = Value::Object(sealed.clone()).to_string();
    for word in ["gut", "slashed", "the definition", "-1.5", "true"] {
        assert!(!text.contains(word), "{word}: {text}");
    }
    let as_sent = [
        "mobile_id",
        "version",
        "entry_type",
        "mood_rating",
        "content",
        "learnings",
        "team_members",
        "client_timestamp",
    ];
    for same in as_sent {
        assert_eq!(sealed[same], rich()[same], "{same}");
    }
    assert!(sealed["metadata"]["deep"]["z"].is_null() && sealed["metadata"]["empty"].is_object());
    assert_eq!(
        sealed["tags"][0], sealed["tags"][2],
        "equal values of one record are equal"
    );
    assert_eq!(desk.open(SUBJECT, &sealed).0, rich());
    assert!(holds_plain(
        desk.domain(),
        false,
        rich().as_object().expect("an object")
    ));
    assert!(!holds_plain(desk.domain(), false, &sealed));
    let mut ids = BTreeSet::new();
    wanted(&desk.secret, desk.domain(), "acme", &sealed, &mut ids);
    assert_eq!(ids.into_iter().collect::<Vec<_>>(), [key.id().clone()]);
}

#[test]
fn an_erased_value_says_what_it_was_and_no_more() {
    let mut desk = Desk::new();
    let key = desk.made(1);
    let sealed = desk.close(&key, &rich());
    desk.keys.insert(key.id().clone(), Found::Erased);
    let (doc, opened) = desk.open(SUBJECT, &sealed);
    assert_eq!(doc["title"], "[erased]");
    assert_eq!(
        doc["tags"],
        json!(["[erased]", "[erased]", "[erased]", "[erased]"])
    );
    assert_eq!(
        doc["metadata"]["deep"],
        json!({"n": null, "t": null, "z": null, "l": null})
    );
    assert_eq!((&doc["mood_rating"], opened.opened), (&json!(7), 0));
    desk.keys.clear();
    let mut unknown = sealed.clone();
    assert!(open(&desk.secret, desk.domain(), scope(SUBJECT), &mut unknown, &desk).is_err());
}

#[test]
fn a_value_opens_at_its_own_place_alone() {
    let mut desk = Desk::new();
    let key = desk.made(1);
    let sealed = desk.close(&key, &json!({"title": "one", "metadata": {"n": 1}}));
    let elsewhere = "6f1c3f6e-0d55-4f36-9c56-0d1f7a4f0002";
    let (doc, opened) = desk.open(elsewhere, &sealed);
    assert_eq!(
        (doc, opened.unreadable),
        (json!({"title": "[unreadable]", "metadata": {"n": null}}), 2)
    );
    let mut moved = sealed.clone();
    moved["title"] = sealed["metadata"]["n"].clone();
    assert_eq!(desk.open(SUBJECT, &moved).0["title"], Value::Null);
    // In a field that is not personal it is a text like any other.
    let mut beside = Map::new();
    beside.insert("entry_type".into(), sealed["title"].clone());
    assert_eq!(desk.open(SUBJECT, &beside).0["entry_type"], sealed["title"]);
}

#[test]
fn words_that_look_sealed_are_words() {
    let mut desk = Desk::new();
    let key = desk.made(1);
    let seal = desk.close(&key, &json!({"title": "one"}))["title"].clone();
    let made_up = format!("sealed:1:s:{}:{}:AAAA", "A".repeat(22), "B".repeat(22));
    for word in [seal.clone(), json!(made_up), json!("sealed:1:")] {
        let sealed = desk.close(&key, &json!({ "title": word }));
        assert_ne!(sealed["title"], word);
        assert_eq!(desk.open(SUBJECT, &sealed).0["title"], word, "opened once");
    }
    // From before anything was sealed: no key's id is to be made up.
    let before = json!({ "title": made_up })
        .as_object()
        .expect("an object")
        .clone();
    assert_eq!(desk.open(SUBJECT, &before).0["title"], json!(made_up));
}

#[test]
fn the_same_item_under_another_key_is_the_same_and_keeps_its_first_seal() {
    let mut desk = Desk::new();
    let (ashas, bens) = (desk.made(1), desk.made(2));
    let (first, again) = (desk.close(&ashas, &rich()), desk.close(&bens, &rich()));
    assert_ne!(first, again);
    assert_eq!(
        desk.close(&ashas, &rich()),
        first,
        "sealed again it is the same, byte for byte"
    );
    let content = |map: &Map<String, Value>| content(desk.domain(), &map.clone().into());
    let told = |map: &Map<String, Value>| content(map).expect("a sealed item");
    assert_eq!(told(&first), told(&again));
    let plain = rich().as_object().expect("an object").clone();
    assert_eq!(content(&plain), None);

    let mut other = rich();
    other["title"] = json!("another");
    other["tags"] = json!(["new", "b"]);
    let mut patch = Doc::from(desk.close(&bens, &other));
    let known = Doc::from(first.clone());
    let mut seals = Seals::default();
    seals.note(desk.domain(), &known);
    seals.adopt(desk.domain(), &mut patch);
    let patch = patch.to_map();
    assert_eq!(
        (&patch["metadata"], &patch["tags"][1]),
        (&first["metadata"], &first["tags"][1])
    );
    assert_ne!(patch["title"], first["title"]);
    assert_eq!(desk.open(SUBJECT, &patch).0, other);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1e9..1e9f64).prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec(".{0,5}", 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z~/\"]{0,4}", inner, 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn whatever_is_sent_reads_back(title in any_json(), metadata in any_json(), unknown in any_json()) {
        let mut desk = Desk::new();
        let key = desk.made(1);
        let item = json!({"mobile_id": SUBJECT, "title": title, "metadata": metadata, "of one's own": unknown});
        let sealed = desk.close(&key, &item);
        prop_assert_eq!(desk.open(SUBJECT, &sealed).0, item);
    }
}
