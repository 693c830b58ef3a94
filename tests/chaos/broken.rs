//! A check that cannot fail shows nothing: each of these takes a guard out, does what the case of that guard does, and has to
//! be noticed, by the rule that the guard keeps.

use crate::cases::{behind_a_wire, lose_answers};
use crate::faults;
use crate::run::{BROKEN, run, seconds, until_noticed, without};

/// What is told or stored twice shows in one of these, whichever is looked at first.
pub(crate) const TWICE: [&str; 3] = [
    "told",
    "one item had several effects",
    "versions do not rise by one",
];
/// What is lost: without an outcome, or folded another time when the phone tries again.
pub(crate) const LOST: [&str; 6] = [
    "in the log without an outcome",
    "a batch that was accepted",
    TWICE[0],
    TWICE[1],
    TWICE[2],
    "who followed holds",
];
/// What somebody writes who does not own the partition: its position goes back, or it meets what the owner has written.
const NOT_ITS_OWN: [&str; 3] = ["a position moved back", "0 records were poison", TWICE[0]];
const STUCK: [&str; 2] = ["a batch that was", "not everything in the log is applied"];

#[tokio::test(flavor = "multi_thread")]
async fn without_takeover_the_key_of_a_killed_gateway_is_shut_for_ever() {
    without("takeover", &STUCK, async |field, _| {
        faults::gateway_steps(field, &["claimed"]).await;
        0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_derived_ids_a_retry_does_not_find_its_batch() {
    // No gateway need be killed for that: a phone that was told to come back is not known any more.
    without("ids", &STUCK, async |_, _| {
        seconds(2.0).await;
        0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_repeat_check_an_append_done_twice_is_noticed() {
    without("repeat", &TWICE, async |field, _| {
        faults::gateway_steps(field, &["delivered", "delivered"]).await;
        0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_first_record_a_sleeper_changes_what_was_told() {
    without(
        "first",
        &["a retried key got another answer"],
        async |field, _| {
            faults::sleepers(field, &["ingest.delivered"]).await;
            0
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_one_transaction_a_projector_killed_halfway_loses_its_chunk() {
    without("transaction", &LOST, async |field, _| {
        faults::projector_steps(field, &["moved"]).await;
        0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_fence_a_zombie_is_noticed() {
    without("fence", &NOT_ITS_OWN, async |field, _| {
        faults::zombies(field, &["project.folded"]).await;
        0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_release_and_fence_a_rebalance_in_the_middle_of_a_chunk_is_noticed() {
    // Either of them holds alone.
    without("release,fence", &NOT_ITS_OWN, async |field, _| {
        faults::rebalances(field, 0).await;
        0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_orderly_stop_batches_are_left_behind() {
    without(
        "shutdown",
        &["gateways that were told to stop left"],
        async |field, _| {
            faults::stopped_in_order(field).await;
            0
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_giving_up_for_good_a_stopped_projector_passes_over_a_chunk() {
    without("give-up", &LOST, async |field, _| {
        faults::stopped_while_refused(field, 3).await;
        0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_skew_the_times_of_devices_are_believed() {
    without("skew", &["done at"], async |_, _| 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_reading_positions_again_a_lost_answer_stops_a_partition() {
    until_noticed(&STUCK, async || {
        let (proxy, field) = behind_a_wire("without-reread", &[("TIDELOG_DRILL_WITHOUT", "reread")]).await;
        run(field, 7, BROKEN, async |_, _| {
            lose_answers(&proxy).await;
            0
        })
        .await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_dead_letters_poison_stops_its_partition() {
    without("poison", &STUCK, async |field, _| {
        faults::poison(field, &["north"]).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_difference_between_data_and_trouble_items_become_dead_letters() {
    without("transient", &["0 records were poison"], async |field, _| {
        faults::refusals(field, &[("40001", 2)]).await;
        0
    })
    .await;
}
