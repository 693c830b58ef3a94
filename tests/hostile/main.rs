//! Clients that mean harm, against the product's binary: slow ones, crowds, endless bodies, bombs, floods. A polite phone
//! posts and pulls all along, and must not notice; and what an attack costs the process in memory, threads and file
//! handles is bounded, and given back.

#[path = "../support/mod.rs"]
mod support;

mod attacker;
mod bodies;
mod crowds;
mod polite;
mod requests;
mod slow;
mod vitals;

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use polite::Polite;
use support::service::{Deployment, Service};
use vitals::{Cost, Vitals};

/// A service that many attacks meet, one after the other.
static SERVICE: OnceLock<Service> = OnceLock::new();

/// One attack at a time, so that its cost is its own.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The service that is attacked, with room for as many connections as the issue asks for.
fn service() -> &'static Service {
    SERVICE.get_or_init(|| Service::of(Deployment::new("hostile").with("TIDELOG_MAX_CONNECTIONS", "12000")))
}

/// Runs an attack while a phone works; checks the phone's day, and that what the attack cost was at most that much and is
/// given back. Prints what was seen.
fn attack<T>(name: &str, service: &Service, most: Cost, attack: impl AsyncFnOnce(&Deployment) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let polite = Polite::start(&service.deployment, name).await;
        let before = Vitals::of(&service.process);
        let watch = vitals::Watch::start(&service.process);
        let result = attack(&service.deployment).await;
        // What it leaves behind is a matter of the time after it, too.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let peak = watch.stop().await;
        let day = polite.stop().await;
        println!("{name}: {}; the polite phone: {day}", peak.since(&before));
        peak.since(&before).within(&most, name);
        day.check(name);
        vitals::given_back(&service.process, &before, name).await;
        result
    })
}
