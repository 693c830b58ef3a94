//! What end-to-end tests are made of: a deployment of one's own on the shared stack, its processes, phones that speak
//! HTTP to it, and eyes on what it leaves in Kafka and Postgres. Knows the product's surface only: its command line,
//! its paths, its topics and its tables.

#![allow(dead_code, reason = "each test binary uses its part of this")]

pub(crate) mod db;
pub(crate) mod http;
pub(crate) mod items;
pub(crate) mod kafka;
pub(crate) mod load;
pub(crate) mod own_stack;
pub(crate) mod phone;
pub(crate) mod process;
pub(crate) mod projection;
pub(crate) mod proof;
pub(crate) mod proxy;
pub(crate) mod service;
pub(crate) mod stack;
pub(crate) mod sweep;

use std::time::{Duration, Instant};

/// Longer than anything takes on a busy machine; what takes longer hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Asks until there is an answer. Tests wait for the thing itself, never for a time.
pub(crate) async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(since.elapsed() < PATIENCE, "after {PATIENCE:?} still not: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The same for code that waits for a process, outside of any runtime.
pub(crate) fn eventually_blocking<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(since.elapsed() < PATIENCE, "after {PATIENCE:?} still not: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Numbers that look like chance and are the same for the same seed.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// Below `sides`. SplitMix64.
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % sides as u64) as usize
    }
}
