//! Takes a batch: the order of the steps, and which of them go on when the phone hangs up. Claim, append and record
//! run in a task of their own, because an HTTP framework drops a handler whose client is gone; waiting for outcomes
//! does not, since the next retry finds the batch where this one left it. Must not know HTTP beyond the caller.

use crate::admission::Admission;
use crate::answer::{Answers, KEEPING, Taken, WAITING};
use crate::append;
use crate::claim::{Claim, Claiming, Stored};
use crate::config::IngestConfig;
use crate::error::IngestError;
use crate::incoming::{Identity, Incoming, Items};
use crate::judge::{Clock, judge};
use crate::ledger::Ledger;
use crate::producer::{Producer, Sending};
use crate::record::{Record, Standing};
use crate::seals::{Seals, close, settled};
use crate::terms::Terms;
use chrono::{DateTime, SubsecRound, Utc};
use deadpool_postgres::Pool;
use std::sync::Arc;
use std::time::Duration;
use tidelog_events::answer::RefusedItem;
use tidelog_events::domain::Registry;
use tidelog_events::drill;
use tidelog_events::envelope::Stamp;
use tidelog_events::outcome::FindOutcomes;
use tidelog_events::position::{Appended, Positions};
use tidelog_events::receipt::Receipt;
use tidelog_events::seal::{Accord, DataKey};
use tidelog_events::settings::Settings;
use tidelog_http::Shares;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tracing::Instrument;

pub use crate::answer::Reply;
pub use crate::incoming::{Post, To};
pub use crate::resolution::Contested;

/// Bodies above this are parsed and judged off the async worker: beyond it, other requests would feel it.
const HEAVY: usize = 128 * 1024;

/// What the write side is made of.
pub struct IngestParts<F> {
    /// The domains served.
    pub registry: Arc<Registry>,
    /// Connections whose search path begins with the service's schema.
    pub pool: Pool,
    /// The way into the log.
    pub producer: Arc<Producer>,
    /// How far the projection has come.
    pub positions: watch::Receiver<Arc<Positions>>,
    /// What became of items.
    pub outcomes: F,
    /// What seals personal values; none where the deployment has no secret for that.
    pub seals: Option<Arc<Seals>>,
    /// How what this gateway has stands to what the deployment seals with, from [`follow`](crate::seals::watch::follow()).
    pub accord: watch::Receiver<Accord>,
    /// What tenants have set, from [`follow`](crate::settings::follow()).
    pub settings: watch::Receiver<Arc<Settings>>,
    /// Settings.
    pub config: IngestConfig,
}

/// The write side.
pub struct Ingest<F> {
    registry: Arc<Registry>,
    producer: Arc<Producer>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) answers: Answers<F>,
    topic_prefix: String,
    seals: Option<Arc<Seals>>,
    accord: watch::Receiver<Accord>,
    settings: watch::Receiver<Arc<Settings>>,
    key_ttl: Duration,
    admission: Admission,
}

/// Where claim, append and record leave a batch.
enum Outcome {
    /// In the log; to be answered when the projection has it.
    Open(Taken),
    /// In the log, and Postgres is away: nothing to wait for.
    Unrecorded(Taken),
    /// Answered for good.
    Answered(Stored, bool),
}

/// A batch as the log has it.
struct Logged {
    items: usize,
    appended_items: u32,
    appended: Appended,
    refused: Vec<RefusedItem>,
}

impl<F: FindOutcomes> Ingest<F> {
    /// Puts it together. Neither Kafka nor Postgres needs to be there yet.
    pub fn new(parts: IngestParts<F>) -> Arc<Ingest<F>> {
        let IngestParts {
            registry,
            pool,
            producer,
            positions,
            outcomes,
            seals,
            accord,
            settings,
            config,
        } = parts;
        let ledger = Arc::new(Ledger::new(pool, &config));
        Arc::new(Ingest {
            producer,
            answers: Answers {
                registry: registry.clone(),
                positions,
                outcomes,
                ledger: ledger.clone(),
                keeping: Arc::new(Semaphore::new(KEEPING)),
                waiting: Shares::new(WAITING),
            },
            registry,
            ledger,
            topic_prefix: config.topic_prefix,
            seals,
            accord,
            settings,
            key_ttl: config.key_ttl,
            admission: Admission::new(config.in_flight_bytes),
        })
    }

    /// The domains served.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Records that wait for Postgres, and those dropped since the start because too many did.
    pub fn backlog(&self) -> (usize, u64) {
        self.ledger.backlog.counts()
    }

    /// Whether more batches come in than can be taken; passes by itself.
    pub fn overloaded(&self) -> bool {
        self.admission.overloaded()
    }

    /// Removes expired keys from time to time, for as long as it is polled.
    pub async fn expire_keys(&self) {
        self.ledger.expire_keys().await;
    }

    /// Takes a batch, waiting for outcomes until `wait` is over.
    pub async fn post(self: &Arc<Self>, post: Post, wait: Duration) -> Result<Reply, IngestError> {
        let deadline = Instant::now() + wait;
        // Postgres keeps microseconds; an answer made from what it kept must say the same.
        let arrival = Utc::now().trunc_subsecs(6);
        let admitted = self.admission.enter(&post.caller, post.body.len()).await?;
        let ingest = self.clone();
        let task = async move { admitted.work(ingest.take(&post, arrival)).await };
        let task = tokio::spawn(task.in_current_span());
        let outcome = task.await.map_err(|error| {
            tracing::error!(%error, "taking a batch ended unexpectedly");
            IngestError::Internal
        })??;
        drill::reached("ingest.taken");
        Ok(match outcome {
            Outcome::Open(taken) => self.answers.conclude(taken, deadline).await,
            Outcome::Unrecorded(taken) => taken.accepted(&self.registry),
            Outcome::Answered(Stored { status, body }, replayed) => Reply::Final {
                status,
                body,
                replayed,
            },
        })
    }

    /// Waits until every batch that was begun is in the log and recorded, up to `patience`; answers whether all are.
    /// For shutdown, after the last request was accepted.
    pub async fn drain(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let idle = tokio::time::timeout_at(deadline, self.admission.idle()).await;
        let flushed = self
            .producer
            .flush(deadline.saturating_duration_since(Instant::now()))
            .await;
        let keeping = self.answers.keeping.acquire_many(KEEPING as u32);
        let _ = tokio::time::timeout_at(deadline, keeping).await;
        while self.backlog().0 > 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        idle.is_ok() && flushed && self.backlog().0 == 0
    }

    /// Claim, append, record.
    async fn take(&self, post: &Post, arrival: DateTime<Utc>) -> Result<Outcome, IngestError> {
        let terms = Terms::of(&self.settings.borrow().clone(), &post.caller.tenant, self.key_ttl)?;
        let incoming = heavy(post.body.len(), || Incoming::of(post, &terms))?;
        let claim = match self.ledger.claim(&incoming.identity).await {
            Claiming::Claimed(claim) => Some(claim),
            Claiming::Unavailable => None,
            Claiming::Replay(answer) => return Ok(Outcome::Answered(answer, true)),
            Claiming::Pending { receipt } => {
                return Ok(self.resume(post, incoming.identity, receipt, arrival).await);
            }
            Claiming::InFlight => return Err(IngestError::InFlight { retry_after: 1 }),
            Claiming::OtherBody => return Err(IngestError::OtherBody),
        };
        let clock = Clock {
            arrival,
            sent_at: incoming.sent_at,
        };
        let appending = self.append(post, &incoming, &clock, &terms);
        drill::reached("ingest.claimed");
        let logged = match &claim {
            Some(claim) => claim.hold(appending).await,
            None => appending.await,
        };
        match logged {
            Ok(logged) => Ok(self.record(post, incoming.identity, claim, arrival, logged).await),
            Err(error) => {
                if let Some(claim) = claim {
                    claim.release().await;
                }
                Err(error)
            }
        }
    }

    /// Judges the items, hands over the good ones, and waits until the log has them all.
    async fn append(
        &self,
        post: &Post,
        incoming: &Incoming<'_>,
        clock: &Clock,
        terms: &Terms,
    ) -> Result<Logged, IngestError> {
        let personal = incoming.items.has_personal(&self.registry);
        let key = match &self.seals {
            Some(seals) if personal => {
                let Identity { tenant, user, .. } = &incoming.identity;
                let key = seals.key(tenant, user).await?;
                drill::reached("ingest.keyed");
                Some(key)
            }
            None if personal => {
                settled(&self.accord).await?;
                None
            }
            _ => None,
        };
        let handed_over = heavy(post.body.len(), || {
            self.hand_over(post, incoming, clock, terms, key.as_deref())
        });
        let (refused, sending) = handed_over?;
        drill::reached("ingest.handed_over");
        let appended = match sending {
            Some(sending) if drill::guarded("delivery") => sending.delivered().await?,
            _ => Appended::default(),
        };
        drill::reached("ingest.delivered");
        let items = incoming.items.count();
        Ok(Logged {
            items,
            // At most `MAX_ENTRIES`.
            appended_items: (items - refused.len()) as u32,
            appended,
            refused,
        })
    }

    fn hand_over(
        &self,
        post: &Post,
        incoming: &Incoming<'_>,
        clock: &Clock,
        terms: &Terms,
        key: Option<&DataKey>,
    ) -> Result<(Vec<RefusedItem>, Option<Sending<'_>>), IngestError> {
        let mut judged = judge(&self.registry, incoming, clock, terms);
        let identity = &incoming.identity;
        if let Some((seals, key)) = self.seals.as_ref().zip(key) {
            let tagger = seals.secret.tagger(identity.tenant.as_str());
            let mixed = matches!(incoming.items, Items::Mixed(_));
            close(&mut judged, &identity.tenant, &tagger, key, mixed);
        }
        if judged.accepted.is_empty() {
            return Ok((judged.refused, None));
        }
        let device_type = terms.settings.device_type(incoming.device_type.as_deref());
        let stamp = Stamp::new(
            identity.tenant.clone(),
            identity.user.clone(),
            identity.device.clone(),
            post.caller.role,
            device_type.map(|of| of.to_string()),
            identity.batch,
        );
        let sending = self.producer.begin()?;
        append::hand_over(
            &sending,
            &stamp,
            &self.topic_prefix,
            &terms.partitions,
            &judged.accepted,
        )?;
        Ok((judged.refused, Some(sending)))
    }

    async fn record(
        &self,
        post: &Post,
        identity: Identity,
        claim: Option<Claim>,
        arrival: DateTime<Utc>,
        logged: Logged,
    ) -> Outcome {
        let target = post.to.target();
        let receipt = Receipt {
            batch: identity.batch,
            appended_items: logged.appended_items,
            appended: logged.appended.clone(),
            target: target.in_receipt(logged.appended_items),
        };
        let taken = Taken {
            target,
            receipt: receipt.seal(&identity.tenant),
            identity,
            received_at: arrival,
            appended_items: logged.appended_items,
            appended: logged.appended,
            refused: logged.refused,
            replayed: false,
        };
        // Where nothing reached the log, nothing is to come.
        let answer = (taken.appended_items == 0).then(|| taken.conclude(&self.registry, &[]));
        let record = Record {
            identity: taken.identity.clone(),
            target: taken.target.name().to_owned(),
            received_at: arrival,
            items: logged.items as u32,
            appended_items: taken.appended_items,
            appended: taken.appended.clone(),
            refused: taken.refused.clone(),
            receipt: taken.receipt.clone(),
            answer: answer.clone(),
        };
        let recorded = self.ledger.record(&record).await;
        drill::reached("ingest.recorded");
        if let Some(claim) = claim {
            claim.finish();
        }
        match (recorded, answer) {
            (Ok(standing), Some(answer)) => Outcome::Answered(standing.answer.unwrap_or(answer), false),
            // Somebody else appended it too, and was first: because a gateway slept through its lease, or the claim was
            // skipped. What that one recorded is what everybody is told, for ever.
            (
                Ok(Standing {
                    answer: Some(answer), ..
                }),
                None,
            ) => Outcome::Answered(answer, true),
            (
                Ok(Standing {
                    receipt: Some(receipt),
                    ..
                }),
                None,
            ) if receipt != taken.receipt => self.resume(post, taken.identity, receipt, arrival).await,
            (Ok(_), None) => Outcome::Open(taken),
            // Nobody can say the same again before it is noted, not even where nothing reached the log.
            (Err(_), _) => {
                self.ledger.record_later(record);
                Outcome::Unrecorded(taken)
            }
        }
    }

    /// A batch that was appended by an earlier request.
    async fn resume(
        &self,
        post: &Post,
        identity: Identity,
        receipt: String,
        arrival: DateTime<Utc>,
    ) -> Outcome {
        let recalled = self.ledger.recall(&identity).await.ok().flatten();
        let known = recalled.is_some();
        let (received_at, appended_items, appended, refused) = match recalled {
            Some(kept) => (kept.received_at, kept.appended_items, kept.appended, kept.refused),
            None => (arrival, 0, Appended::default(), Vec::new()),
        };
        let taken = Taken {
            target: post.to.target(),
            identity,
            receipt,
            received_at,
            appended_items,
            appended,
            refused,
            replayed: true,
        };
        // Without its record nothing can be composed now; the receipt still finds everything later.
        if known {
            Outcome::Open(taken)
        } else {
            Outcome::Unrecorded(taken)
        }
    }
}

/// Runs what takes CPU in proportion to a body, without starving other requests where the body is large.
fn heavy<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let may_move = Handle::try_current().is_ok_and(|on| on.runtime_flavor() == RuntimeFlavor::MultiThread);
    if bytes > HEAVY && may_move {
        tokio::task::block_in_place(work)
    } else {
        work()
    }
}
