//! Events that wait for their outcome, in the order in which they are printed. Postgres is asked about many at once, and
//! while it is away nobody waits for it: what became of them is unknown.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use tidelog_events::domain::Registry;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::look::became::Became;
use crate::look::outcomes;
use crate::look::seen::Seen;
use crate::settings::DatabaseSettings;

/// How long Postgres may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it is left alone after it did not.
const PAUSE: Duration = Duration::from_secs(1);

/// Events that are to be printed.
#[derive(Default)]
pub(super) struct Waiting {
    events: VecDeque<Event>,
}

struct Event {
    seen: Seen,
    became: Option<Became>,
    until: Instant,
}

impl Waiting {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    /// One more, which waits until then at the longest.
    pub(super) fn add(&mut self, seen: Seen, until: Instant) {
        self.events.push_back(Event {
            seen,
            became: None,
            until,
        });
    }

    /// Asks what became of those of which it is not known.
    pub(super) async fn ask(&mut self, postgres: &mut Postgres) {
        let mut open: Vec<&mut Event> = self
            .events
            .iter_mut()
            .filter(|event| event.became.is_none())
            .collect();
        if open.is_empty() {
            return;
        }
        let seen: Vec<&Seen> = open.iter().map(|event| &event.seen).collect();
        match postgres.of(&seen).await {
            Some(found) => {
                for (event, became) in open.iter_mut().zip(found) {
                    event.became = became;
                }
            }
            None => {
                for event in open {
                    event.became = Some(Became::UNKNOWN);
                }
            }
        }
    }

    /// The next one to print, once its outcome is known or it has waited long enough.
    pub(super) fn next(&mut self, now: Instant) -> Option<(Seen, Became)> {
        let first = self.events.front()?;
        if first.became.is_none() && now < first.until {
            return None;
        }
        let event = self.events.pop_front()?;
        Some((event.seen, event.became.unwrap_or(Became::PENDING)))
    }
}

/// Postgres, which may be away.
pub(super) struct Postgres {
    database: DatabaseSettings,
    registry: Arc<Registry>,
    state: State,
    /// Whether it was said that it is away.
    said: bool,
}

enum State {
    Here(Client),
    Connecting(JoinHandle<Result<Client>>),
}

impl Postgres {
    /// Connects; where that takes long, in the background.
    pub(super) async fn connect(database: DatabaseSettings, registry: Arc<Registry>) -> Postgres {
        let state = connecting(&database, &registry, Duration::ZERO);
        let mut postgres = Postgres {
            database,
            registry,
            state,
            said: false,
        };
        if let State::Connecting(connecting) = &mut postgres.state {
            match tokio::time::timeout(PATIENCE, connecting).await {
                Ok(ended) => postgres.connected(ended.unwrap_or_else(|error| Err(error.into()))),
                Err(_) => postgres.away(&anyhow::anyhow!("it does not answer")),
            }
        }
        postgres
    }

    /// What became of each; of one that the projection has not come to, nothing yet. None at all while it is away.
    async fn of(&mut self, seen: &[&Seen]) -> Option<Vec<Option<Became>>> {
        if let State::Connecting(connecting) = &mut self.state {
            if !connecting.is_finished() {
                return None;
            }
            let ended = connecting.await;
            self.connected(ended.unwrap_or_else(|error| Err(error.into())));
        }
        let State::Here(client) = &self.state else {
            return None;
        };
        let asked = tokio::time::timeout(PATIENCE, passed(client, &self.registry, seen)).await;
        match asked.unwrap_or_else(|_| Err(anyhow::anyhow!("it does not answer"))) {
            Ok(found) => Some(found),
            Err(error) => {
                self.away(&error);
                self.state = connecting(&self.database, &self.registry, PAUSE);
                None
            }
        }
    }

    fn connected(&mut self, client: Result<Client>) {
        match client {
            Ok(client) => {
                if self.said {
                    eprintln!("Postgres is back");
                }
                self.said = false;
                self.state = State::Here(client);
            }
            Err(error) => {
                self.away(&error);
                self.state = connecting(&self.database, &self.registry, PAUSE);
            }
        }
    }

    fn away(&mut self, error: &anyhow::Error) {
        if !self.said {
            eprintln!("warning: outcomes are unknown until Postgres is back: {error:#}");
        }
        self.said = true;
    }
}

fn connecting(database: &DatabaseSettings, registry: &Arc<Registry>, pause: Duration) -> State {
    let (database, registry) = (database.clone(), registry.clone());
    State::Connecting(tokio::spawn(async move {
        tokio::time::sleep(pause).await;
        outcomes::connect(&database, &registry, "tail").await
    }))
}

/// What became of those that the positions have passed.
async fn passed(client: &Client, registry: &Registry, seen: &[&Seen]) -> Result<Vec<Option<Became>>> {
    let positions = outcomes::positions(client).await?;
    let is_passed = |seen: &Seen| positions.next_offset(&seen.at) > seen.offset;
    let asked: Vec<&Seen> = seen.iter().copied().filter(|seen| is_passed(seen)).collect();
    if asked.is_empty() {
        return Ok(vec![None; seen.len()]);
    }
    let mut found = outcomes::of(client, registry, &asked).await?.into_iter();
    Ok(seen
        .iter()
        .map(|seen| if is_passed(seen) { found.next() } else { None })
        .collect())
}
