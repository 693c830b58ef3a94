//! The merge of two documents that grew from one: what only one side has changed is taken from that side, objects are
//! gone through member by member, lists of strings are sets. A value that both sides changed differently goes to the
//! side that the caller names. Also the document as it was at an earlier version, from the changes since. Pure; knows
//! neither policies nor times nor who the sides are.

use crate::document::Touched;
use crate::state::{Doc, PastChange};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use tidelog_events::doc::Json;

/// Which side a value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The device's item.
    Client,
    /// The record as the item met it.
    Server,
    /// Both: they say the same, or a list holds what both did to it.
    Both,
}

impl Origin {
    /// The name in tables and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Origin::Client => "client",
            Origin::Server => "server",
            Origin::Both => "both",
        }
    }
}

/// From each value that a side has changed, by its dotted path, to the side that it was taken from.
pub type Kept = BTreeMap<String, Origin>;

/// The document as it was at version `base`, from the current one and the changes since.
pub fn document_at(base: i64, current: &Doc, since: &[PastChange]) -> Doc {
    if base == 0 {
        // Before its first version a record is empty, whatever the current one began from.
        return Doc::new();
    }
    let mut doc = current.clone();
    for change in since.iter().rev() {
        let Touched { fields, before } = &*change.touched;
        doc = doc.only(|name, _| !fields.contains(name)).or(before);
    }
    doc
}

/// The last of the changes that made the value at `path` what it is in the current document.
pub fn last_change_of<'a>(path: &[String], current: &Doc, since: &'a [PastChange]) -> Option<&'a PastChange> {
    let (name, inner) = path.split_first()?;
    let value_of = |doc: &Doc| doc.get(name).map(Json::to_value);
    let mut after = value_of(current);
    for change in since.iter().rev() {
        if !change.touched.fields.contains(name) {
            continue;
        }
        let before = value_of(&change.touched.before);
        if value_at(before.as_ref(), inner) != value_at(after.as_ref(), inner) {
            return Some(change);
        }
        after = before;
    }
    None
}

fn value_at<'a>(value: Option<&'a Value>, path: &[String]) -> Option<&'a Value> {
    path.iter()
        .try_fold(value?, |value, name| value.as_object()?.get(name))
}

/// Merges. `client_wins` is asked, by path, about each value that both sides changed differently.
pub fn merge(base: &Doc, server: &Doc, client: &Doc, client_wins: &dyn Fn(&[String]) -> bool) -> (Doc, Kept) {
    let mut merger = Merger {
        client_wins,
        path: Vec::new(),
        kept: Kept::new(),
    };
    let [base, server, client] = [base, server, client].map(Doc::to_map);
    let doc = merger.objects(Some(&base), &server, &client);
    (doc.into(), merger.kept)
}

/// A document, or an object in one.
type Object = Map<String, Value>;

struct Merger<'f> {
    client_wins: &'f dyn Fn(&[String]) -> bool,
    path: Vec<String>,
    kept: Kept,
}

impl Merger<'_> {
    fn objects(&mut self, base: Option<&Object>, server: &Object, client: &Object) -> Object {
        let names: BTreeSet<&String> = server.keys().chain(client.keys()).collect();
        // What only the base has, both sides removed: nothing is left of it, and nothing to tell apart.
        let mut doc = Object::new();
        for name in names {
            self.path.push(name.clone());
            let before = base.and_then(|base| base.get(name));
            if let Some(value) = self.value(before, server.get(name), client.get(name)) {
                doc.insert(name.clone(), value);
            }
            self.path.pop();
        }
        doc
    }

    fn value(
        &mut self,
        base: Option<&Value>,
        server: Option<&Value>,
        client: Option<&Value>,
    ) -> Option<Value> {
        if server == client {
            if server != base {
                self.keep(Origin::Both);
            }
            return server.cloned();
        }
        if let (Some(Value::Object(server)), Some(Value::Object(client))) = (server, client) {
            let base = base.and_then(Value::as_object);
            return Some(Value::Object(self.objects(base, server, client)));
        }
        if client == base {
            self.keep(Origin::Server);
            return server.cloned();
        }
        if server == base {
            self.keep(Origin::Client);
            return client.cloned();
        }
        if let (Some(before), Some(theirs), Some(ours)) = (strings(base), strings(server), strings(client)) {
            self.keep(Origin::Both);
            let set = merge_sets(&before, &theirs, &ours);
            let cleared = set.is_empty() && (server.is_none() || client.is_none());
            return (!cleared).then(|| Value::from(set));
        }
        if (self.client_wins)(&self.path) {
            self.keep(Origin::Client);
            client.cloned()
        } else {
            self.keep(Origin::Server);
            server.cloned()
        }
    }

    fn keep(&mut self, origin: Origin) {
        self.kept.insert(self.path.join("."), origin);
    }
}

/// A list of strings; one that is not there is empty.
fn strings(value: Option<&Value>) -> Option<Vec<&str>> {
    match value {
        None => Some(Vec::new()),
        Some(Value::Array(values)) => values.iter().map(Value::as_str).collect(),
        Some(_) => None,
    }
}

/// The server's set without what the client took out, then what the client added, each once and in its own order.
fn merge_sets<'a>(base: &[&str], server: &[&'a str], client: &[&'a str]) -> Vec<&'a str> {
    let stays = server
        .iter()
        .filter(|value| !base.contains(value) || client.contains(value));
    let added = client.iter().filter(|value| !base.contains(value));
    let mut seen = BTreeSet::new();
    stays
        .chain(added)
        .copied()
        .filter(|value| seen.insert(*value))
        .collect()
}
