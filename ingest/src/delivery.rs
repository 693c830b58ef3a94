//! The delivery of one batch: a counter that every record of it reports to, and a wait for the last one. One small
//! object a batch rather than a future an item. Knows what a partition is, but no producer.

use std::sync::{Mutex, MutexGuard, PoisonError};
use tidelog_events::position::{Appended, TopicPartition};
use tokio::sync::Notify;

/// How many records are out, where the others came to lie, and the first thing that went wrong.
#[derive(Debug, Default)]
pub(crate) struct Delivery {
    state: Mutex<State>,
    complete: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Records handed to the producer and not reported yet.
    outstanding: usize,
    /// No more will be handed over.
    closed: bool,
    /// A batch touches a few partitions, so a list is searched faster than a map, and a name is copied once each.
    places: Vec<(TopicPartition, i64)>,
    failure: Option<String>,
}

impl Delivery {
    /// Counts a record in, before the producer gets it: its report may come at once.
    pub(crate) fn begin(&self) {
        self.lock().outstanding += 1;
    }

    /// Takes back the last [`begin`](Self::begin): the producer did not take the record.
    pub(crate) fn retract(&self) {
        self.lock().outstanding -= 1;
    }

    /// One record lies at that place.
    pub(crate) fn delivered(&self, topic: &str, partition: i32, offset: i64) {
        let mut state = self.lock();
        let known = state
            .places
            .iter_mut()
            .find(|(at, _)| at.partition == partition && at.topic == topic);
        match known {
            Some((_, last)) => *last = offset.max(*last),
            None => {
                let at = TopicPartition {
                    topic: topic.to_owned(),
                    partition,
                };
                state.places.push((at, offset));
            }
        }
        self.reported(state);
    }

    /// One record does not lie anywhere that is known.
    pub(crate) fn failed(&self, why: impl FnOnce() -> String) {
        let mut state = self.lock();
        if state.failure.is_none() {
            state.failure = Some(why());
        }
        self.reported(state);
    }

    fn reported(&self, mut state: MutexGuard<'_, State>) {
        state.outstanding -= 1;
        let complete = state.closed && state.outstanding == 0;
        drop(state);
        if complete {
            self.complete.notify_one();
        }
    }

    /// Says that no more records follow, and waits for the report of the last one. To be called once.
    pub(crate) async fn finish(&self) -> Result<Appended, String> {
        let outstanding = {
            let mut state = self.lock();
            state.closed = true;
            state.outstanding
        };
        if outstanding > 0 {
            // A notification that comes before this wait is kept for it.
            self.complete.notified().await;
        }
        let mut state = self.lock();
        if let Some(failure) = state.failure.take() {
            return Err(failure);
        }
        let mut appended = Appended::default();
        for (at, last) in state.places.drain(..) {
            appended.note(at, last);
        }
        Ok(appended)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change above is whole before anything in it could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    #[tokio::test]
    async fn a_batch_is_delivered_with_its_last_record() {
        let delivery = Arc::new(Delivery::default());
        for _ in 0..3 {
            delivery.begin();
        }
        delivery.delivered("t", 0, 7);
        let waiting = tokio::spawn({
            let delivery = delivery.clone();
            async move { delivery.finish().await }
        });
        delivery.delivered("t", 1, 3);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        delivery.delivered("t", 0, 6);
        let appended = waiting.await.expect("no panic").expect("delivered");
        let places: Vec<_> = appended.iter().map(|(at, last)| (at.partition, last)).collect();
        assert_eq!(places, [(0, 7), (1, 3)]);
    }

    #[tokio::test]
    async fn reports_that_come_before_the_last_record_is_sent_do_not_end_it() {
        let delivery = Delivery::default();
        delivery.begin();
        delivery.delivered("t", 0, 0);
        delivery.begin();
        let early = tokio::time::timeout(Duration::from_millis(20), delivery.finish()).await;
        assert!(early.is_err(), "one record is still out");
    }

    #[tokio::test]
    async fn the_first_failure_is_told_after_the_last_report() {
        let delivery = Delivery::default();
        for _ in 0..3 {
            delivery.begin();
        }
        delivery.failed(|| "first".into());
        delivery.failed(|| "second".into());
        delivery.delivered("t", 0, 1);
        assert_eq!(delivery.finish().await, Err("first".into()));
    }

    #[tokio::test]
    async fn what_the_producer_did_not_take_is_not_waited_for() {
        let delivery = Delivery::default();
        delivery.begin();
        delivery.retract();
        assert!(delivery.finish().await.expect("nothing went wrong").is_empty());
    }
}
