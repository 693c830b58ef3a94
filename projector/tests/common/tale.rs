//! One record's log under one policy, told event by event: what the server had, then an item that did not know of it.

use super::*;
use tidelog_events::doc::Json;
use tidelog_events::item::Operation::{self, Create};

pub const DESC: &str = "the pump is leaking";

/// One record's log, every event stamped with the same policy.
pub struct Tale {
    pub log: Log,
    pub shelf: Shelf,
    pub policy: Policy,
    pub domain: &'static str,
    pub device_type: Option<&'static str>,
}

impl Tale {
    /// A ticket that Anna made at minute 0.
    pub fn of_a_ticket(policy: Policy) -> Tale {
        let mut tale = Tale::of("helpdesk", policy);
        let first = json!({"ticketdesc": DESC, "comments": "first", "priority": "LOW"});
        tale.tell(ANNA, Create, 0, 0, first);
        tale
    }

    pub fn of(domain: &'static str, policy: Policy) -> Tale {
        Tale {
            log: Log::new(),
            shelf: Shelf::default(),
            policy,
            domain,
            device_type: None,
        }
    }

    pub fn tell(
        &mut self,
        phone: Phone,
        operation: Operation,
        base: i64,
        minute: i64,
        fields: Value,
    ) -> Outcome {
        let batch = self.log.events.len() as u64;
        let sent = Sent {
            policy: self.policy,
            minute: Some(minute),
            device_type: self.device_type,
            batch,
            ..Sent::new(self.domain, phone, operation, TICKET, base, ticket(fields))
        };
        let event = self.log.append(&sent);
        self.shelf.fold(&self.log.registry, &[event], &[]);
        self.shelf.check();
        self.shelf.outcome(batch).expect("an outcome")
    }

    /// The item is behind; answers who won, at which version the record stands, and what it says.
    pub fn behind(
        &mut self,
        phone: Phone,
        operation: Operation,
        base: i64,
        minute: i64,
        fields: Value,
    ) -> (Winner, i64, String) {
        let before = self.shelf.state(TICKET).version;
        let outcome = self.tell(phone, operation, base, minute, fields);
        let Outcome::Conflict {
            conflict_id,
            policy,
            winner,
            server_version,
            client_version,
        } = outcome
        else {
            panic!("a conflict, not {outcome:?}")
        };
        assert_eq!((policy, client_version), (self.policy, base));
        let kept = &self.shelf.conflicts[&conflict_id];
        assert_eq!((kept.winner, kept.result_version), (winner, server_version));
        assert_eq!(kept.server_version, before, "the version that it met");
        assert_eq!(self.shelf.state(TICKET).version, server_version);
        (winner, server_version, self.says())
    }

    /// Comments, priority and kind of the ticket, in short.
    pub fn says(&self) -> String {
        let state = self.shelf.state(TICKET);
        if state.deleted {
            return "deleted".into();
        }
        let member = |name: &str| {
            let text = state.doc.get(name).and_then(Json::as_str);
            text.unwrap_or("-".into()).into_owned()
        };
        format!("{} {}", member("comments"), member("priority"))
    }

    pub fn doc(&self) -> Value {
        Value::Object(self.shelf.state(TICKET).doc.to_map())
    }

    /// Which side each value came from, in the latest conflict.
    pub fn kept(&self) -> BTreeMap<&str, &str> {
        let last = self.log.events.last().expect("an event");
        let (batch, index) = last.key();
        let kept = &self.shelf.conflicts[&batch.conflict_id(index)].kept;
        kept.iter()
            .map(|(path, origin)| (path.as_str(), origin.as_str()))
            .collect()
    }
}
