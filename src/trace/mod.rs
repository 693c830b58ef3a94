//! `tidelog trace`: what became of what a device sent, batch by batch and item by item, or what a record went through: from
//! Postgres and the log together, in the order of time, of one tenant. `store` has the SQL, `log` reads the log again,
//! `entry` is what is told.

mod entry;
mod log;
mod store;

use std::time::Duration;

use anyhow::{Result, bail};
use chrono::{DateTime, Utc};
use clap::Args;
use serde::Serialize;
use tidelog_events::domain::{Domain, Registry};
use tidelog_events::ids::{DeviceId, TenantId};
use uuid::Uuid;

use self::entry::{Batch, Item};
use self::store::Store;
use crate::domains;
use crate::look::outcomes;
use crate::moment::moment;
use crate::output::OutputArgs;
use crate::settings::{DatabaseSettings, DomainSettings, KafkaSettings, Wrong};
use crate::tail::identity;

/// How far back a device is looked at, unless told otherwise: no index leads to its batches.
const OF_A_DEVICE: Duration = Duration::from_secs(24 * 3600);

/// Tells what a device sent, or what a record went through, and what became of each item
#[derive(Args, Clone, Debug)]
#[command(
    long_about = "Tells what a device sent, or what a record went through, in the order of time: each batch with its key, what the \
                  gateway refused of it, and each item with what became of it, which policy decided a conflict and who else had \
                  changed the record, and where it lies in the log, which is read again to see that it is there. What is in \
                  the log and not applied yet is told too. Of the newest batches or attempts, so many as --limit says.",
    after_help = "Examples:\n  tidelog trace --tenant acme --device phone-1\n  \
                  tidelog trace --tenant acme --device phone-1 --since 7d --limit 500\n  \
                  tidelog trace --tenant acme --record helpdesk/7f1c9a52-3d0e-4b7a-9c55-0e6b1f7d2a41\n  \
                  tidelog trace --tenant acme --item caf10abe-28c8-80f2-8a95-1485b2e5c2a6/0 --output json\n\nExit codes:\n  \
                  0  told, also where there is nothing to tell\n  \
                  1  Postgres is away, or there is no such domain (with Kafka away, it says what could not be seen)\n  \
                  2  wrong command line or setting"
)]
pub(crate) struct TraceArgs {
    /// The customer
    #[arg(long, value_parser = |text: &str| TenantId::parse(text))]
    tenant: TenantId,
    #[command(flatten)]
    what: What,
    /// From this time on (RFC 3339), or so long ago, like 15m; for a device the last 24 hours unless told otherwise
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<DateTime<Utc>>,
    /// Most batches of a device, or attempts upon a record
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..=1000))]
    limit: i64,
    #[command(flatten)]
    kafka: KafkaSettings,
    #[command(flatten)]
    database: DatabaseSettings,
    #[command(flatten)]
    domains: DomainSettings,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
struct What {
    /// What this device sent
    #[arg(long, value_name = "ID", value_parser = |text: &str| DeviceId::parse(text))]
    device: Option<DeviceId>,
    /// One batch
    #[arg(long, value_name = "ID")]
    batch: Option<Uuid>,
    /// One record: its domain, a slash, its identity
    #[arg(long, value_name = "DOMAIN/ID", value_parser = record)]
    record: Option<(String, String)>,
    /// One item: its batch's id, a slash, its index there
    #[arg(long, value_name = "BATCH/INDEX", value_parser = item)]
    item: Option<(Uuid, u32)>,
}

fn record(text: &str) -> Result<(String, String), &'static str> {
    let parts = text.split_once('/');
    let parts = parts.filter(|(domain, id)| !domain.is_empty() && !id.is_empty());
    parts
        .map(|(domain, id)| (domain.to_owned(), id.to_owned()))
        .ok_or("give a domain, a slash and an identity, like helpdesk/7f1c9a52-3d0e-4b7a-9c55-0e6b1f7d2a41")
}

fn item(text: &str) -> Result<(Uuid, u32), &'static str> {
    let parts = text
        .split_once('/')
        .and_then(|(batch, index)| Some((Uuid::try_parse(batch).ok()?, index.parse().ok()?)));
    parts.ok_or("give a batch's id, a slash and an index, as in `ce_batch`")
}

/// Everything that was found, in the order of time.
#[derive(Debug, Serialize)]
struct Trace {
    tenant: TenantId,
    /// Batches as their gateways saw them.
    batches: Vec<Batch>,
    /// Items that are in the log, or were.
    items: Vec<Item>,
    /// Whether there is more than was asked for.
    has_more: bool,
    /// What could not be seen.
    unseen: Vec<String>,
    /// The index that was asked for, where there is nothing at it.
    #[serde(skip)]
    no_such_item: Option<u32>,
}

/// Runs the command.
pub(crate) async fn run(args: TraceArgs) -> Result<()> {
    let registry = domains::registry(&args.domains)?;
    let client = outcomes::connect(&args.database, &registry, "trace").await?;
    let store = Store::new(&client, &registry, &args.tenant, &args.kafka.topic_prefix);
    let mut trace = match &args.what.record {
        Some(record) => of_record(&args, &store, &registry, record).await?,
        None => of_batches(&args, &store, &registry).await?,
    };
    store.explain(&mut trace.items).await?;
    if let Err(error) = log::verify(&args.kafka, &registry, &args.tenant, &mut trace.items).await {
        trace
            .unseen
            .push(format!("whether the items are in the log: {error:#}"));
    }
    if let Some((_, index)) = args.what.item {
        trace.items.retain(|item| item.batch_index == Some(index));
        trace
            .batches
            .iter_mut()
            .for_each(|batch| batch.refused.retain(|refused| refused.index == index));
        let refused = trace.batches.iter().any(|batch| !batch.refused.is_empty());
        trace.no_such_item = (trace.items.is_empty() && !refused).then_some(index);
    }
    trace.items.sort_by(|a, b| a.order().cmp(&b.order()));
    args.output.output.print(&trace, entry::text)
}

/// A device's batches, or one.
async fn of_batches(args: &TraceArgs, store: &Store<'_>, registry: &Registry) -> Result<Trace> {
    let one = args.what.batch.or(args.what.item.map(|(batch, _)| batch));
    let since = args
        .since
        .or_else(|| one.is_none().then(|| Utc::now() - OF_A_DEVICE));
    let (batches, has_more) = match (one, &args.what.device) {
        (Some(batch), _) => (store.batch(batch).await?, false),
        (None, Some(device)) => store.of_device(device, since, args.limit).await?,
        (None, None) => bail!("give --device, --batch, --record or --item"),
    };
    let mut ids: Vec<Uuid> = batches.iter().map(|batch| batch.batch_id).collect();
    // One that no gateway noted down (Postgres was away) may have outcomes all the same.
    ids.extend(one.filter(|one| !ids.contains(one)));
    // Before the store is asked: what is applied in between is in the store then, or not applied by these.
    let positions = outcomes::positions(store.client()).await?;
    let (mut items, all) = store.items_of(&ids).await?;
    let mut unseen = Vec::new();
    if !all {
        unseen.push("more items: there are too many in these batches; give a smaller --limit".to_owned());
    }
    let ranges = log::behind(&batches, &positions);
    let is_one = |item: &Item| item.batch_id.is_some_and(|batch| ids.contains(&batch));
    match log::pending(&args.kafka, registry, &args.tenant, ranges, &is_one).await {
        Ok((pending, complete)) => {
            add_pending(&mut items, pending);
            if !complete {
                unseen.push("more of what is not applied yet: there is too much of it".to_owned());
            }
        }
        Err(error) => unseen.push(format!("what is not applied yet: {error:#}")),
    }
    Ok(Trace {
        tenant: args.tenant.clone(),
        batches,
        items,
        has_more,
        unseen,
        no_such_item: None,
    })
}

/// Every attempt upon a record.
async fn of_record(
    args: &TraceArgs,
    store: &Store<'_>,
    registry: &Registry,
    (domain, id): &(String, String),
) -> Result<Trace> {
    let (domain, id) = named(registry, domain, id)?;
    let positions = outcomes::positions(store.client()).await?;
    let (mut items, has_more) = store.of_record(domain, &id, args.since, args.limit).await?;
    let mut unseen = Vec::new();
    let is_one =
        |item: &Item| item.record.as_deref() == Some(&id) && item.domain.as_deref() == Some(&domain.name);
    let found = async {
        let ranges = log::not_applied(&args.kafka, domain, &positions).await?;
        log::pending(&args.kafka, registry, &args.tenant, ranges, &is_one).await
    };
    match found.await {
        Ok((pending, complete)) => {
            add_pending(&mut items, pending);
            if !complete {
                unseen.push("more of what is not applied yet: there is too much of it".to_owned());
            }
        }
        Err(error) => unseen.push(format!("what is not applied yet: {error:#}")),
    }
    Ok(Trace {
        tenant: args.tenant.clone(),
        batches: Vec::new(),
        items,
        has_more,
        unseen,
        no_such_item: None,
    })
}

/// What has been applied since the positions were asked for is there already.
fn add_pending(items: &mut Vec<Item>, pending: Vec<Item>) {
    for item in pending {
        if !items.iter().any(|known| known.place() == item.place()) {
            items.push(item);
        }
    }
}

/// A record by its domain and identity.
fn named<'a>(registry: &'a Registry, domain: &str, id: &str) -> Result<(&'a Domain, String)> {
    let domain = domains::named(registry, domain)?;
    if domain.is_entity() && Uuid::try_parse(id).is_err() {
        let why = format!(
            "--record: a record of {} has a UUID, which {id:?} is not",
            domain.name
        );
        return Err(Wrong(why).into());
    }
    Ok((domain, identity(id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_is_a_batch_and_an_index() {
        let batch = "caf10abe-28c8-80f2-8a95-1485b2e5c2a6";
        assert_eq!(
            item(&format!("{batch}/3")),
            Ok((batch.parse().expect("a UUID"), 3))
        );
        for bad in ["", batch, "x/1", "caf10abe-28c8-80f2-8a95-1485b2e5c2a6/-1"] {
            assert!(item(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_record_is_named_by_its_domain() {
        let registry = Registry::shipped();
        let id = "7F1C9A52-3D0E-4B7A-9C55-0E6B1F7D2A41";
        let (domain, id) = named(&registry, "helpdesk", id).expect("a record");
        assert_eq!(
            (domain.name.as_str(), id.as_str()),
            ("helpdesk", "7f1c9a52-3d0e-4b7a-9c55-0e6b1f7d2a41")
        );
        let (domain, id) = record("metrics/phone-1/x/2026").expect("a record");
        let (_, id) = named(&registry, &domain, &id).expect("a record");
        assert_eq!(id, "phone-1/x/2026");
        for bad in ["", "helpdesk", "helpdesk/", "/1"] {
            assert!(record(bad).is_err(), "{bad}");
        }
        assert!(named(&registry, "nowhere", "1").is_err_and(|error| !error.is::<Wrong>()));
        assert!(named(&registry, "helpdesk", "1").is_err_and(|error| error.is::<Wrong>()));
    }
}
