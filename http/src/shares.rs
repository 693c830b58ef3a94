//! A bounded amount of something that is held rather than worked on (bytes, places to wait in), and fair shares of it: a
//! tenant may hold as much as is still free. So one alone gets half, two a third each, and there is always some left for
//! whoever comes next. Nobody waits here. Must not know what is held.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The whole. Cheap to clone.
#[derive(Clone)]
pub struct Shares(Arc<Whole>);

struct Whole {
    total: usize,
    held: Mutex<HashMap<Arc<str>, usize>>,
}

/// A part, until it is dropped.
pub struct Share {
    of: Shares,
    tenant: Arc<str>,
    units: usize,
}

impl Shares {
    /// Of so many units in all.
    pub fn new(total: usize) -> Shares {
        Shares(Arc::new(Whole {
            total,
            held: Mutex::default(),
        }))
    }

    /// Takes so many units for a tenant, unless that is more than its share. More than there are is taken as all, by
    /// one alone.
    pub fn take(&self, tenant: &str, units: usize) -> Option<Share> {
        let mut held = self.lock();
        let units = units.min(self.0.total);
        let free = self.0.total - held.values().sum::<usize>();
        if held.get(tenant).copied().unwrap_or(0) + units > free {
            return None;
        }
        let tenant: Arc<str> = tenant.into();
        *held.entry(tenant.clone()).or_default() += units;
        drop(held);
        Some(Share {
            of: self.clone(),
            tenant,
            units,
        })
    }

    /// Whether nobody holds any.
    pub fn is_whole(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, usize>> {
        // Every change is one number.
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.of.lock();
        if let Some(units) = held.get_mut(&self.tenant) {
            *units -= self.units;
            if *units == 0 {
                held.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tenant_leaves_as_much_as_it_has_and_what_is_dropped_is_free() {
        let shares = Shares::new(12);
        let first = shares.take("a", 4).expect("free");
        assert!(shares.take("a", 5).is_none());
        let second = shares.take("a", 2);
        assert!(second.is_some() && shares.take("a", 1).is_none());
        assert!(shares.take("b", 3).is_some_and(|share| share.units == 3));
        drop((first, second));
        assert!(shares.take("a", 100).is_some(), "alone, whatever its size");
        assert!(shares.is_whole());
    }
}
