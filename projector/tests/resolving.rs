//! A person decides what a policy left open: by every strategy, once, upon the record as it is, and only who may.

mod common;

use common::tale::*;
use common::*;
use serde_json::{Value, json};
use tidelog_events::domain::Policy;
use tidelog_events::error::ErrorCode;
use tidelog_events::item::Operation::{self, Create, Delete, Resolve, Update};
use tidelog_events::outcome::{Outcome, Winner};

/// Anna's ticket, Bert's change of it to version 2, and Anna's attempt on version 1, which waits. Answers its batch.
fn waiting(operation: Operation, attempt: Value) -> (Tale, u64) {
    let mut tale = Tale::of_a_ticket(Policy::Manual);
    tale.tell(
        BERT,
        Update,
        1,
        10,
        json!({"comments": "bert's", "priority": "HIGH"}),
    );
    let batch = tale.log.events.len() as u64;
    let outcome = tale.tell(ANNA, operation, 1, 20, attempt);
    assert!(
        matches!(
            outcome,
            Outcome::Conflict {
                winner: Winner::None,
                ..
            }
        ),
        "{outcome:?}"
    );
    (tale, batch)
}

impl Tale {
    /// What becomes of a resolution.
    fn resolve(&mut self, who: Phone, of: u64, base: i64, strategy: &str, data: Option<Value>) -> Outcome {
        let batch = self.log.events.len() as u64;
        let sent = Sent {
            batch,
            ..Sent::new(
                "helpdesk",
                who,
                Resolve,
                TICKET,
                base,
                resolution(of, strategy, data),
            )
        };
        let event = self.log.append(&sent);
        self.shelf.fold(&self.log.registry, &[event], &[]);
        self.shelf.check();
        self.shelf.outcome(batch).expect("an outcome")
    }

    /// Who won, at which version the record stands, and what it says, after a resolution that counts.
    #[track_caller]
    fn decided(
        &mut self,
        who: Phone,
        of: u64,
        base: i64,
        strategy: &str,
        data: Option<Value>,
    ) -> (Winner, i64, String) {
        let outcome = self.resolve(who, of, base, strategy, data);
        let Outcome::Resolved { winner, version, .. } = outcome else {
            panic!("a resolution, not {outcome:?}")
        };
        assert_eq!(self.shelf.state(TICKET).version, version);
        (winner, version, self.says())
    }

    #[track_caller]
    fn refused(&mut self, who: Phone, of: u64, base: i64, strategy: &str, data: Option<Value>) -> ErrorCode {
        let before = self.shelf.states.clone();
        let outcome = self.resolve(who, of, base, strategy, data);
        assert_eq!(self.shelf.states, before, "the record stays as it is");
        match outcome {
            Outcome::Refused { error } => error.error_code,
            other => panic!("a refusal, not {other:?}"),
        }
    }
}

#[test]
fn every_strategy_does_what_it_says() {
    for (strategy, data, (winner, version, says)) in [
        ("client_wins", None, (Winner::Client, 3, "anna's HIGH")),
        ("server_wins", None, (Winner::Server, 2, "bert's HIGH")),
        // Anna's comment is the later one, and the priority only Bert changed.
        ("merge", None, (Winner::Merged, 3, "anna's HIGH")),
        (
            "manual",
            Some(json!({"comments": "sue's", "priority": "LOW"})),
            (Winner::Merged, 3, "sue's LOW"),
        ),
    ] {
        let (mut tale, batch) = waiting(Update, json!({"comments": "anna's"}));
        let decided = tale.decided(SUE, batch, 2, strategy, data);
        assert_eq!(decided, (winner, version, says.to_owned()), "{strategy}");
        let kept = &tale.shelf.conflicts[&batch_id(batch).conflict_id(0)];
        assert_eq!((kept.winner, kept.policy), (winner, Policy::Manual), "{strategy}");
        // The attempt's own answer stays what it was.
        assert!(matches!(
            tale.shelf.outcome(batch),
            Some(Outcome::Conflict {
                winner: Winner::None,
                ..
            })
        ));
    }
}

#[test]
fn a_deletion_that_waited_is_carried_out_or_not() {
    for (strategy, says) in [
        ("client_wins", "deleted"),
        ("server_wins", "bert's HIGH"),
        ("merge", "deleted"),
    ] {
        let (mut tale, batch) = waiting(Delete, json!({}));
        let (_, _, told) = tale.decided(SUE, batch, 2, strategy, None);
        assert_eq!(told, says, "{strategy}");
    }
    let (mut tale, batch) = waiting(Delete, json!({}));
    let told = tale.decided(SUE, batch, 2, "manual", Some(json!({"priority": "LOW"})));
    assert_eq!(told, (Winner::Merged, 3, "bert's LOW".into()));
}

#[test]
fn an_update_of_what_was_deleted_meanwhile_brings_it_back_if_it_wins() {
    let mut tale = Tale::of_a_ticket(Policy::Manual);
    tale.tell(BERT, Delete, 1, 10, json!({}));
    tale.tell(ANNA, Update, 1, 20, json!({"comments": "anna's"}));
    assert_eq!(
        tale.decided(SUE, 2, 2, "client_wins", None),
        (Winner::Client, 3, "anna's LOW".into())
    );
}

#[test]
fn it_is_resolved_once_and_by_whom_it_concerns() {
    let (mut tale, batch) = waiting(Update, json!({"comments": "anna's"}));
    assert_eq!(
        tale.refused(BERT, batch, 2, "client_wins", None),
        ErrorCode::Forbidden
    );
    tale.decided(ANNA, batch, 2, "client_wins", None);
    for strategy in ["client_wins", "server_wins", "merge"] {
        assert_eq!(
            tale.refused(SUE, batch, 3, strategy, None),
            ErrorCode::AlreadyResolved,
            "{strategy}"
        );
    }
    assert_eq!(
        tale.refused(SUE, 0, 3, "client_wins", None),
        ErrorCode::NoConflict
    );
    // What a policy decided stays decided.
    tale.policy = Policy::ClientWins;
    let decided = tale.log.events.len() as u64;
    tale.tell(BERT, Update, 1, 30, json!({"comments": "bert's again"}));
    assert_eq!(
        tale.refused(SUE, decided, 4, "server_wins", None),
        ErrorCode::AlreadyResolved
    );
}

#[test]
fn a_decision_upon_an_older_version_is_told_so_unless_it_leaves_the_record_as_it_is() {
    let (mut tale, batch) = waiting(Update, json!({"comments": "anna's"}));
    tale.tell(BERT, Update, 2, 30, json!({"comments": "bert's later one"}));
    for (strategy, data) in [
        ("client_wins", None),
        ("merge", None),
        ("manual", Some(json!({"priority": "LOW"}))),
    ] {
        assert_eq!(
            tale.refused(SUE, batch, 2, strategy, data),
            ErrorCode::RecordMoved,
            "{strategy}"
        );
    }
    assert_eq!(tale.decided(SUE, batch, 2, "server_wins", None).0, Winner::Server);
    // Upon the record as it is, it counts.
    let (mut tale, batch) = waiting(Update, json!({"comments": "anna's"}));
    tale.tell(BERT, Update, 2, 30, json!({"priority": "MEDIUM"}));
    assert_eq!(
        tale.decided(SUE, batch, 3, "client_wins", None),
        (Winner::Client, 4, "anna's MEDIUM".into())
    );
}

#[test]
fn what_it_makes_of_the_record_is_judged_like_any_change() {
    let (mut tale, batch) = waiting(Update, json!({"status": "CLOSED"}));
    assert_eq!(
        tale.refused(SUE, batch, 2, "client_wins", None),
        ErrorCode::InvalidTransition
    );
    assert_eq!(
        tale.refused(SUE, batch, 2, "manual", Some(json!({"ticketdesc": null}))),
        ErrorCode::ValidationError
    );
    // It still waits, and can be decided otherwise.
    assert_eq!(
        tale.decided(SUE, batch, 2, "manual", Some(json!({"status": "OPEN"})))
            .0,
        Winner::Merged
    );
}

#[test]
fn the_same_event_again_changes_nothing() {
    for strategy in ["client_wins", "server_wins"] {
        let (mut tale, batch) = waiting(Update, json!({"comments": "anna's"}));
        tale.decided(SUE, batch, 2, strategy, None);
        let (before, event) = (
            tale.shelf.clone(),
            tale.log.events.last().cloned().expect("an event"),
        );
        tale.shelf.fold(&tale.log.registry, &[event], &[]);
        assert_eq!(tale.shelf, before, "{strategy}");
    }
}

#[test]
fn whoever_knew_the_record_before_is_behind_the_decision() {
    let (mut tale, batch) = waiting(Update, json!({"comments": "anna's"}));
    tale.decided(SUE, batch, 2, "client_wins", None);
    tale.policy = Policy::ServerWins;
    let bert = tale.behind(BERT, Update, 2, 40, json!({"comments": "bert's"}));
    assert_eq!(bert, (Winner::Server, 3, "anna's HIGH".into()));
    tale.tell(ANNA, Create, 3, 50, json!({"comments": "on the decision"}));
    assert_eq!(tale.says(), "on the decision HIGH");
}
