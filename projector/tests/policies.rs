//! The six policies, case by case, with results written by hand: who wins, at which version the record stands, and what
//! it says. Each case is told in a record's own log: what the server had, then the item that did not know of it.

mod common;

use common::tale::Tale;
use common::*;
use serde_json::json;
use tidelog_events::domain::Policy::{
    self, ClientWins, Manual, Merge, MostRecentWins, PreserveEscalation, ServerWins,
};
use tidelog_events::item::Operation::{Delete, Update};
use tidelog_events::outcome::Winner;

/// What Bert did at minute 10 to version 1, and what Anna, at version 1 still, wanted.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Clash {
    /// Both changed `comments`.
    Overlap,
    /// Bert changed `comments`, Anna `priority`.
    Apart,
    /// Bert changed `comments`, Anna deleted.
    DeleteOfChanged,
    /// Bert deleted, Anna changed `comments`.
    ChangeOfDeleted,
}

use Clash::*;

const OLDER: i64 = 5;
const EQUAL: i64 = 10;
const NEWER: i64 = 15;

fn clash(policy: Policy, clash: Clash, minute: i64) -> (Winner, i64, String) {
    let mut tale = Tale::of_a_ticket(policy);
    match clash {
        ChangeOfDeleted => tale.tell(BERT, Delete, 1, 10, json!({})),
        _ => tale.tell(BERT, Update, 1, 10, json!({"comments": "bert"})),
    };
    assert_eq!(tale.shelf.state(TICKET).version, 2);
    match clash {
        Overlap | ChangeOfDeleted => tale.behind(ANNA, Update, 1, minute, json!({"comments": "anna"})),
        Apart => tale.behind(ANNA, Update, 1, minute, json!({"priority": "HIGH"})),
        DeleteOfChanged => tale.behind(ANNA, Delete, 1, minute, json!({})),
    }
}

fn table(policy: Policy, rows: [(Clash, i64, Winner, i64, &str); 12]) {
    for (case, minute, winner, version, says) in rows {
        assert_eq!(
            clash(policy, case, minute),
            (winner, version, says.to_owned()),
            "{policy:?}, {case:?}, Anna at minute {minute}, Bert at 10"
        );
    }
}

#[test]
fn client_wins_applies_the_devices_item_whatever_the_time() {
    table(
        ClientWins,
        [
            (Overlap, OLDER, Winner::Client, 3, "anna LOW"),
            (Overlap, EQUAL, Winner::Client, 3, "anna LOW"),
            (Overlap, NEWER, Winner::Client, 3, "anna LOW"),
            (Apart, OLDER, Winner::Client, 3, "bert HIGH"),
            (Apart, EQUAL, Winner::Client, 3, "bert HIGH"),
            (Apart, NEWER, Winner::Client, 3, "bert HIGH"),
            (DeleteOfChanged, OLDER, Winner::Client, 3, "deleted"),
            (DeleteOfChanged, EQUAL, Winner::Client, 3, "deleted"),
            (DeleteOfChanged, NEWER, Winner::Client, 3, "deleted"),
            (ChangeOfDeleted, OLDER, Winner::Client, 3, "anna LOW"),
            (ChangeOfDeleted, EQUAL, Winner::Client, 3, "anna LOW"),
            (ChangeOfDeleted, NEWER, Winner::Client, 3, "anna LOW"),
        ],
    );
}

#[test]
fn server_wins_leaves_the_record_as_it_is() {
    table(
        ServerWins,
        [
            (Overlap, OLDER, Winner::Server, 2, "bert LOW"),
            (Overlap, EQUAL, Winner::Server, 2, "bert LOW"),
            (Overlap, NEWER, Winner::Server, 2, "bert LOW"),
            (Apart, OLDER, Winner::Server, 2, "bert LOW"),
            (Apart, EQUAL, Winner::Server, 2, "bert LOW"),
            (Apart, NEWER, Winner::Server, 2, "bert LOW"),
            (DeleteOfChanged, OLDER, Winner::Server, 2, "bert LOW"),
            (DeleteOfChanged, EQUAL, Winner::Server, 2, "bert LOW"),
            (DeleteOfChanged, NEWER, Winner::Server, 2, "bert LOW"),
            (ChangeOfDeleted, OLDER, Winner::Server, 2, "deleted"),
            (ChangeOfDeleted, EQUAL, Winner::Server, 2, "deleted"),
            (ChangeOfDeleted, NEWER, Winner::Server, 2, "deleted"),
        ],
    );
}

#[test]
fn most_recent_wins_takes_the_later_and_a_tie_keeps_the_servers() {
    table(
        MostRecentWins,
        [
            (Overlap, OLDER, Winner::Server, 2, "bert LOW"),
            (Overlap, EQUAL, Winner::Server, 2, "bert LOW"),
            (Overlap, NEWER, Winner::Client, 3, "anna LOW"),
            (Apart, OLDER, Winner::Server, 2, "bert LOW"),
            (Apart, EQUAL, Winner::Server, 2, "bert LOW"),
            (Apart, NEWER, Winner::Client, 3, "bert HIGH"),
            (DeleteOfChanged, OLDER, Winner::Server, 2, "bert LOW"),
            (DeleteOfChanged, EQUAL, Winner::Server, 2, "bert LOW"),
            (DeleteOfChanged, NEWER, Winner::Client, 3, "deleted"),
            (ChangeOfDeleted, OLDER, Winner::Server, 2, "deleted"),
            (ChangeOfDeleted, EQUAL, Winner::Server, 2, "deleted"),
            (ChangeOfDeleted, NEWER, Winner::Client, 3, "anna LOW"),
        ],
    );
}

#[test]
fn preserve_escalation_applies_the_item_and_decides_a_deletion_by_time() {
    table(
        PreserveEscalation,
        [
            (Overlap, OLDER, Winner::Merged, 3, "anna LOW"),
            (Overlap, EQUAL, Winner::Merged, 3, "anna LOW"),
            (Overlap, NEWER, Winner::Merged, 3, "anna LOW"),
            (Apart, OLDER, Winner::Merged, 3, "bert HIGH"),
            (Apart, EQUAL, Winner::Merged, 3, "bert HIGH"),
            (Apart, NEWER, Winner::Merged, 3, "bert HIGH"),
            (DeleteOfChanged, OLDER, Winner::Server, 2, "bert LOW"),
            (DeleteOfChanged, EQUAL, Winner::Server, 2, "bert LOW"),
            (DeleteOfChanged, NEWER, Winner::Client, 3, "deleted"),
            (ChangeOfDeleted, OLDER, Winner::Server, 2, "deleted"),
            (ChangeOfDeleted, EQUAL, Winner::Server, 2, "deleted"),
            (ChangeOfDeleted, NEWER, Winner::Client, 3, "anna LOW"),
        ],
    );
}

#[test]
fn merge_goes_field_by_field_and_decides_a_deletion_by_time() {
    table(
        Merge,
        [
            (Overlap, OLDER, Winner::Merged, 2, "bert LOW"),
            (Overlap, EQUAL, Winner::Merged, 2, "bert LOW"),
            (Overlap, NEWER, Winner::Merged, 3, "anna LOW"),
            (Apart, OLDER, Winner::Merged, 3, "bert HIGH"),
            (Apart, EQUAL, Winner::Merged, 3, "bert HIGH"),
            (Apart, NEWER, Winner::Merged, 3, "bert HIGH"),
            (DeleteOfChanged, OLDER, Winner::Server, 2, "bert LOW"),
            (DeleteOfChanged, EQUAL, Winner::Server, 2, "bert LOW"),
            (DeleteOfChanged, NEWER, Winner::Client, 3, "deleted"),
            (ChangeOfDeleted, OLDER, Winner::Server, 2, "deleted"),
            (ChangeOfDeleted, EQUAL, Winner::Server, 2, "deleted"),
            (ChangeOfDeleted, NEWER, Winner::Client, 3, "anna LOW"),
        ],
    );
}

#[test]
fn manual_applies_nothing_and_nobody_has_won() {
    table(
        Manual,
        [
            (Overlap, OLDER, Winner::None, 2, "bert LOW"),
            (Overlap, EQUAL, Winner::None, 2, "bert LOW"),
            (Overlap, NEWER, Winner::None, 2, "bert LOW"),
            (Apart, OLDER, Winner::None, 2, "bert LOW"),
            (Apart, EQUAL, Winner::None, 2, "bert LOW"),
            (Apart, NEWER, Winner::None, 2, "bert LOW"),
            (DeleteOfChanged, OLDER, Winner::None, 2, "bert LOW"),
            (DeleteOfChanged, EQUAL, Winner::None, 2, "bert LOW"),
            (DeleteOfChanged, NEWER, Winner::None, 2, "bert LOW"),
            (ChangeOfDeleted, OLDER, Winner::None, 2, "deleted"),
            (ChangeOfDeleted, EQUAL, Winner::None, 2, "deleted"),
            (ChangeOfDeleted, NEWER, Winner::None, 2, "deleted"),
        ],
    );
}

/// Bert at 10, then Carl at 12 and Anna at 11, both on version 1 still: what becomes of Carl's item, then of Anna's, and
/// the ticket's kind, which only she changed.
#[test]
fn three_devices_on_one_version() {
    use Winner::{Client, Merged, Server};
    let rows = [
        (
            ClientWins,
            (Client, 3, "carl HIGH"),
            (Client, 4, "anna HIGH"),
            "REQUEST",
        ),
        (
            ServerWins,
            (Server, 2, "bert LOW"),
            (Server, 2, "bert LOW"),
            "TICKET",
        ),
        (
            MostRecentWins,
            (Client, 3, "carl HIGH"),
            (Server, 3, "carl HIGH"),
            "TICKET",
        ),
        (
            PreserveEscalation,
            (Merged, 3, "carl HIGH"),
            (Merged, 4, "anna HIGH"),
            "REQUEST",
        ),
        (
            Merge,
            (Merged, 3, "carl HIGH"),
            (Merged, 4, "carl HIGH"),
            "REQUEST",
        ),
        (
            Manual,
            (Winner::None, 2, "bert LOW"),
            (Winner::None, 2, "bert LOW"),
            "TICKET",
        ),
    ];
    for (policy, carl, anna, kind) in rows {
        let mut tale = Tale::of_a_ticket(policy);
        tale.tell(BERT, Update, 1, 10, json!({"comments": "bert"}));
        let item = json!({"comments": "carl", "priority": "HIGH"});
        let (winner, version, says) = tale.behind(CARL, Update, 1, 12, item);
        assert_eq!((winner, version, says.as_str()), carl, "{policy:?}");
        let item = json!({"comments": "anna", "identifier": "REQUEST"});
        let (winner, version, says) = tale.behind(ANNA, Update, 1, 11, item);
        assert_eq!((winner, version, says.as_str()), anna, "{policy:?}");
        assert_eq!(tale.doc()["identifier"], kind, "{policy:?}");
    }
}
