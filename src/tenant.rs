//! `tidelog tenant`: what tenants have set for themselves, shown and changed by whoever runs the service. Works on the
//! settings topic, so no gateway has to be there; Postgres only where something is changed, for the audit. What settings
//! mean is `tidelog_events::settings`; that they are checked, appended and read back is `tidelog_ingest::settings`.

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

use crate::audit::Audit;
use crate::domains;
use crate::guard_rails::{ConfirmArgs, Danger, OperatorArgs};
use crate::look::time;
use crate::migrate::connected;
use crate::output::{OutputArgs, printable, table};
use crate::settings::{DatabaseSettings, DomainSettings, KafkaSettings, Wrong};

/// How long Kafka may take to show all settings.
const PATIENCE: Duration = Duration::from_secs(15);
/// Who tenants see as having changed their settings, where it is not said.
const UNNAMED: &str = "operator";

/// Shows and changes what tenants have set: conflict policies, device priority, limits
#[derive(Args, Clone, Debug)]
#[command(
    long_about = "Shows and changes what tenants have set for themselves: conflict policies, auto-resolution, device \
                  priority, limits. Settings are kept in the log; every gateway knows a change within moments, and what \
                  it appended before stays as it was stamped. Whoever changes them is noted in `tidelog audit`, which is in \
                  Postgres, with what was set before.",
    after_help = "Examples:\n  tidelog tenant show --tenant acme\n  \
                  tidelog tenant set --tenant acme --domain helpdesk --policy merge\n  \
                  tidelog tenant set --tenant acme --device-priority true --priority phone=120\n  \
                  tidelog tenant set --tenant acme --file settings.json --dry-run\n  \
                  tidelog tenant reset --tenant acme --yes\n\nExit codes:\n  \
                  0  shown or changed, or nothing was set to take back\n  \
                  1  failed, for example because Kafka or, for a change, Postgres is away\n  \
                  2  wrong command line or setting, or a reset was not confirmed"
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
    /// Takes back everything that a tenant has set: on a terminal it asks, elsewhere --yes goes on
    Reset(Box<ResetArgs>),
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
    confirm: ConfirmArgs,
    #[command(flatten)]
    desk: Changing,
}

/// What a change is made with.
#[derive(Args, Clone, Debug)]
struct Changing {
    #[command(flatten)]
    operator: OperatorArgs,
    #[command(flatten)]
    database: DatabaseSettings,
    #[command(flatten)]
    place: Place,
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
    desk: Changing,
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
    /// These would be the settings; nothing was changed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dry_run: bool,
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
            dry_run: false,
            revision: in_force.map_or(0, |current| current.revision),
            updated_at: in_force.map(|current| current.updated_at),
            updated_by: in_force.map(|current| current.updated_by.clone()),
            effective: settings.effective(registry),
            settings,
        }
    }

    fn text(&self) -> String {
        let mut text = match (&self.updated_by, self.updated_at) {
            _ if self.dry_run => format!(
                "{} would have these settings; nothing was changed\n\n",
                self.tenant
            ),
            (Some(by), Some(at)) => {
                format!("{}, set by {} at {}\n\n", self.tenant, printable(by), time(at))
            }
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
            changed("tenant set", &args.desk, args.tenant, (json, merge), None).await
        }
        Action::Reset(args) => {
            let ResetArgs {
                tenant,
                confirm,
                desk,
            } = *args;
            changed("tenant reset", &desk, tenant, (json!({}), false), Some(confirm)).await
        }
    }
}

fn list(shown: &[Shown]) -> String {
    let rows: Vec<[String; 3]> = shown
        .iter()
        .map(|shown| {
            [
                shown.tenant.as_str().to_owned(),
                printable(shown.updated_by.as_deref().unwrap_or_default()),
                shown.updated_at.map(time).unwrap_or_default(),
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
        let json = serde_json::from_str(&text)
            .map_err(|error| Wrong(format!("{} is not JSON: {error}", file.display())))?;
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
        const NOTHING: &str = "nothing to set: give --domain with --policy or --auto-resolve, --device-priority, --priority, --limit or --file";
        return Err(Wrong(NOTHING.to_owned()).into());
    }
    Ok((patch, true))
}

/// Makes a change and notes it; a reset is one that is asked about.
async fn changed(
    command: &str,
    changing: &Changing,
    tenant: TenantId,
    (json, merge): (Value, bool),
    reset: Option<ConfirmArgs>,
) -> Result<()> {
    let desk = Desk::open(&changing.place)?;
    // Says what is wrong with Kafka or Postgres before anything is handed over.
    let all = desk.all().await?;
    connected(&changing.database, &desk.registry, "tenant", &[]).await?;
    let before = all.of(&tenant).cloned();
    let mut arguments = json!({"tenant": tenant});
    if reset.is_none() {
        arguments[if merge { "patch" } else { "settings" }] = json.clone();
    }
    let audit = Audit::begin(&changing.database, &changing.operator, command, &arguments).await?;
    let change = Change {
        tenant: tenant.clone(),
        by: match changing.operator.said() {
            Some(by) => by.clone(),
            // What a tenant reads of it need not name a user of this system.
            None => UserId::parse(UNNAMED)?,
        },
        json,
        merge,
        from: None,
    };
    let ended = change_at(&desk, changing, change, before.as_deref(), reset).await;
    let set = before.map_or_else(|| json!({}), |before| before.settings.to_json());
    audit.end(&ended, json!({"before": set})).await;
    desk.output.output.print(&ended?, Shown::text)
}

async fn change_at(
    desk: &Desk,
    changing: &Changing,
    change: Change,
    before: Option<&InForce>,
    reset: Option<ConfirmArgs>,
) -> Result<Shown> {
    let tenant = change.tenant.clone();
    let shown = |in_force: Option<&InForce>| Shown::of(&tenant, in_force, &desk.registry);
    if let Some(confirm) = reset {
        if before.is_none_or(|before| before.settings == TenantSettings::default()) {
            return Ok(shown(before));
        }
        if !changing.operator.dry_run {
            confirm.confirm(&Danger {
                what: &format!("Taking back everything that {tenant} has set"),
                name: tenant.as_str(),
                named: true,
                flags: "--yes",
            })?;
        }
    }
    let kafka = &changing.place.kafka;
    let producer = Producer::new(ProducerConfig::new(&kafka.kafka_brokers))?;
    let changer = Changer::new(
        desk.registry.clone(),
        Arc::new(producer),
        desk.settings.clone(),
        &kafka.topic_prefix,
    );
    let done = match changing.operator.dry_run {
        true => changer.trial(change).await.map(|settings| Shown {
            dry_run: true,
            effective: settings.effective(&desk.registry),
            settings,
            ..shown(before)
        }),
        false => changer
            .change(change)
            .await
            .map(|in_force| shown(Some(&in_force))),
    };
    done.map_err(|error| match error {
        SettingsError::Wrong(defects) => {
            let lines: Vec<String> = defects.iter().map(|defect| format!("  {defect}")).collect();
            Wrong(format!("these settings cannot be:\n{}", lines.join("\n"))).into()
        }
        error => anyhow::Error::new(error).context("the settings were not changed"),
    })
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
