//! What a phone is told of a batch that is in the log: its final answer where the projection has it in time, else
//! where to ask for it. Finds outcomes through [`FindOutcomes`] and knows no table of theirs.

use crate::claim::Stored;
use crate::incoming::Identity;
use crate::ledger::Ledger;
use crate::resolution;
use chrono::{DateTime, Utc};
use std::sync::Arc;
use std::time::Duration;
use tidelog_events::answer::{Answer, RefusedItem};
use tidelog_events::domain::Registry;
use tidelog_events::drill;
use tidelog_events::outcome::{FindOutcomes, ItemOutcome, Outcome};
use tidelog_events::position::{Appended, Positions};
use tidelog_events::target::Target;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

/// How long reading a batch's outcomes may take once the projection has them.
const READING: Duration = Duration::from_secs(2);

/// What a phone is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The final answer.
    Final {
        /// HTTP status.
        status: u16,
        /// JSON.
        body: String,
        /// Whether the batch had been taken before this request.
        replayed: bool,
    },
    /// The batch is in the log; its outcomes are to come.
    Accepted {
        /// Where to ask.
        receipt: String,
        /// JSON.
        body: String,
        /// Whether the batch had been taken before this request.
        replayed: bool,
    },
}

/// A batch that is in the log, on its way to its answer.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) target: Target,
    pub(crate) identity: Identity,
    /// Sealed.
    pub(crate) receipt: String,
    pub(crate) received_at: DateTime<Utc>,
    pub(crate) appended_items: u32,
    pub(crate) appended: Appended,
    pub(crate) refused: Vec<RefusedItem>,
    /// Whether the batch had been taken before this request.
    pub(crate) replayed: bool,
}

impl Taken {
    /// The final answer. One to a decision that could not be is a problem; the body is the same for every retry.
    pub(crate) fn conclude(&self, registry: &Registry, outcomes: &[ItemOutcome]) -> Stored {
        let refusal = self.refused.first().map(|item| &item.error).or_else(|| {
            outcomes.iter().find_map(|item| match &item.outcome {
                Outcome::Refused { error } => Some(error),
                _ => None,
            })
        });
        match (&self.target, refusal) {
            (Target::Resolution, Some(error)) => {
                let problem = resolution::problem(error);
                Stored {
                    status: problem.status().as_u16(),
                    body: String::from_utf8_lossy(&problem.to_bytes()).into_owned(),
                }
            }
            _ => Stored {
                status: 200,
                body: self.compose(registry, outcomes, false),
            },
        }
    }

    /// The body, from the outcomes known.
    pub(crate) fn compose(&self, registry: &Registry, outcomes: &[ItemOutcome], pending: bool) -> String {
        let answer = Answer {
            target: &self.target,
            registry,
            batch_id: self.identity.batch.to_string(),
            receipt: self.receipt.clone(),
            received_at: self.received_at,
            refused: &self.refused,
            outcomes,
            pending,
        };
        answer.to_json()
    }

    /// The answer while outcomes are to come. The same however often it is asked for, as it says only what the
    /// gateway itself decided.
    pub(crate) fn accepted(self, registry: &Registry) -> Reply {
        Reply::Accepted {
            body: self.compose(registry, &[], true),
            receipt: self.receipt,
            replayed: self.replayed,
        }
    }
}

/// Where answers come from.
pub(crate) struct Answers<F> {
    pub(crate) registry: Arc<Registry>,
    pub(crate) positions: watch::Receiver<Arc<Positions>>,
    pub(crate) outcomes: F,
    pub(crate) ledger: Arc<Ledger>,
    /// Answers that may be on their way into the store beside their phones' next requests.
    pub(crate) keeping: Arc<Semaphore>,
}

/// Bounds the memory of answers that wait to be stored.
pub(crate) const KEEPING: usize = 64;

impl<F: FindOutcomes> Answers<F> {
    /// Waits for the projection until the deadline, and answers.
    pub(crate) async fn conclude(&self, taken: Taken, deadline: Instant) -> Reply {
        match self.outcomes(&taken, deadline).await {
            None => taken.accepted(&self.registry),
            Some(outcomes) => {
                let answer = taken.conclude(&self.registry, &outcomes);
                let Stored { status, body } = self.keep(&taken, answer).await;
                Reply::Final {
                    status,
                    body,
                    replayed: taken.replayed,
                }
            }
        }
    }

    /// Keeps a final answer under its key, and says which one stands. A first answer needs no wait for that: it is a
    /// function of the batch and of history, so whoever composes it again, before it is kept or because it never was,
    /// composes the same bytes. Only a retry waits, since an older release may have answered first; and everybody, while
    /// too many answers are on their way.
    async fn keep(&self, taken: &Taken, answer: Stored) -> Stored {
        drill::reached("ingest.answered");
        let permit = (!taken.replayed)
            .then(|| self.keeping.clone().try_acquire_owned().ok())
            .flatten();
        let Some(permit) = permit else {
            let kept = self.ledger.keep_answer(&taken.identity, &answer).await;
            return kept.ok().flatten().unwrap_or(answer);
        };
        let (ledger, identity, kept) = (self.ledger.clone(), taken.identity.clone(), answer.clone());
        tokio::spawn(async move {
            // Where it cannot be kept, the same is composed again another time.
            let _ = ledger.keep_answer(&identity, &kept).await;
            drop(permit);
        });
        answer
    }

    /// All outcomes, unless one is missing at the deadline.
    async fn outcomes(&self, taken: &Taken, deadline: Instant) -> Option<Vec<ItemOutcome>> {
        if taken.appended_items == 0 {
            return Some(Vec::new());
        }
        let mut positions = self.positions.clone();
        let covered = positions.wait_for(|positions| positions.cover(&taken.appended));
        // Even a deadline that has passed finds what is there already.
        tokio::time::timeout_at(deadline, covered).await.ok()?.ok()?;
        let reading = self
            .outcomes
            .of_batch(&taken.identity.tenant, taken.identity.batch);
        match tokio::time::timeout(READING, reading).await {
            Ok(Ok(outcomes)) if outcomes.len() >= taken.appended_items as usize => Some(outcomes),
            Ok(Ok(outcomes)) => {
                let (found, appended) = (outcomes.len(), taken.appended_items);
                tracing::error!(batch = %taken.identity.batch, found, appended, "an applied batch lacks outcomes");
                None
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "an answer stays open");
                None
            }
            Err(_) => {
                tracing::warn!("an answer stays open: outcomes take too long to read");
                None
            }
        }
    }
}
