//! The audit: who did what, when, with which arguments, and how it ended. An operator's command writes its row before it does
//! anything and completes it at its end; a row without an end says that it was cut off, or still runs.
//! `tidelog audit` lists them. What the commands do is not known here; arguments are what each of them hands over, and
//! none hands over a secret.

use anyhow::{Context, Result};
use chrono::{DateTime, SecondsFormat, Utc};
use clap::Args;
use serde::Serialize;
use serde_json::Value;
use tokio_postgres::{Client, Config};

use crate::database::{self, plain};
use crate::domains;
use crate::guard_rails::{OperatorArgs, Refused};
use crate::migrate::connected;
use crate::output::{OutputArgs, printable, table};
use crate::settings::{DatabaseSettings, DomainSettings};

/// A row that has begun. Has a connection of its own, so that no trouble of the command's keeps it from being completed.
pub(crate) struct Audit {
    client: Client,
    config: Config,
    id: i64,
}

impl Audit {
    /// Writes the row of a command that begins; where it cannot be written, the command should not begin. The schema is
    /// of this build. `arguments` is an object without secrets.
    pub(crate) async fn begin(
        database: &DatabaseSettings,
        operator: &OperatorArgs,
        command: &str,
        arguments: &Value,
    ) -> Result<Audit> {
        let config = database::config(database, "audit", &[])?;
        let client = database::connect(&config).await?;
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let row = client
            .query_one(
                "INSERT INTO audit (who, host, command, arguments, dry_run) VALUES ($1, $2, $3, $4, $5) RETURNING audit_id",
                &[&operator.who(), &host.trim(), &command, arguments, &operator.dry_run],
            )
            .await
            .map_err(plain)
            .context("cannot write the audit, so nothing was done")?;
        Ok(Audit {
            client,
            config,
            id: row.get(0),
        })
    }

    /// Completes the row: `done`, or `failed` or `refused` with why beside `detail`, an object that tells what was done by then.
    /// Whatever keeps that from being written is told on stderr, and changes nothing about how the command ended.
    pub(crate) async fn end<T>(mut self, ended: &Result<T>, mut detail: Value) {
        let result = match ended {
            Ok(_) => "done",
            Err(error) => {
                detail["error"] = format!("{error:#}").into();
                match error.is::<Refused>() {
                    true => "refused",
                    false => "failed",
                }
            }
        };
        if let Err(error) = self.complete(result, &detail).await {
            eprintln!(
                "warning: the audit's row {} stays without an end: {error:#}",
                self.id
            );
        }
    }

    async fn complete(&mut self, result: &str, detail: &Value) -> Result<()> {
        // A long command may have outlived its connection.
        if self.client.is_closed() {
            self.client = database::connect(&self.config).await?;
        }
        self.client
            .execute(
                "UPDATE audit SET ended_at = now(), result = $2, detail = $3 WHERE audit_id = $1",
                &[&self.id, &result, detail],
            )
            .await
            .map_err(plain)?;
        Ok(())
    }
}

/// Shows what operators did
#[derive(Args, Clone, Debug)]
#[command(
    long_about = "Shows what operators did, the latest first: who, where, which command with which arguments, and how it \
                  ended. One without an end was cut off, or still runs.",
    after_help = "Examples:\n  tidelog audit\n  tidelog audit --limit 1 --output json\n\nExit codes:\n  \
                  0  shown\n  1  Postgres is away, or the schema is not migrated\n  2  wrong command line or setting"
)]
pub(crate) struct AuditArgs {
    /// Most rows to show
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(i64).range(1..=1000))]
    limit: i64,
    #[command(flatten)]
    database: DatabaseSettings,
    #[command(flatten)]
    domains: DomainSettings,
    #[command(flatten)]
    output: OutputArgs,
}

/// The latest rows.
#[derive(Debug, Serialize)]
struct Rows {
    rows: Vec<Row>,
    /// Whether there are older ones.
    has_more: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    audit_id: i64,
    /// RFC 3339, as is `ended_at`.
    at: String,
    ended_at: Option<String>,
    who: String,
    host: String,
    command: String,
    arguments: Value,
    dry_run: bool,
    /// `done`, `failed`, `refused`; none where it has not ended.
    result: Option<String>,
    detail: Option<Value>,
}

/// Runs the command.
pub(crate) async fn run(args: AuditArgs) -> Result<()> {
    let registry = domains::registry(&args.domains)?;
    let client = connected(&args.database, &registry, "audit", &[]).await?;
    let found = client
        .query(
            "SELECT audit_id, at, ended_at, who, host, command, arguments, dry_run, result, detail
             FROM audit ORDER BY audit_id DESC LIMIT $1",
            &[&(args.limit + 1)],
        )
        .await
        .map_err(plain)?;
    // The limit is at most a thousand.
    let limit = args.limit as usize;
    let rows = Rows {
        rows: found.iter().take(limit).map(row).collect(),
        has_more: found.len() > limit,
    };
    args.output.output.print(&rows, text)
}

fn row(row: &tokio_postgres::Row) -> Row {
    let time = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Millis, true);
    Row {
        audit_id: row.get(0),
        at: time(row.get(1)),
        ended_at: row.get::<_, Option<_>>(2).map(time),
        who: row.get(3),
        host: row.get(4),
        command: row.get(5),
        arguments: row.get(6),
        dry_run: row.get(7),
        result: row.get(8),
        detail: row.get(9),
    }
}

fn text(rows: &Rows) -> String {
    if rows.rows.is_empty() {
        return "Nobody has done anything yet.".into();
    }
    let cells: Vec<[String; 6]> = rows
        .rows
        .iter()
        .map(|row| {
            let trial = if row.dry_run { " (dry run)" } else { "" };
            [
                row.at.clone(),
                printable(&row.who),
                row.host.clone(),
                format!("{}{trial}", row.command),
                row.result.clone().unwrap_or_else(|| "no end".into()),
                printable(&row.arguments.to_string()),
            ]
        })
        .collect();
    let heading = ["at", "who", "host", "command", "result", "arguments"];
    let more = if rows.has_more {
        "There are older ones: see --limit\n"
    } else {
        ""
    };
    format!("{}{more}", table(heading, [false; 6], &cells))
}
