//! Each item of a batch judged alone, and its time put right: device clocks are wrong, and the skew of this one is
//! known where the batch says when it was sent. Pure; must not know where items go.

use crate::incoming::{Incoming, Items};
use crate::terms::Terms;
use chrono::{DateTime, TimeDelta, Utc};
use tidelog_events::answer::RefusedItem;
use tidelog_events::domain::{Domain, Policy, Registry};
use tidelog_events::drill;
use tidelog_events::item::{self, Entry, Item, Posting};
use tidelog_events::mixed;

/// An item that goes to the log.
#[derive(Debug)]
pub(crate) struct Accepted<'a> {
    /// Its index in the batch.
    pub(crate) index: u32,
    /// Where it belongs.
    pub(crate) domain: &'a Domain,
    /// The item.
    pub(crate) item: Item<'a>,
    /// When the device did it, by our clock.
    pub(crate) time: DateTime<Utc>,
    /// How a conflict is to be decided.
    pub(crate) policy: Policy,
}

/// A batch, item by item.
#[derive(Debug, Default)]
pub(crate) struct Judged<'a> {
    /// In the order sent.
    pub(crate) accepted: Vec<Accepted<'a>>,
    /// In the order sent.
    pub(crate) refused: Vec<RefusedItem>,
}

/// Judges every item of a batch.
pub(crate) fn judge<'a>(
    registry: &'a Registry,
    incoming: &'a Incoming<'_>,
    clock: &Clock,
    terms: &Terms,
) -> Judged<'a> {
    let identity = &incoming.identity;
    let posting = Posting {
        tenant: &identity.tenant,
        user: &identity.user,
        device: &identity.device,
        device_now: clock.device_now(),
        default_time: clock.device_now(),
        item_bytes: terms.settings.item_bytes(),
    };
    let mut judged = Judged::default();
    judged.accepted.reserve_exact(incoming.items.count());
    let mut take = |index: u32, verdict: Result<(&'a Domain, Item<'a>), Box<RefusedItem>>| match verdict {
        Ok((domain, item)) => judged.accepted.push(Accepted {
            index,
            domain,
            time: clock.correct(item.time),
            policy: terms.settings.policy(domain),
            item,
        }),
        Err(refused) => judged.refused.push(*refused),
    };
    match &incoming.items {
        Items::Of(domain, entries) => {
            for (index, entry) in (0..).zip(entries) {
                take(index, of_domain(domain, index, entry, &posting));
            }
        }
        Items::Mixed(entries) => {
            for (index, entry) in (0..).zip(entries) {
                take(index, of_mixed(registry, index, entry, &posting));
            }
        }
        Items::Decision(contested, wanted) => {
            let item = wanted.judge(contested, &posting);
            take(0, item.map(|item| (contested.domain.as_ref(), item)));
            // It is the person's way to decide, whatever the tenant has set.
            for accepted in &mut judged.accepted {
                accepted.policy = wanted.strategy.policy();
            }
        }
    }
    judged
}

fn of_domain<'a>(
    domain: &'a Domain,
    index: u32,
    entry: &Entry<'a>,
    posting: &Posting<'_>,
) -> Result<(&'a Domain, Item<'a>), Box<RefusedItem>> {
    match item::judge(domain, entry, posting) {
        Ok(item) => Ok((domain, item)),
        Err(rejected) => Err(Box::new(RefusedItem {
            index,
            subject: rejected.subject,
            entity_type: None,
            error: rejected.error,
        })),
    }
}

fn of_mixed<'a>(
    registry: &'a Registry,
    index: u32,
    entry: &Entry<'a>,
    posting: &Posting<'_>,
) -> Result<(&'a Domain, Item<'a>), Box<RefusedItem>> {
    mixed::judge(registry, entry, posting).map_err(|rejected| {
        Box::new(RefusedItem {
            index,
            subject: rejected.subject,
            entity_type: rejected.entity_type,
            error: rejected.error,
        })
    })
}

/// Our clock and the device's, at the batch's arrival.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    /// By our clock.
    pub(crate) arrival: DateTime<Utc>,
    /// By the device's, where the batch says it. The way here counts as skew: a second at most, and never forward.
    pub(crate) sent_at: Option<DateTime<Utc>>,
}

impl Clock {
    /// What the device's clock showed when the batch arrived, as far as known.
    fn device_now(&self) -> DateTime<Utc> {
        self.sent_at.unwrap_or(self.arrival)
    }

    /// A time of the device's in our time: moved by its skew, never later than the arrival. Without a time of its own
    /// an item happened when the batch was sent, which is now.
    fn correct(&self, device_time: Option<DateTime<Utc>>) -> DateTime<Utc> {
        let Some(time) = device_time else {
            return self.arrival;
        };
        let skew = match drill::guarded("skew") {
            true => self.arrival - self.device_now(),
            false => TimeDelta::zero(),
        };
        // A device clock may be off by millennia. Nothing was done with a phone before 1970, and no header holds a
        // year before 1.
        let corrected = time.checked_add_signed(skew).unwrap_or(self.arrival);
        corrected.clamp(DateTime::UNIX_EPOCH, self.arrival)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tidelog_events::domain::parse_datetime;

    fn at(text: &str) -> DateTime<Utc> {
        parse_datetime(text).expect("a time")
    }

    fn corrected(sent_at: Option<&str>, time: Option<&str>) -> DateTime<Utc> {
        let clock = Clock {
            arrival: at("2026-06-01T12:00:00Z"),
            sent_at: sent_at.map(at),
        };
        clock.correct(time.map(at))
    }

    #[test]
    fn a_time_is_moved_by_the_devices_skew() {
        // Two hours slow, then two hours fast.
        assert_eq!(
            corrected(Some("2026-06-01T10:00:00Z"), Some("2026-06-01T09:00:00Z")),
            at("2026-06-01T11:00:00Z")
        );
        assert_eq!(
            corrected(Some("2026-06-01T14:00:00Z"), Some("2026-06-01T13:30:00Z")),
            at("2026-06-01T11:30:00Z")
        );
    }

    #[test]
    fn without_sent_at_nothing_is_moved_but_the_future_ends() {
        assert_eq!(
            corrected(None, Some("2026-06-01T09:00:00Z")),
            at("2026-06-01T09:00:00Z")
        );
        assert_eq!(
            corrected(None, Some("2031-01-01T00:00:00Z")),
            at("2026-06-01T12:00:00Z")
        );
        assert_eq!(
            corrected(Some("2026-06-01T10:00:00Z"), Some("2026-06-01T10:00:01Z")),
            at("2026-06-01T12:00:00Z")
        );
    }

    #[test]
    fn an_item_without_a_time_happened_on_arrival() {
        assert_eq!(corrected(None, None), at("2026-06-01T12:00:00Z"));
        assert_eq!(
            corrected(Some("2026-06-01T10:00:00Z"), None),
            at("2026-06-01T12:00:00Z")
        );
    }

    proptest! {
        #[test]
        fn whatever_the_clocks_the_time_is_one_that_a_header_holds(
            sent in proptest::option::of(-62_135_596_800i64..253_402_300_799),
            time in -62_135_596_800i64..253_402_300_799,
        ) {
            let instant = |seconds| DateTime::from_timestamp(seconds, 0).expect("in range");
            let clock = Clock { arrival: at("2026-06-01T12:00:00Z"), sent_at: sent.map(instant) };
            let corrected = clock.correct(Some(instant(time)));
            prop_assert!(corrected <= clock.arrival);
            prop_assert!(parse_datetime(&corrected.to_rfc3339()).is_some());
        }
    }
}
