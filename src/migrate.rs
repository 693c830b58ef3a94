//! `tidelog migrate`: brings one schema to what this build works with.
//!
//! In order, on one connection that holds a lock: the schema, the numbered migrations, the tables of every domain.
//! Then it compares: a promoted column that a definition gained after its table was made is reported, not added,
//! since adding a generated column rewrites the whole table under a lock. Several schemas of one database know
//! nothing of each other; each has its own history of migrations.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use refinery::{Migration, Runner};
use serde::Serialize;
use tidelog_events::domain::{ADDED_LATER, Registry, create_tables, expected_columns};
use tokio_postgres::{Client, Config};

use crate::database::{self, plain};
use crate::domains;
use crate::output::{OutputArgs, counted};
use crate::settings::{DatabaseSettings, DomainSettings};

/// Every file of `migrations/`, by name; a test sees to it that none is forgotten.
const MIGRATIONS: [(&str, &str); 8] = [
    ("V1__core", include_str!("../migrations/V1__core.sql")),
    (
        "V2__idempotency_items",
        include_str!("../migrations/V2__idempotency_items.sql"),
    ),
    (
        "V3__resolutions",
        include_str!("../migrations/V3__resolutions.sql"),
    ),
    (
        "V4__fold_version",
        include_str!("../migrations/V4__fold_version.sql"),
    ),
    ("V5__shadows", include_str!("../migrations/V5__shadows.sql")),
    ("V6__audit", include_str!("../migrations/V6__audit.sql")),
    ("V7__seal_keys", include_str!("../migrations/V7__seal_keys.sql")),
    ("V8__feed_floor", include_str!("../migrations/V8__feed_floor.sql")),
];

/// How long a statement waits for a lock that a running service holds.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);

/// Brings the database to what this build works with
#[derive(Args, Clone, Debug)]
#[command(
    long_about = "Makes the schema if there is none, runs the migrations that it lacks and makes the tables of every \
                  domain. Safe to start twice at once: the second waits, then finds nothing to do. Promoted columns \
                  that a table lacks are reported, not added.",
    after_help = "Example:\n  tidelog migrate --database-url postgres://tidelog:…@db/tidelog\n\nExit codes:\n  \
                  0  the schema is as this build needs it (missing promoted columns are a warning)\n  \
                  1  failed; what was done before stays, and running it again goes on from there\n  \
                  2  wrong command line or setting"
)]
pub(crate) struct MigrateArgs {
    #[command(flatten)]
    database: DatabaseSettings,
    #[command(flatten)]
    domains: DomainSettings,
    #[command(flatten)]
    output: OutputArgs,
}

/// What a run did.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Migrated {
    /// The schema.
    pub(crate) schema: String,
    /// Whether it was made.
    pub(crate) schema_created: bool,
    /// The migrations that ran, by name.
    pub(crate) applied: Vec<String>,
    /// The tables of domains that were made.
    pub(crate) tables_created: Vec<String>,
    /// Promoted columns that existing tables lack or have with another type.
    pub(crate) columns_differing: Vec<ColumnDiffers>,
}

/// A promoted column that is not as the definition has it.
#[derive(Debug, Serialize)]
pub(crate) struct ColumnDiffers {
    /// The table.
    pub(crate) table: String,
    /// The column.
    pub(crate) column: String,
    /// Its type by the definition.
    pub(crate) expected: &'static str,
    /// Its type in the table, if it is there.
    pub(crate) found: Option<String>,
}

/// Runs the command.
pub(crate) async fn run(args: MigrateArgs) -> Result<()> {
    let registry = domains::registry(&args.domains)?;
    let config = database::config(&args.database, "migrate", &[("statement_timeout", "0")])?;
    let migrated = run_migrations(&config, &args.database.schema, &registry).await?;
    for column in &migrated.columns_differing {
        let (table, name, expected) = (&column.table, &column.column, column.expected);
        match &column.found {
            None => {
                eprintln!("warning: the table {table} lacks the column {name} ({expected}): {ADDED_LATER}")
            }
            Some(found) => {
                eprintln!("warning: {table}.{name} is {found}, and by its definition {expected}")
            }
        }
    }
    if !migrated.columns_differing.is_empty() {
        eprintln!(
            "The service works without them, since all fields are in doc; queries on these columns do not. To have them, run \
             `tidelog rebuild --domain NAME`: it makes the domain's tables again while the service is up."
        );
    }
    args.output.output.print(&migrated, |migrated| {
        if migrated.schema_created || !migrated.applied.is_empty() || !migrated.tables_created.is_empty() {
            format!(
                "The schema {} is ready: {} and {} new.",
                migrated.schema,
                counted(migrated.applied.len() as u64, "migration", "migrations"),
                counted(migrated.tables_created.len() as u64, "table", "tables")
            )
        } else {
            format!("The schema {} was up to date.", migrated.schema)
        }
    })
}

/// Brings `schema`, which `config` has as its search path, up to date. Says on stderr what it does.
pub(crate) async fn run_migrations(config: &Config, schema: &str, registry: &Registry) -> Result<Migrated> {
    let mut client = database::connect(config).await?;
    let migrated = under_lock(&mut client, schema, registry).await;
    // The connection ends with the client, and the lock with the connection.
    migrated.with_context(|| {
        format!(
            "cannot migrate the schema {schema} of {}",
            database::place(config)
        )
    })
}

async fn under_lock(client: &mut Client, schema: &str, registry: &Registry) -> Result<Migrated> {
    lock(client, schema).await?;
    let mut migrated = Migrated {
        schema: schema.to_owned(),
        ..Migrated::default()
    };
    migrated.schema_created = create_schema(client, schema).await?;
    migrated.applied = migrate(client).await?;
    migrated.tables_created = make_tables(client, registry).await?;
    migrated.columns_differing = differing_columns(client, registry).await?;
    Ok(migrated)
}

/// One run at a time for each schema. Waits as long as the other takes.
async fn lock(client: &Client, schema: &str) -> Result<()> {
    let name = format!("tidelog migrate {schema}");
    let taken = client
        .query_one("SELECT pg_try_advisory_lock(hashtextextended($1, 0))", &[&name])
        .await
        .map_err(plain)?;
    if !taken.get::<_, bool>(0) {
        eprintln!("Another migration of {schema} is running: waiting for it");
        client
            .execute("SELECT pg_advisory_lock(hashtextextended($1, 0))", &[&name])
            .await
            .map_err(plain)?;
    }
    let timeout = format!("SET lock_timeout = {}", LOCK_TIMEOUT.as_millis());
    client.batch_execute(&timeout).await.map_err(plain)
}

async fn create_schema(client: &Client, schema: &str) -> Result<bool> {
    // Asked first: `IF NOT EXISTS` wants the right to make schemas even where there is nothing to make.
    let found = client
        .query_opt("SELECT FROM pg_namespace WHERE nspname = $1", &[&schema])
        .await
        .map_err(plain)?;
    if found.is_some() {
        return Ok(false);
    }
    eprintln!("Making the schema {schema}");
    // A setting's rule leaves nothing to escape; the quotes are for words that SQL has reserved.
    client
        .batch_execute(&format!("CREATE SCHEMA \"{schema}\""))
        .await
        .map_err(plain)
        .context(
            "cannot make the schema: have its owner make it, or GRANT CREATE ON DATABASE to this user",
        )?;
    Ok(true)
}

async fn migrate(client: &mut Client) -> Result<Vec<String>> {
    let migrations: Vec<Migration> = MIGRATIONS
        .iter()
        .map(|(name, sql)| Migration::unapplied(name, sql))
        .collect::<Result<_, _>>()?;
    let report = Runner::new(&migrations).run_async(client).await;
    let report = report.map_err(|error| match error.kind() {
        refinery::error::Kind::DivergentVersion(applied, _) => anyhow::anyhow!(
            "the migration {applied} that this schema had is not the one of this build: use the build that made the \
             schema, or another schema"
        ),
        refinery::error::Kind::MissingVersion(applied) => anyhow::anyhow!(
            "this schema has had the migration {applied}, which this build does not know: use a newer build"
        ),
        _ => anyhow::Error::new(error),
    })?;
    let applied: Vec<String> = report
        .applied_migrations()
        .iter()
        .map(ToString::to_string)
        .collect();
    for name in &applied {
        eprintln!("Ran the migration {name}");
    }
    Ok(applied)
}

/// All or none: a domain without its feed is worse than none.
async fn make_tables(client: &mut Client, registry: &Registry) -> Result<Vec<String>> {
    let before = tables(client).await?;
    let transaction = client.transaction().await.map_err(plain)?;
    for domain in registry.iter() {
        transaction
            .batch_execute(&create_tables(domain))
            .await
            .map_err(plain)
            .with_context(|| format!("cannot make the tables of the domain {}", domain.name))?;
    }
    transaction.commit().await.map_err(plain)?;
    let created: Vec<String> = tables(client)
        .await?
        .into_iter()
        .filter(|table| !before.contains(table))
        .collect();
    if !created.is_empty() {
        eprintln!(
            "Made {}: {}",
            counted(created.len() as u64, "table", "tables"),
            created.join(", ")
        );
    }
    Ok(created)
}

async fn tables(client: &Client) -> Result<Vec<String>> {
    let rows = client
        .query(
            "SELECT relname::text FROM pg_class
             WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p') ORDER BY relname",
            &[],
        )
        .await
        .map_err(plain)?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

async fn differing_columns(client: &Client, registry: &Registry) -> Result<Vec<ColumnDiffers>> {
    let rows = client
        .query(
            "SELECT c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod)
             FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
             WHERE c.relnamespace = current_schema()::regnamespace AND a.attnum > 0 AND NOT a.attisdropped",
            &[],
        )
        .await
        .map_err(plain)?;
    let found = |table: &str, column: &str| {
        rows.iter()
            .find(|row| row.get::<_, &str>(0) == table && row.get::<_, &str>(1) == column)
            .map(|row| row.get::<_, String>(2))
    };
    let mut differing = Vec::new();
    for domain in registry.iter() {
        for (column, expected) in expected_columns(domain) {
            let found = found(&domain.table, column);
            if found.as_deref() != Some(expected) {
                let (table, column) = (domain.table.to_string(), column.to_owned());
                differing.push(ColumnDiffers {
                    table,
                    column,
                    expected,
                    found,
                });
            }
        }
    }
    Ok(differing)
}

/// A connection to a schema of this build, for one use of it (see [`database::config`]).
pub(crate) async fn connected(
    database: &DatabaseSettings,
    registry: &Registry,
    use_of: &str,
    session: &[(&str, &str)],
) -> Result<Client> {
    let client = database::connect(&database::config(database, use_of, session)?).await?;
    check_migrated(&client, &database.schema, registry).await?;
    Ok(client)
}

/// Refuses to serve from a schema that has not been migrated by this build.
pub(crate) async fn check_migrated(client: &Client, schema: &str, registry: &Registry) -> Result<()> {
    let present = client
        .query(
            "SELECT tablename::text FROM pg_tables WHERE schemaname = $1",
            &[&schema],
        )
        .await
        .map_err(plain)?;
    let present: Vec<String> = present.iter().map(|row| row.get(0)).collect();
    let has = |table: &str| present.iter().any(|found| found == table);
    if !has("refinery_schema_history") {
        bail!("the schema {schema} has no tables yet: run `tidelog migrate` first");
    }
    let newest = client
        .query_one("SELECT max(version) FROM refinery_schema_history", &[])
        .await
        .map_err(plain)?;
    let newest = newest.get::<_, Option<i32>>(0).unwrap_or(0);
    let missing = registry
        .iter()
        .find(|domain| !has(&domain.table) || !has(&domain.changes_table()));
    if usize::try_from(newest).unwrap_or(0) < MIGRATIONS.len() {
        bail!("the schema {schema} is older than this build: run `tidelog migrate` first");
    }
    if let Some(domain) = missing {
        bail!(
            "the schema {schema} has no tables for the domain {}: run `tidelog migrate` first",
            domain.name
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_migration_is_in_the_program() {
        let mut files: Vec<String> = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations"))
            .expect("the folder")
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        files.sort();
        let named: Vec<String> = MIGRATIONS.iter().map(|(name, _)| format!("{name}.sql")).collect();
        assert_eq!(files, named);
        for (number, (name, sql)) in MIGRATIONS.iter().enumerate() {
            let migration = Migration::unapplied(name, sql).expect("a name that can be read");
            // `check_migrated` counts on it.
            assert_eq!(
                usize::try_from(migration.version()).expect("a number"),
                number + 1
            );
        }
    }
}
