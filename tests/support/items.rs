//! What phones send: for every domain that ships, items in a spelling that no JSON library would choose, so that a
//! gateway that rebuilds them is found out; and the facts about each domain that its definition has to agree with.

use serde_json::{Map, Value};
use uuid::Uuid;

/// A domain as its users know it.
pub(crate) struct Known {
    pub(crate) url: &'static str,
    pub(crate) table: &'static str,
    pub(crate) topic: &'static str,
    /// None for telemetry, which has no conflicts.
    pub(crate) policy: Option<&'static str>,
    /// Makes the item of that number.
    pub(crate) item: fn(usize) -> Made,
}

/// An item, and what it is known by: the parts of its identity after what the sender contributes.
pub(crate) struct Made {
    pub(crate) text: String,
    /// The identity's own parts.
    pub(crate) identity: Vec<String>,
    /// Whose identity gives the key, where it is not the item's own.
    pub(crate) parent: Option<String>,
}

/// All domains that ship, a parent before its children.
pub(crate) const DOMAINS: [Known; 10] = [
    known(
        "activity",
        "activity",
        "sync.activity.v1",
        Some("most_recent_wins"),
        |n| {
            let id = Uuid::new_v4();
            entity(
                id,
                format!(
                    r#"{{"mobile_id":"{id}", "version" :0,"sync_status":"pending_sync","jobdesc":"Inspect pump №{n} \u2013 gepr\u00fcft 漏水\t\"ok\"","priority":"HIGH","gracetime":{n},"plandatetime":"2026-03-01T10:00:00+05:30","expirydatetime":"2026-03-01T06:00:00Z","asset":{n},"job":"J-{n}","gpslocation":{{"type":"Point","coordinates":[72.87,19.07]}},"unknown":[1.50, 2e3,{{"Ä":null}}]}}"#
                ),
            )
        },
    ),
    known(
        "work-orders",
        "work_orders",
        "sync.work_orders.v1",
        Some("most_recent_wins"),
        |n| {
            let id = Uuid::new_v4();
            entity(
                id,
                format!(
                    r#"{{ "description":"Replace seal {n}","mobile_id":"{id}","status":"draft","priority":"LOW","estimated_hours":1.{n},"assigned_to":"tech-{n}","scheduled_start":"2026-03-01T10:00:00Z","scheduled_end":"2026-03-01T12:00:00.250Z" , "client_timestamp":"2026-03-01T09:00:00.123456Z" }}"#
                ),
            )
        },
    ),
    known(
        "attendance",
        "attendance",
        "sync.attendance.v1",
        Some("server_wins"),
        |n| {
            let id = Uuid::new_v4();
            entity(
                id,
                format!(
                    "{{\"mobile_id\":\"{id}\",\n \"deviceid\":\"handset-{n}\",\"gpslocation\":{{\"type\":\"Point\",\"coordinates\":[ -0.1,51.5, 12 ]}},\"receiveddate\":\"2026-03-{:02}T08:00:00Z\",\"transportmode\":\"BUS\",\"people\":{n}}}",
                    n % 28 + 1
                ),
            )
        },
    ),
    known(
        "helpdesk",
        "helpdesk",
        "sync.helpdesk.v1",
        Some("preserve_escalation"),
        |n| {
            let id = Uuid::new_v4();
            entity(
                id,
                format!(
                    r#"{{"ticketdesc":"Pump {n} is leaking oil 🛢️","mobile_id":"{id}","priority":"MEDIUM","bu":{n},"comments":"\ud83d\ude00 \\u0000 is text"}}"#
                ),
            )
        },
    ),
    known(
        "journal",
        "journal",
        "sync.journal.v1",
        Some("client_wins"),
        |n| {
            let id = Uuid::new_v4();
            entity(
                id,
                format!(
                    r#"{{"mobile_id":"{id}","entry_type":"site_inspection","timestamp":"2026-03-01T10:00:00Z","title":"Gate {n}","mood_rating":{},"tags":["a","ü"],"privacy_scope":"shared","completion_rate":0.25,"metadata":{{"deep":{{"er":[[]]}}}}}}"#,
                    n % 10 + 1
                ),
            )
        },
    ),
    known(
        "journal-media",
        "journal_media",
        "sync.journal.v1",
        Some("client_wins"),
        |n| {
            let (id, entry) = (Uuid::new_v4(), Uuid::new_v4());
            let text = format!(
                r#"{{"mobile_id":"{id}","journal_entry":"{entry}","media_type":"PHOTO","original_filename":"IMG {n}.jpg","mime_type":"image/jpeg","file_size":{n},"is_hero_image":false}}"#
            );
            Made {
                text,
                identity: vec![id.to_string()],
                parent: Some(entry.to_string()),
            }
        },
    ),
    known("voice", "voice", "telemetry.voice.v1", None, |n| {
        telemetry(
            &[&format!("ver/{n} ü")],
            format!(
                r#"{{"verification_id":"ver/{n} \u00fc","timestamp":"2026-03-01T10:00:00Z","verified":true,"confidence_score":0.{n},"metadata":{{}}}}"#
            ),
        )
    }),
    known("behavioral", "behavioral", "telemetry.behavioral.v1", None, |n| {
        telemetry(
            &["@user", &n.to_string()],
            format!(
                r#"{{ "event_id":{n},"timestamp":"2026-03-01T10:00:00Z","event_type":"tap","interaction_count":{n}}}"#
            ),
        )
    }),
    known("sessions", "sessions", "telemetry.sessions.v1", None, |n| {
        telemetry(
            &["@user", &format!("s-{n}")],
            format!(
                r#"{{"id":"s-{n}","session_start":"2026-03-01T10:00:00Z","duration_ms":{n}.5,"status":"open"}}"#
            ),
        )
    }),
    known("metrics", "metrics", "telemetry.metrics.v1", None, |n| {
        let n = n + 1;
        telemetry(
            &["@device", "battery", &format!("2026-03-01T10:00:00.{n:03}Z")],
            format!(
                r#"{{"metric_name":"battery","value":{n},"timestamp":"2026-03-01T10:00:00.{n:03}Z","unit":"%"}}"#
            ),
        )
    }),
];

const fn known(
    url: &'static str,
    table: &'static str,
    topic: &'static str,
    policy: Option<&'static str>,
    item: fn(usize) -> Made,
) -> Known {
    Known {
        url,
        table,
        topic,
        policy,
        item,
    }
}

fn entity(id: Uuid, text: String) -> Made {
    Made {
        text,
        identity: vec![id.to_string()],
        parent: None,
    }
}

fn telemetry(identity: &[&str], text: String) -> Made {
    Made {
        text,
        identity: identity.iter().map(|part| (*part).to_owned()).collect(),
        parent: None,
    }
}

impl Known {
    pub(crate) fn of(url: &str) -> &'static Known {
        DOMAINS
            .iter()
            .find(|known| known.url == url)
            .expect("a domain that ships")
    }

    pub(crate) fn is_entity(&self) -> bool {
        self.policy.is_some()
    }

    /// What tables and answers call the identity.
    pub(crate) fn id_column(&self) -> &'static str {
        if self.is_entity() { "mobile_id" } else { "item_id" }
    }
}

impl Made {
    /// The identity as headers, tables and answers have it: parts percent-encoded, joined by `/`.
    pub(crate) fn subject(&self, user: &str, device: &str) -> String {
        let part = |part: &String| match part.as_str() {
            "@user" => encoded(user),
            "@device" => encoded(device),
            text => encoded(text),
        };
        self.identity.iter().map(part).collect::<Vec<_>>().join("/")
    }

    /// The record's key.
    pub(crate) fn key(&self, tenant: &str, user: &str, device: &str) -> String {
        let identity = self.parent.clone().unwrap_or_else(|| self.subject(user, device));
        format!("{}/{identity}", encoded(tenant))
    }

    /// The item's own members: what it says besides identity, version and sync state.
    pub(crate) fn members(&self) -> Map<String, Value> {
        let Ok(Value::Object(mut item)) = serde_json::from_str(&self.text) else {
            panic!("no object: {}", self.text)
        };
        for name in ["mobile_id", "version", "sync_status", "last_sync_timestamp"] {
            item.remove(name);
        }
        without_nulls(&mut item);
        item
    }
}

/// As RFC 3986 has it: all but unreserved characters.
pub(crate) fn encoded(text: &str) -> String {
    let unreserved = |b: &u8| b.is_ascii_alphanumeric() || b"-._~".contains(b);
    text.bytes()
        .map(|b| {
            if unreserved(&b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

/// An item is a patch, in which null clears: a new record does not have it, however deep.
fn without_nulls(object: &mut Map<String, Value>) {
    object.retain(|_, value| !value.is_null());
    for value in object.values_mut() {
        if let Value::Object(inner) = value {
            without_nulls(inner);
        }
    }
}

/// Whether two values say the same: `1.50` and `1.5` do, `1` and `1.0` too.
pub(crate) fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| same(a, b)))
        }
        _ => one == other,
    }
}

/// A new ticket.
pub(crate) fn ticket(id: Uuid, text: &str) -> Value {
    serde_json::json!({"mobile_id": id, "version": 0, "ticketdesc": text})
}

/// New tickets, as many as asked for, as text.
pub(crate) fn tickets(count: usize) -> Vec<String> {
    (0..count)
        .map(|n| ticket(Uuid::new_v4(), &format!("Ticket number {n} of a batch")).to_string())
        .collect()
}

/// The `mobile_id` of an item.
pub(crate) fn id_of(item: &str) -> String {
    let item: Value = serde_json::from_str(item).expect("an item");
    item["mobile_id"].as_str().expect("an id").to_owned()
}

/// An item of a mixed batch, its data in whatever spelling.
pub(crate) fn mixed(entity_type: &str, operation: &str, id: Uuid, version: i64, data: &str) -> String {
    format!(
        r#"{{"mobile_id":"{id}","entity_type":"{entity_type}","operation":"{operation}","version":{version},"data":{data}}}"#
    )
}

/// The domains that take mixed batches, by the type of their items.
pub(crate) const ENTITY_TYPES: [(&str, &str); 5] = [
    ("task", "activity"),
    ("work_order", "work-orders"),
    ("attendance", "attendance"),
    ("ticket", "helpdesk"),
    ("journal", "journal"),
];
