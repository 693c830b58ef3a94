//! A document being written: text and places of its members, which only this file knows how to keep in step.

use super::{Body, Doc, Member};
use serde_json::Value;
use std::sync::Arc;

/// Bytes of a member, about.
const MEMBER: usize = 24;

/// Writes a document, member by member, in the order of their names.
pub(super) struct Writer(Body);

impl Writer {
    pub(super) fn with_room(room: usize) -> Writer {
        let text = String::with_capacity(room);
        let members = Vec::with_capacity(room / MEMBER);
        Writer(Body { text, members })
    }

    /// Members of another document that follow each other there, as they stand.
    pub(super) fn copy(&mut self, of: &Doc, run: &[Member]) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else {
            return;
        };
        let Body { text, members } = &mut self.0;
        text.push_str(if members.is_empty() { "{\"" } else { ",\"" });
        // Where it stood before the first, and where it stands now: every place moves as far.
        let (from, to) = (first.name, text.len() as u32);
        text.push_str(&of.text()[first.name as usize..last.value_end as usize]);
        members.extend(run.iter().map(|member| Member {
            name: member.name - from + to,
            name_end: member.name_end - from + to,
            value_end: member.value_end - from + to,
            escaped: member.escaped,
        }));
    }

    /// With the name that a member has in another document.
    pub(super) fn member(&mut self, of: &Doc, member: Member, value: &str) {
        let name = &of.text()[member.name as usize..member.name_end as usize];
        self.push(name, member.escaped, |text| text.push_str(value));
    }

    pub(super) fn named(&mut self, name: &str, value: &str) {
        if name.bytes().any(needs_escape) {
            let quoted = Value::from(name).to_string();
            self.push(&quoted[1..quoted.len() - 1], true, |text| text.push_str(value));
        } else {
            self.push(name, false, |text| text.push_str(value));
        }
    }

    /// A name that needs no escape, and a value that writes itself.
    pub(super) fn written(&mut self, name: &str, value: impl FnOnce(&mut String)) {
        self.push(name, false, value);
    }

    fn push(&mut self, name: &str, escaped: bool, value: impl FnOnce(&mut String)) {
        let Body { text, members } = &mut self.0;
        text.push_str(if members.is_empty() { "{\"" } else { ",\"" });
        let from = text.len();
        text.push_str(name);
        let name_end = text.len();
        text.push_str("\":");
        value(text);
        // No item comes near 4 GiB: the log takes no such record.
        members.push(Member {
            name: from as u32,
            name_end: name_end as u32,
            value_end: text.len() as u32,
            escaped,
        });
    }

    pub(super) fn end(mut self) -> Doc {
        if self.0.members.is_empty() {
            return Doc::new();
        }
        self.0.text.push('}');
        Doc(Some(Arc::new(self.0)))
    }
}

fn needs_escape(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}
