//! The connection limit: how many may be open, in all and of one address, and which has to go when one more comes.
//!
//! A crowd that only sits there must not keep out who has something to say, so a connection that waits for its
//! client makes room for a new one: first of the address that has the most, there the one that has waited longest, and
//! never of an address that has fewer than the new one's. A
//! request that is worked on is never dropped for another. Must not know how a connection is served.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::meter::{Awaited, Meter};

/// Of the places that are limited, this part is freed at once, so that looking for who can go is paid once for many.
const BITE: usize = 64;

/// How long those who were asked to go have for it before the new one is refused.
const LEAVING: Duration = Duration::from_secs(1);

/// An address that has more than this part of all places, and this many times what the new one's has, loses even
/// connections whose body is still on its way.
const LIONS_SHARE: usize = 8;

/// Whom a connection is counted to: an IPv4 address, or an IPv6 network of 64 bits, which is what one client has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Address(IpAddr);

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        Address(match address.to_canonical() {
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
            v4 => v4,
        })
    }
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// Every place is taken by a request that is worked on.
    All,
    /// Every place that one address may have.
    Address,
}

/// All places of one server.
pub(crate) struct Places {
    limit: usize,
    per_address: usize,
    free: Arc<Semaphore>,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    next: u64,
    connections: HashMap<u64, Connection>,
    /// Connections of each address that were not asked to go.
    of: HashMap<Address, usize>,
}

struct Connection {
    address: Address,
    meter: Arc<Meter>,
    going: bool,
}

impl Places {
    /// `limit` in all, from 1; `per_address` likewise.
    pub(crate) fn new(limit: usize, per_address: usize) -> Arc<Self> {
        Arc::new(Places {
            limit,
            per_address,
            free: Arc::new(Semaphore::new(limit)),
            open: Mutex::default(),
        })
    }

    /// A place for a connection of that address, if need be by asking others to go.
    pub(crate) async fn take(self: &Arc<Self>, address: Address, meter: &Arc<Meter>) -> Result<Place, Full> {
        // Whoever was asked to go no longer counts to its address, although it may need a moment for it.
        let crowded = self.open().count(address) >= self.per_address;
        if crowded && self.make_room(address, Some(address)) == 0 {
            return Err(Full::Address);
        }
        if let Ok(permit) = self.free.clone().try_acquire_owned() {
            return Ok(self.place(address, meter, permit));
        }
        if self.make_room(address, None) == 0 {
            return Err(Full::All);
        }
        match tokio::time::timeout(LEAVING, self.free.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(self.place(address, meter, permit)),
            _ => Err(Full::All),
        }
    }

    /// Places that are taken.
    pub(crate) fn taken(&self) -> usize {
        self.limit - self.free.available_permits()
    }

    /// Whether every place is taken.
    pub(crate) fn full(&self) -> bool {
        self.free.available_permits() == 0
    }

    /// Ready when all places are free.
    pub(crate) async fn all_free(&self) {
        let all = u32::try_from(self.limit).unwrap_or(u32::MAX);
        let _ = self.free.acquire_many(all).await;
    }

    /// Asks some connections that wait for their clients to go, whoever comes next; answers how many.
    pub(crate) fn make_room_for_any(&self) -> usize {
        self.make_room(Address(Ipv6Addr::UNSPECIFIED.into()), None)
    }

    /// Asks connections that wait for their clients to go, only of the address `only` if that is given; answers how
    /// many. `newcomer` is who needs a place.
    fn make_room(&self, newcomer: Address, only: Option<Address>) -> usize {
        let mut open = self.open();
        let theirs = open.count(newcomer);
        let mut can_go: Vec<(Reverse<usize>, Awaited, Instant, u64)> = open
            .connections
            .iter()
            .filter(|(_, connection)| !connection.going && only.is_none_or(|only| only == connection.address))
            .filter_map(|(id, connection)| {
                let (awaited, since) = connection.meter.waits()?;
                let count = open.count(connection.address);
                // Who has many never makes one go who has few.
                if count < theirs {
                    return None;
                }
                let lions = count > self.limit / LIONS_SHARE && count > theirs * LIONS_SHARE;
                (awaited == Awaited::Request || lions).then_some((Reverse(count), awaited, since, *id))
            })
            .collect();
        let limit = if only.is_some() {
            self.per_address
        } else {
            self.limit
        };
        let many = (limit / BITE).max(1).min(can_go.len());
        if many < can_go.len() {
            can_go.select_nth_unstable(many);
        }
        for (.., id) in &can_go[..many] {
            open.ask_to_go(*id);
        }
        many
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(self: &Arc<Self>, address: Address, meter: &Arc<Meter>, permit: OwnedSemaphorePermit) -> Place {
        let mut open = self.open();
        let id = open.next;
        open.next += 1;
        *open.of.entry(address).or_default() += 1;
        let connection = Connection {
            address,
            meter: meter.clone(),
            going: false,
        };
        open.connections.insert(id, connection);
        Place {
            id,
            places: self.clone(),
            _permit: permit,
        }
    }
}

impl Open {
    fn count(&self, address: Address) -> usize {
        self.of.get(&address).copied().unwrap_or_default()
    }

    fn ask_to_go(&mut self, id: u64) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.going = true;
            connection.meter.go();
            let address = connection.address;
            self.uncount(address);
        }
    }

    fn uncount(&mut self, address: Address) {
        if let Some(count) = self.of.get_mut(&address) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.of.remove(&address);
            }
        }
    }
}

/// A connection's place: free again when this is dropped.
pub(crate) struct Place {
    id: u64,
    places: Arc<Places>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.places.open();
        if let Some(connection) = open.connections.remove(&self.id)
            && !connection.going
        {
            open.uncount(connection.address);
        }
    }
}
