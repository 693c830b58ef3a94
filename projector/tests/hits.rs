//! Items that come again are counted once each, by the log's time alone; what is read again is not.

mod common;

use common::*;
use serde_json::{Value, json};
use tidelog_events::item::Operation::{self, Append, Create, Delete, Update};
use tidelog_events::outcome::Outcome;
use tidelog_projector::hits::KEPT;

/// A log of items, each in a batch of its own.
struct Story {
    log: Log,
    shelf: Shelf,
}

impl Story {
    fn new() -> Story {
        Story {
            log: Log::new(),
            shelf: Shelf::default(),
        }
    }

    fn send(&mut self, domain: &'static str, phone: Phone, operation: Operation, base: i64, item: Value) {
        let batch = self.log.events.len() as u64;
        let subject = if operation == Append { "anna/s" } else { TICKET };
        let sent = Sent {
            batch,
            ..Sent::new(domain, phone, operation, subject, base, item)
        };
        let event = self.log.append(&sent);
        self.shelf.fold(&self.log.registry, &[event], &[]);
    }

    fn ticket(&mut self, phone: Phone, operation: Operation, base: i64, fields: Value) {
        self.send("helpdesk", phone, operation, base, ticket(fields));
    }

    /// Device and count of each row.
    fn counts(&self) -> Vec<(&str, i64)> {
        let mut counts: Vec<(&str, i64)> = self
            .shelf
            .hits
            .iter()
            .map(|(key, counted)| (key.device.as_str(), counted.0))
            .collect();
        counts.sort_unstable();
        counts
    }
}

#[test]
fn whatever_became_of_an_item_its_repeats_are_hits() {
    let mut story = Story::new();
    let make = json!({"ticketdesc": "the pump is leaking"});
    story.ticket(ANNA, Create, 0, make.clone());
    story.ticket(ANNA, Update, 1, json!({"comments": "mine"}));
    story.ticket(BERT, Update, 1, json!({"comments": "behind"}));
    story.ticket(ANNA, Delete, 2, json!({}));
    story.ticket(ANNA, Delete, 3, json!({}));
    assert_eq!(story.counts(), [], "what is new is no hit");
    story.ticket(ANNA, Create, 0, make);
    story.ticket(ANNA, Update, 1, json!({"comments": "mine"}));
    story.ticket(BERT, Update, 1, json!({"comments": "behind"}));
    story.ticket(ANNA, Delete, 2, json!({}));
    story.ticket(ANNA, Delete, 3, json!({}));
    let four = [("phone-anna", 1); 4];
    assert_eq!(story.counts(), [&four[..], &[("phone-bert", 1)]].concat());
}

#[test]
fn what_was_refused_and_comes_again_is_judged_anew_and_no_hit() {
    let mut story = Story::new();
    for _ in 0..3 {
        story.ticket(ANNA, Create, 0, json!({"comments": "without a description"}));
    }
    let refused = |outcome: &Outcome| matches!(outcome, Outcome::Refused { .. });
    assert!((0..3).all(|batch| story.shelf.outcome(batch).as_ref().is_some_and(refused)));
    assert_eq!(story.counts(), []);
}

#[test]
fn each_device_has_a_count_of_its_own() {
    let mut story = Story::new();
    let seen = json!({"session_id": "s", "event_count": 1});
    for phone in [ANNA, ANNA, ANNAS_TABLET, ANNA] {
        story.send("sessions", phone, Append, 0, seen.clone());
    }
    assert_eq!(story.counts(), [("phone-anna", 2), ("tablet-anna", 1)]);
}

#[test]
fn a_hit_after_its_count_has_expired_begins_a_new_one() {
    let mut story = Story::new();
    let seen = |n| json!({"session_id": "s", "event_count": n});
    // Seven hours an event: the second pair of hits comes 28 hours after the first.
    for n in [1, 1, 1, 2, 3, 4, 1, 1] {
        story.send("sessions", ANNA, Append, 0, seen(n));
    }
    assert_eq!(story.counts(), [("phone-anna", 2)]);
    let (key, counted) = story.shelf.hits.iter().next().expect("a row");
    let events = &story.log.events;
    assert_eq!(
        *counted,
        (2, events[6].log_time, events[7].key(), events[7].log_time)
    );
    assert_eq!(key.content, events[0].content);
    assert!(events[6].log_time >= events[2].log_time + KEPT);

    // The same in one chunk, where the store sees only what is left.
    let mut at_once = Shelf::default();
    at_once.fold(&story.log.registry, events, &[]);
    assert_eq!(at_once.hits, story.shelf.hits);
}

#[test]
fn the_log_read_again_counts_nothing_twice() {
    let mut story = Story::new();
    for _ in 0..3 {
        story.ticket(ANNA, Create, 0, json!({"ticketdesc": "the pump is leaking"}));
    }
    let before = story.shelf.clone();
    story.shelf.fold(&story.log.registry, &story.log.events, &[2]);
    assert_eq!(story.shelf, before);
    assert_eq!(story.counts(), [("phone-anna", 2)]);
}
