//! `tidelog tenant`: what tenants have set for themselves, shown and changed by whoever runs the service. Works on the
//! settings topic alone, so neither a gateway nor Postgres has to be there. What settings mean is
//! `tidelog_events::settings`; that they are checked, appended and read back is `tidelog_ingest::settings`.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::{Value, json};
use tidelog_events::domain::{Policy, Registry};
use tidelog_events::ids::{TenantId, UserId};
use tidelog_events::settings::{InForce, Settings, TenantSettings};
use tidelog_ingest::settings::{Change, Changer, FollowConfig, SettingsError, follow};
use tidelog_ingest::{Producer, ProducerConfig};
use tokio::sync::watch;

use crate::domains;
use crate::output::{OutputArgs, table};
use crate::settings::{DomainSettings, KafkaSettings};

/// How long Kafka may take to show all settings.
const PATIENCE: Duration = Duration::from_secs(15);

/// Shows and changes what tenants have set: conflict policies, device priority, limits
#[derive(Args, Clone, Debug)]
#[command(
    long_about = "Shows and changes what tenants have set for themselves: conflict policies, auto-resolution, device \
                  priority, limits. Settings are kept in the log; every gateway knows a change within moments, and what \
                  it appended before stays as it was stamped.",
    after_help = "Examples:\n  tidelog tenant show --tenant acme\n  \
                  tidelog tenant set --tenant acme --domain helpdesk --policy merge\n  \
                  tidelog tenant set --tenant acme --device-priority true --priority phone=120\n  \
                  tidelog tenant set --tenant acme --file settings.json\n\nExit codes:\n  \
                  0  shown or changed\n  1  failed, for example because Kafka is away\n  2  wrong command line or setting"
)]
pub(crate) struct TenantArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Clone, Debug)]
enum Action {
    /// Shows a tenant's settings, and which are its own
    Show(ShowArgs),
    /// Lists the tenants that have set something
    List(ListArgs),
    /// Changes a tenant's settings
    Set(Box<SetArgs>),
    /// Takes back everything that a tenant has set
    Reset(ResetArgs),
}

#[derive(Args, Clone, Debug)]
struct Place {
    #[command(flatten)]
    kafka: KafkaSettings,
    #[command(flatten)]
    domains: DomainSettings,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Clone, Debug)]
struct ShowArgs {
    /// The customer
    #[arg(long, value_parser = |text: &str| TenantId::parse(text))]
    tenant: TenantId,
    #[command(flatten)]
    place: Place,
}

#[derive(Args, Clone, Debug)]
struct ListArgs {
    #[command(flatten)]
    place: Place,
}

#[derive(Args, Clone, Debug)]
struct ResetArgs {
    /// The customer
    #[arg(long, value_parser = |text: &str| TenantId::parse(text))]
    tenant: TenantId,
    #[command(flatten)]
    by: By,
    #[command(flatten)]
    place: Place,
}

#[derive(Args, Clone, Debug)]
struct By {
    /// Who is noted as having changed it
    #[arg(long = "as", value_name = "USER", default_value = "operator", value_parser = |text: &str| UserId::parse(text))]
    by: UserId,
}

#[derive(Args, Clone, Debug)]
struct SetArgs {
    /// The customer
    #[arg(long, value_parser = |text: &str| TenantId::parse(text))]
    tenant: TenantId,
    /// The domain that --policy and --auto-resolve are for
    #[arg(long, value_name = "NAME")]
    domain: Option<String>,
    /// How the domain's conflicts are decided
    #[arg(long, requires = "domain", value_parser = policy)]
    policy: Option<Policy>,
    /// Whether the policy decides by itself; off, every conflict waits for a person
    #[arg(long, requires = "domain", value_name = "true|false")]
    auto_resolve: Option<bool>,
    /// Whether the device with the higher priority decides between two devices of one user
    #[arg(long, value_name = "true|false")]
    device_priority: Option<bool>,
    /// Priority of a kind of device, 0 to 200; may be given several times
    #[arg(long, value_name = "KIND=N", value_parser = pair)]
    priority: Vec<(String, u64)>,
    /// A limit: batch_items, item_bytes, key_hours; may be given several times
    #[arg(long, value_name = "NAME=N", value_parser = pair)]
    limit: Vec<(String, u64)>,
    /// All settings as JSON, in place of what is set; `-` reads them from stdin
    #[arg(long, value_name = "FILE", conflicts_with_all = ["domain", "device_priority", "priority", "limit"])]
    file: Option<PathBuf>,
    #[command(flatten)]
    by: By,
    #[command(flatten)]
    place: Place,
}

fn policy(text: &str) -> Result<Policy, &'static str> {
    Policy::parse(text)
        .ok_or("give client_wins, server_wins, most_recent_wins, preserve_escalation, merge or manual")
}

fn pair(text: &str) -> Result<(String, u64), &'static str> {
    const RULE: &str = "give a name, = and a number, like phone=120";
    let (name, number) = text.split_once('=').ok_or(RULE)?;
    Ok((name.to_owned(), number.parse().map_err(|_| RULE)?))
}

/// What is printed of a tenant.
#[derive(Serialize)]
struct Shown {
    tenant: TenantId,
    revision: i64,
    updated_at: Option<chrono::DateTime<chrono::Utc>>,
    updated_by: Option<String>,
    settings: TenantSettings,
    effective: TenantSettings,
}

impl Shown {
    fn of(tenant: &TenantId, in_force: Option<&InForce>, registry: &Registry) -> Shown {
        let settings = in_force
            .map(|current| current.settings.clone())
            .unwrap_or_default();
        Shown {
            tenant: tenant.clone(),
            revision: in_force.map_or(0, |current| current.revision),
            updated_at: in_force.map(|current| current.updated_at),
            updated_by: in_force.map(|current| current.updated_by.clone()),
            effective: settings.effective(registry),
            settings,
        }
    }

    fn text(&self) -> String {
        let mut text = match (&self.updated_by, self.updated_at) {
            (Some(by), Some(at)) => format!("{}, set by {by} at {}\n\n", self.tenant, at.to_rfc3339()),
            _ => format!("{} has set nothing\n\n", self.tenant),
        };
        let rows: Vec<[String; 4]> = self
            .effective
            .domains
            .iter()
            .map(|(name, effective)| {
                let policy = effective.policy.map_or("", Policy::as_str);
                let auto = if effective.auto_resolve == Some(false) {
                    "off"
                } else {
                    "on"
                };
                let whose = if self.settings.domains.contains_key(name) {
                    "own"
                } else {
                    "default"
                };
                [name.clone(), policy.into(), auto.into(), whose.into()]
            })
            .collect();
        text.push_str(&table(
            ["domain", "policy", "auto-resolve", "setting"],
            [false; 4],
            &rows,
        ));
        if let Some(priority) = &self.effective.device_priority {
            let kinds: Vec<String> = priority
                .kinds
                .iter()
                .map(|(kind, at)| format!("{kind} {at}"))
                .collect();
            let state = if priority.enabled { "on" } else { "off" };
            text.push_str(&format!("\ndevice priority {state}: {}\n", kinds.join(", ")));
        }
        let limits = &self.effective.limits;
        for (name, limit) in [
            ("items in a batch", limits.batch_items),
            ("bytes of an item", limits.item_bytes),
            ("hours a key is kept", limits.key_hours),
        ] {
            text.push_str(&format!("{name}: {}\n", limit.unwrap_or_default()));
        }
        text
    }
}

/// Runs the command.
pub(crate) async fn run(args: TenantArgs) -> Result<()> {
    match args.action {
        Action::Show(ShowArgs { tenant, place }) => {
            let desk = Desk::open(&place)?;
            let all = desk.all().await?;
            desk.print(&tenant, all.of(&tenant).map(AsRef::as_ref))
        }
        Action::List(ListArgs { place }) => {
            let desk = Desk::open(&place)?;
            let all = desk.all().await?;
            let mut shown: Vec<Shown> = all
                .tenants()
                .map(|(tenant, in_force)| Shown::of(tenant, Some(in_force), &desk.registry))
                .collect();
            shown.sort_by(|a, b| a.tenant.cmp(&b.tenant));
            desk.output.output.print(&shown, |shown| list(shown))
        }
        Action::Set(args) => {
            let (json, merge) = wanted(&args)?;
            change(args.tenant, args.by.by, &args.place, json, merge).await
        }
        Action::Reset(ResetArgs { tenant, by, place }) => {
            change(tenant, by.by, &place, json!({}), false).await
        }
    }
}

fn list(shown: &[Shown]) -> String {
    let rows: Vec<[String; 3]> = shown
        .iter()
        .map(|shown| {
            [
                shown.tenant.as_str().to_owned(),
                shown.updated_by.clone().unwrap_or_default(),
                shown.updated_at.map(|at| at.to_rfc3339()).unwrap_or_default(),
            ]
        })
        .collect();
    table(["tenant", "set by", "at"], [false; 3], &rows)
}

/// The settings that are wanted, and whether they are a change of those that are set.
fn wanted(args: &SetArgs) -> Result<(Value, bool)> {
    if let Some(file) = &args.file {
        let mut text = String::new();
        if file.as_os_str() == "-" {
            std::io::stdin()
                .read_to_string(&mut text)
                .context("cannot read stdin")?;
        } else {
            text =
                std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        }
        let json = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))?;
        return Ok((json, false));
    }
    let mut patch = json!({});
    if let Some(domain) = &args.domain {
        if let Some(policy) = args.policy {
            patch["domains"][domain]["policy"] = policy.as_str().into();
        }
        if let Some(on) = args.auto_resolve {
            patch["domains"][domain]["auto_resolve"] = on.into();
        }
    }
    if let Some(on) = args.device_priority {
        patch["device_priority"]["enabled"] = on.into();
    }
    for (kind, priority) in &args.priority {
        patch["device_priority"][kind] = (*priority).into();
    }
    for (name, limit) in &args.limit {
        patch["limits"][name] = (*limit).into();
    }
    if patch == json!({}) {
        bail!(
            "nothing to set: give --domain with --policy or --auto-resolve, --device-priority, --priority, --limit or --file"
        );
    }
    Ok((patch, true))
}

async fn change(tenant: TenantId, by: UserId, place: &Place, json: Value, merge: bool) -> Result<()> {
    let desk = Desk::open(place)?;
    // Says what is wrong with Kafka before anything is handed over.
    desk.all().await?;
    let producer = Producer::new(ProducerConfig::new(&place.kafka.kafka_brokers))?;
    let changer = Changer::new(
        desk.registry.clone(),
        Arc::new(producer),
        desk.settings.clone(),
        &place.kafka.topic_prefix,
    );
    let change = Change {
        tenant: tenant.clone(),
        by,
        json,
        merge,
        from: None,
    };
    match changer.change(change).await {
        Ok(in_force) => desk.print(&tenant, Some(&in_force)),
        Err(SettingsError::Wrong(defects)) => {
            let lines: Vec<String> = defects.iter().map(|defect| format!("  {defect}")).collect();
            bail!("these settings cannot be:\n{}", lines.join("\n"))
        }
        Err(error) => Err(error).context("the settings were not changed"),
    }
}

/// All settings, followed while the command runs.
struct Desk {
    registry: Arc<Registry>,
    settings: watch::Receiver<Arc<Settings>>,
    brokers: String,
    output: OutputArgs,
}

impl Desk {
    fn open(place: &Place) -> Result<Desk> {
        let registry = domains::registry(&place.domains)?;
        let (settings, following) = follow(FollowConfig {
            brokers: place.kafka.kafka_brokers.clone(),
            topic_prefix: place.kafka.topic_prefix.clone(),
        });
        tokio::spawn(following);
        Ok(Desk {
            registry,
            settings,
            brokers: place.kafka.kafka_brokers.clone(),
            output: place.output,
        })
    }

    async fn all(&self) -> Result<Arc<Settings>> {
        let mut settings = self.settings.clone();
        let read = tokio::time::timeout(PATIENCE, settings.wait_for(|settings| settings.complete)).await;
        match read {
            Ok(Ok(settings)) => Ok(settings.clone()),
            _ => bail!(
                "Kafka at {} does not show the settings: is it up, is kafka_brokers right, and was `tidelog topics` run?",
                self.brokers
            ),
        }
    }

    fn print(&self, tenant: &TenantId, in_force: Option<&InForce>) -> Result<()> {
        let shown = Shown::of(tenant, in_force, &self.registry);
        self.output.output.print(&shown, Shown::text)
    }
}
