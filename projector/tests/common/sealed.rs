//! A log whose personal values are sealed, each event under one of two keys of its user, as by two gateways; and what was
//! folded from it, opened again.

use super::{Attempted, Feed, Sent, Shelf};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::Arc;
use tidelog_events::doc::Doc;
use tidelog_events::domain::Registry;
use tidelog_events::seal::secret::RANDOM_BYTES;
use tidelog_events::seal::{DataKey, Found, KeyId, KeySource, Opened, Scope, SealSecret, Sealing, open};
use tidelog_projector::state::RecordKey;
use uuid::Uuid;

const TENANT: &str = "acme";

pub struct Sealer {
    secret: SealSecret,
    keys: HashMap<KeyId, Arc<DataKey>>,
    of_users: HashMap<(&'static str, u64), Arc<DataKey>>,
}

impl KeySource for Sealer {
    fn key(&self, id: &KeyId) -> Found {
        self.keys.get(id).cloned().map_or(Found::Unknown, Found::Key)
    }
}

impl Sealer {
    pub fn new() -> Sealer {
        Sealer {
            secret: SealSecret::new("a secret of thirty-two bytes or more").expect("a secret"),
            keys: HashMap::new(),
            of_users: HashMap::new(),
        }
    }

    /// An item's text as that gateway appends it.
    pub fn close(&mut self, registry: &Registry, sent: &Sent, gateway: u64) -> String {
        let fresh = [self.of_users.len() as u8 + 1; RANDOM_BYTES];
        let key = self
            .of_users
            .entry((sent.phone.user, gateway))
            .or_insert_with(|| Arc::new(self.secret.make_key(TENANT, &fresh)))
            .clone();
        self.keys.insert(key.id().clone(), key.clone());
        let tagger = self.secret.tagger(TENANT);
        let sealing = Sealing {
            key: &key,
            tagger: &tagger,
            scope: Scope {
                tenant: TENANT,
                domain: sent.domain,
                subject: &sent.subject,
            },
        };
        let domain = registry.by_name(sent.domain).expect("a domain");
        let plain = sent.item.to_string();
        sealing.item(domain, sent.operation, &plain).unwrap_or(plain)
    }

    fn doc(&self, registry: &Registry, record: &RecordKey, doc: &mut Doc) {
        let mut map = doc.to_map();
        self.map(registry, record, &mut map);
        *doc = map.into();
    }

    fn map(&self, registry: &Registry, record: &RecordKey, map: &mut Map<String, Value>) {
        let domain = registry.by_table(&record.table).expect("a domain");
        let scope = Scope {
            tenant: TENANT,
            domain: &domain.name,
            subject: &record.subject,
        };
        let opened = open(&self.secret, domain, scope, map, self).expect("known keys");
        assert_eq!(
            opened,
            Opened {
                opened: opened.opened,
                ..Opened::default()
            }
        );
    }

    fn value(&self, registry: &Registry, record: &RecordKey, value: &mut Value) {
        self.map(registry, record, value.as_object_mut().expect("an object"));
    }

    /// The shelf as it would be without seals. The hashes of items differ, and are left out.
    pub fn opened(&self, registry: &Registry, mut shelf: Shelf) -> Shelf {
        for (record, state) in &mut shelf.states {
            self.doc(registry, record, &mut state.doc);
        }
        for Feed { record, before, .. } in &mut shelf.feed {
            self.value(registry, record, before);
        }
        for Attempted {
            record,
            attempt,
            client_doc,
            server_doc,
            ..
        } in shelf.conflicts.values_mut()
        {
            self.doc(registry, record, &mut attempt.patch);
            self.value(registry, record, client_doc);
            if let Some(server) = server_doc {
                self.value(registry, record, server);
            }
        }
        without_hashes(shelf)
    }
}

/// What is compared of a shelf; of the hits, which are kept by the hash, how many and of what.
pub fn without_hashes(mut shelf: Shelf) -> Shelf {
    shelf.feed.iter_mut().for_each(|row| row.content = Uuid::nil());
    shelf
        .outcomes
        .values_mut()
        .for_each(|(_, content, _)| *content = Uuid::nil());
    shelf
}
