//! A line in which tenants take turns, of each tenant its devices, and of each device who came first: one that asks for
//! much stands behind itself and not before the others. Must not know what is waited for.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::auth::Caller;

/// Who asks. Devices are told apart by user, and by device where the token is bound to one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    pub(crate) tenant: Arc<str>,
    pub(crate) device: Arc<str>,
}

impl Asker {
    /// The caller of a request.
    pub fn of(caller: &Caller) -> Asker {
        let device = caller.device.as_ref().map_or("", |device| device.as_str());
        Asker {
            tenant: caller.tenant.as_str().into(),
            device: format!("{}\n{device}", caller.user.as_str()).into(),
        }
    }
}

/// The line.
pub(crate) struct Line<W>(Ring<Ring<VecDeque<W>>>);

/// Something that gives one after the other.
trait Queue: Default {
    type Item;
    fn next(&mut self) -> Option<Self::Item>;
    fn keep(&mut self, wanted: &mut impl FnMut(&Self::Item) -> bool);
    fn len(&self) -> usize;
}

/// Queues by name, which take turns. There are few: they are looked through.
struct Ring<Q>(VecDeque<(Arc<str>, Q)>);

impl<W> Line<W> {
    pub(crate) fn new() -> Line<W> {
        Line(Ring::default())
    }

    pub(crate) fn push(&mut self, asker: &Asker, waiting: W) {
        let devices = self.0.of(&asker.tenant);
        devices.of(&asker.device).push_back(waiting);
    }

    pub(crate) fn next(&mut self) -> Option<W> {
        self.0.next()
    }

    /// Takes out whoever is not wanted.
    pub(crate) fn keep(&mut self, mut wanted: impl FnMut(&W) -> bool) {
        self.0.keep(&mut wanted);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// How many of them have somebody here.
    pub(crate) fn tenants(&self) -> usize {
        self.0.0.len()
    }
}

impl<W> Queue for VecDeque<W> {
    type Item = W;

    fn next(&mut self) -> Option<W> {
        self.pop_front()
    }

    fn keep(&mut self, wanted: &mut impl FnMut(&W) -> bool) {
        self.retain(wanted);
    }

    fn len(&self) -> usize {
        VecDeque::len(self)
    }
}

impl<Q> Default for Ring<Q> {
    fn default() -> Ring<Q> {
        Ring(VecDeque::new())
    }
}

impl<Q: Queue> Ring<Q> {
    /// The queue of that name; a new one is last.
    fn of(&mut self, name: &Arc<str>) -> &mut Q {
        let known = self.0.iter().position(|(known, _)| known == name);
        let at = known.unwrap_or_else(|| {
            self.0.push_back((name.clone(), Q::default()));
            self.0.len() - 1
        });
        &mut self.0[at].1
    }
}

impl<Q: Queue> Queue for Ring<Q> {
    type Item = Q::Item;

    fn next(&mut self) -> Option<Q::Item> {
        let (name, mut queue) = self.0.pop_front()?;
        let next = queue.next();
        if queue.len() > 0 {
            self.0.push_back((name, queue));
        }
        next
    }

    fn keep(&mut self, wanted: &mut impl FnMut(&Q::Item) -> bool) {
        self.0.retain_mut(|(_, queue)| {
            queue.keep(wanted);
            queue.len() > 0
        });
    }

    fn len(&self) -> usize {
        self.0.iter().map(|(_, queue)| queue.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(askers: &[(&str, &str)]) -> Line<String> {
        let mut line = Line::new();
        for (n, (tenant, device)) in askers.iter().enumerate() {
            let asker = Asker {
                tenant: (*tenant).into(),
                device: (*device).into(),
            };
            line.push(&asker, format!("{tenant}{device}{n}"));
        }
        line
    }

    fn rest(mut line: Line<String>) -> Vec<String> {
        std::iter::from_fn(|| line.next()).collect()
    }

    #[test]
    fn tenants_take_turns_then_devices_and_nobody_is_lost() {
        let askers = [
            ("a", "x"),
            ("a", "x"),
            ("a", "x"),
            ("a", "y"),
            ("b", "x"),
            ("b", "x"),
        ];
        assert_eq!(rest(line(&askers)), ["ax0", "bx4", "ay3", "bx5", "ax1", "ax2"]);
    }

    #[test]
    fn who_has_left_is_not_counted() {
        let mut line = line(&[("a", "x"), ("a", "y"), ("b", "x")]);
        assert_eq!((line.len(), line.tenants()), (3, 2));
        line.keep(|waiting| waiting != "bx2" && waiting != "ax0");
        assert_eq!((line.len(), line.tenants()), (1, 1));
        assert_eq!(rest(line), ["ay1"]);
    }
}
