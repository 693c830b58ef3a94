//! The paths of the read side, and the state behind them. Takes a request apart, hands it to whoever answers it, and
//! puts the answer's headers on. Must not know what a page or a receipt is made of.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use deadpool_postgres::Pool;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use percent_encoding::percent_decode_str;
use tidelog_events::domain::Registry;
use tidelog_events::ids::{Role, TenantId, UserId};
use tidelog_events::position::Positions;
use tidelog_events::resolution::{ConflictsUnavailable, FindConflict, KnownConflict};
use tidelog_events::seal::{Accord, SealSecret};
use tidelog_events::topic_name;
use tidelog_http::auth::{Auth, Caller};
use tidelog_http::prefer::{self, PREFERENCE_APPLIED, Wait};
use tidelog_http::turns::{Asker, AtOnce, Patience, Turn, Turns};
use tokio::sync::watch;
use uuid::Uuid;
use warp::filters::BoxedFilter;
use warp::reply::Response;
use warp::{Filter, Reply};

use crate::conflicts::{Asked, Conflicts};
use crate::error::FeedError;
use crate::opening::Opener;
use crate::outcomes::OutcomeStore;
use crate::query::Query;
use crate::reading::{Readable, Reading, Sight};
use crate::receipts::Receipts;
use crate::sql::{ConflictStatements, Statements};
use crate::store::Store;
use crate::{changes, checksum, history, records, wait};

/// Pages are long beside pulls, and whoever is refused has to come back for the same page: in an overload it pays to wait
/// for several of them.
const PATIENCE: Patience = Patience {
    rush: Duration::from_secs(2),
    overload: Duration::from_millis(500),
};

/// What the read side is made of.
pub struct FeedParts {
    /// The domains; their tables must exist.
    pub registry: Arc<Registry>,
    /// Connections with the search path set and [`SESSION_SETTINGS`](crate::SESSION_SETTINGS).
    pub pool: Pool,
    /// From [`positions::watch`](crate::positions::watch).
    pub positions: watch::Receiver<Arc<Positions>>,
    /// The deployment's topic prefix; empty for none.
    pub topic_prefix: String,
    /// What personal values are sealed with; none where they are not.
    pub secret: Option<Arc<SealSecret>>,
    /// How that stands to what the deployment seals with: where it is wrong, nothing personal is shown.
    pub accord: watch::Receiver<Accord>,
}

/// The read side.
pub struct Feed {
    domains: HashMap<String, Readable>,
    registry: Arc<Registry>,
    store: Store,
    opener: Option<Opener>,
    accord: watch::Receiver<Accord>,
    outcomes: OutcomeStore,
    conflicts: ConflictStatements,
    positions: watch::Receiver<Arc<Positions>>,
    topic_prefix: String,
    turns: Turns,
}

/// Of the pool's connections one quarter is kept free of pulls: outcomes that posts wait for are read over them too.
fn turns(pool: &Pool) -> Turns {
    let connections = pool.status().max_size;
    Turns::new(AtOnce::always(connections - connections / 4), PATIENCE)
}

impl Feed {
    /// Makes the statements of every domain. Reads nothing yet: it may be there before the database is.
    pub fn new(parts: FeedParts) -> Feed {
        let readable = |domain: &Arc<tidelog_events::domain::Domain>| Readable {
            topic: topic_name(&parts.topic_prefix, &domain.topic),
            statements: Statements::of(domain),
            domain: domain.clone(),
        };
        Feed {
            domains: parts
                .registry
                .iter()
                .map(|domain| (domain.name.clone(), readable(domain)))
                .collect(),
            outcomes: OutcomeStore::new(parts.pool.clone(), &parts.registry),
            conflicts: ConflictStatements::of(parts.registry.iter().map(AsRef::as_ref)),
            turns: turns(&parts.pool),
            opener: parts.secret.map(|secret| Opener::new(secret, parts.pool.clone())),
            accord: parts.accord,
            store: Store::new(parts.pool),
            registry: parts.registry,
            positions: parts.positions,
            topic_prefix: parts.topic_prefix,
        }
    }

    fn readable(&self, name: &str) -> Result<&Readable, FeedError> {
        let name = decoded(name);
        let readable = self.domains.get(&name).ok_or(FeedError::UnknownDomain(name))?;
        if readable.domain.has_personal() {
            self.may_open()?;
        }
        Ok(readable)
    }

    /// What is sealed under another secret would reach phones as the text that it is, and come back as somebody's words.
    fn may_open(&self) -> Result<(), FeedError> {
        match self.accord.borrow().is_wrong() {
            true => Err(FeedError::OtherSecret),
            false => Ok(()),
        }
    }

    fn reading<'a>(&'a self, from: &'a Readable, caller: &'a Caller) -> Reading<'a> {
        let (tenant, reader) = (caller.tenant.as_str(), from.reader(caller));
        Reading {
            store: &self.store,
            opener: self.opener.as_ref(),
            from,
            tenant,
            reader,
            filters: None,
        }
    }

    /// The right to use the database, to be asked for after every other wait.
    async fn turn(&self, caller: &Caller) -> Result<Turn, FeedError> {
        Ok(self.turns.enter(Asker::of(caller)).await?)
    }

    /// Waits for what the query's `wait_for` names, if it names something; tells whether it did.
    async fn waited(&self, caller: &Caller, query: &Query, wait: Wait) -> Result<bool, FeedError> {
        let Some(appended) = query.wait_for(&caller.tenant)? else {
            return Ok(false);
        };
        wait::until_applied(&self.positions, &self.store, &appended, wait.duration()).await?;
        Ok(true)
    }

    async fn changes(
        &self,
        name: &str,
        caller: &Caller,
        wait: Wait,
        query: &Query,
    ) -> Result<Response, FeedError> {
        let from = self.readable(name)?;
        let asked = query.pull(&caller.tenant, &from.domain)?;
        let waited = self.waited(caller, query, wait).await?;
        let _turn = self.turn(caller).await?;
        let mut reading = self.reading(from, caller);
        reading.filters.clone_from(&asked.filters);
        let mut pulled = changes::pull(&reading, asked).await?;
        pulled.cursor.more = pulled.end.has_more;
        let cursor = pulled.cursor.seal(&caller.tenant, &from.domain.name);
        let body = pulled
            .page
            .to_json(pulled.end.has_more, pulled.end.next_timestamp, &cursor);
        Ok(answer(body, wait, waited))
    }

    async fn checksum(
        &self,
        name: &str,
        caller: &Caller,
        wait: Wait,
        query: &Query,
    ) -> Result<Response, FeedError> {
        let from = self.readable(name)?;
        let asked = checksum::Asked::of(query, &caller.tenant, &from.domain)?;
        let waited = self.waited(caller, query, wait).await?;
        let _turn = self.turn(caller).await?;
        let body = checksum::tell(&self.reading(from, caller), &caller.tenant, asked).await?;
        Ok(answer(body, wait, waited))
    }

    async fn record(
        &self,
        (name, identity): (&str, &str),
        caller: &Caller,
        wait: Wait,
        query: &Query,
    ) -> Result<Response, FeedError> {
        let from = self.readable(name)?;
        let waited = self.waited(caller, query, wait).await?;
        let _turn = self.turn(caller).await?;
        // Telemetry's identities may end in anything, and its items have no versions to tell of.
        let past = identity
            .strip_suffix("/history")
            .filter(|_| from.domain.is_entity());
        if let Some(identity) = past {
            let mut reading = self.reading(from, caller);
            reading.reader = from.past_reader(caller);
            let body = history::page(&reading, &caller.tenant, &decoded(identity), query).await?;
            return Ok(answer(body, wait, waited));
        }
        // An identity holds `/` between its parts, and parts that are percent-encoded themselves: it may come as it
        // is, as the rest of the path, or encoded once more as a single segment.
        let spellings = [identity.to_owned(), decoded(identity)];
        let body = records::find(&self.reading(from, caller), &spellings).await?;
        Ok(answer(body, wait, waited))
    }

    fn conflicts<'a>(&'a self, caller: &'a Caller) -> Conflicts<'a> {
        Conflicts {
            store: &self.store,
            opener: self.opener.as_ref(),
            registry: &self.registry,
            statements: &self.conflicts,
            tenant: &caller.tenant,
            sight: Sight::of(caller, self.domains.values()),
        }
    }

    async fn known_conflict(&self, caller: &Caller, id: Uuid) -> Result<Option<KnownConflict>, FeedError> {
        self.conflicts(caller).known(id, &self.registry).await
    }

    async fn conflict_list(&self, caller: &Caller, wait: Wait, query: &Query) -> Result<Response, FeedError> {
        let asked = Asked::of(query, &caller.tenant, &self.registry)?;
        self.may_open()?;
        let waited = self.waited(caller, query, wait).await?;
        let _turn = self.turn(caller).await?;
        let body = self.conflicts(caller).list(&asked).await?;
        Ok(answer(body, wait, waited))
    }

    async fn one_conflict(&self, id: &str, caller: &Caller) -> Result<String, FeedError> {
        self.may_open()?;
        let _turn = self.turn(caller).await?;
        self.conflicts(caller).one(id).await
    }

    async fn receipt(&self, id: &str, caller: &Caller) -> Result<String, FeedError> {
        let receipts = Receipts {
            store: &self.store,
            outcomes: &self.outcomes,
            registry: &self.registry,
            topic_prefix: &self.topic_prefix,
        };
        let _turn = self.turn(caller).await?;
        receipts.resolve(caller, id).await
    }
}

/// Every path of the read side, each with and without a trailing slash.
pub fn routes(feed: Arc<Feed>, auth: Auth) -> BoxedFilter<(Response,)> {
    let feed = warp::any().map(move || feed.clone());
    let api = warp::path!("api" / "v1" / ..);
    let query = warp::query::<Vec<(String, String)>>().map(Query);

    let conflicts = conflict_routes(feed.clone(), auth.clone());
    let receipt = api
        .and(warp::path!("sync" / "batches" / String))
        .and(warp::get())
        .and(auth.caller())
        .and(feed.clone())
        .then(|id: String, caller: Caller, feed: Arc<Feed>| async move {
            told(feed.receipt(&id, &caller).await.map(json))
        });
    let changes = api
        .and(warp::path!(String / "changes"))
        .and(warp::get())
        .and(auth.caller())
        .and(prefer::wait())
        .and(query)
        .and(feed.clone())
        .then(
            |name: String, caller: Caller, wait: Wait, query: Query, feed: Arc<Feed>| async move {
                told(feed.changes(&name, &caller, wait, &query).await)
            },
        );
    let checksum = api
        .and(warp::path!(String / "checksum"))
        .and(warp::get())
        .and(auth.caller())
        .and(prefer::wait())
        .and(query)
        .and(feed.clone())
        .then(
            |name: String, caller: Caller, wait: Wait, query: Query, feed: Arc<Feed>| async move {
                told(feed.checksum(&name, &caller, wait, &query).await)
            },
        );
    let record = api
        .and(warp::path!(String / "records" / ..))
        .and(warp::path::tail())
        .and_then(|name: String, tail: warp::path::Tail| async move {
            let identity = tail
                .as_str()
                .strip_suffix('/')
                .unwrap_or(tail.as_str())
                .to_owned();
            // Nothing after `records/` is no path of ours.
            if identity.is_empty() {
                Err(warp::reject::not_found())
            } else {
                Ok((name, identity))
            }
        })
        .and(warp::get())
        .and(auth.caller())
        .and(prefer::wait())
        .and(query)
        .and(feed)
        .then(
            |path: (String, String), caller: Caller, wait: Wait, query: Query, feed: Arc<Feed>| async move {
                told(feed.record((&path.0, &path.1), &caller, wait, &query).await)
            },
        );
    conflicts
        .or(receipt)
        .unify()
        .or(changes)
        .unify()
        .or(checksum)
        .unify()
        .or(record)
        .unify()
        .boxed()
}

impl FindConflict for Feed {
    async fn conflict(
        &self,
        tenant: &TenantId,
        user: &UserId,
        role: Role,
        id: Uuid,
    ) -> Result<Option<KnownConflict>, ConflictsUnavailable> {
        let caller = Caller {
            tenant: tenant.clone(),
            user: user.clone(),
            device: None,
            role,
        };
        let known = self.known_conflict(&caller, id).await;
        known.map_err(|error| ConflictsUnavailable(error.to_string()))
    }
}

/// The conflicts of a tenant, all and one.
fn conflict_routes(
    feed: impl Filter<Extract = (Arc<Feed>,), Error = Infallible> + Clone + Send + Sync + 'static,
    auth: Auth,
) -> BoxedFilter<(Response,)> {
    let api = warp::path!("api" / "v1" / "conflicts" / ..);
    let list = api
        .and(warp::path::end())
        .and(warp::get())
        .and(auth.caller())
        .and(prefer::wait())
        .and(warp::query::<Vec<(String, String)>>().map(Query))
        .and(feed.clone())
        .then(
            |caller: Caller, wait: Wait, query: Query, feed: Arc<Feed>| async move {
                told(feed.conflict_list(&caller, wait, &query).await)
            },
        );
    let one = api
        .and(warp::path!(String))
        .and(warp::get())
        .and(auth.caller())
        .and(feed)
        .then(|id: String, caller: Caller, feed: Arc<Feed>| async move {
            told(feed.one_conflict(&id, &caller).await.map(json))
        });
    list.or(one).unify().boxed()
}

fn told(result: Result<Response, FeedError>) -> Response {
    result.unwrap_or_else(|error| error.problem().into_response())
}

fn answer(body: String, wait: Wait, waited: bool) -> Response {
    let mut response = json(body);
    if let Some(applied) = wait.applied().filter(|_| waited) {
        response.headers_mut().insert(PREFERENCE_APPLIED, applied);
    }
    response
}

/// An answer is one caller's, of one moment.
fn json(body: String) -> Response {
    let mut response = Response::new(Bytes::from(body).into());
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn decoded(part: &str) -> String {
    percent_decode_str(part).decode_utf8_lossy().into_owned()
}
