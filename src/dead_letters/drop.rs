//! `tidelog dead-letters drop`: letters that nobody will try again. The row and its bytes stay; it says who gave it up, when
//! and why.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use tokio_postgres::{Client, GenericClient};

use super::Bench;
use super::choice::Chosen;
use super::letter::{LetterPlace, STANDING, standing};
use crate::audit::Audit;
use crate::database::plain;
use crate::guard_rails::{ConfirmArgs, Danger, OperatorArgs};
use crate::output::{counted, printable};

/// The exit code where some were refused.
pub(super) const EXIT_REFUSED: u8 = 3;

/// Gives dead letters up: they stay, and are not open any more
#[derive(Args, Clone, Debug)]
#[command(
    long_about = "Gives dead letters up: they stay with their bytes, and are not open any more. On a terminal it asks; elsewhere --yes goes \
                  on, where the letters are given by their places, by --topic or by --domain.",
    after_help = "Examples:\n  tidelog dead-letters drop sync.helpdesk.v1/2/17 --why \"put there by hand\" --dry-run\n  \
                  tidelog dead-letters drop sync.helpdesk.v1/2/17 --why \"put there by hand\" --yes\n  \
                  tidelog dead-letters drop --topic sync.helpdesk.v1 --since 1h --why \"a tool gone wrong\" --yes\n\nExit codes:\n  \
                  0  dropped, or there was nothing to drop\n  1  failed, for example because Postgres is away\n  \
                  2  wrong command line or setting, or it was not confirmed\n  \
                  3  some were refused, since they are not there or not open; it says which"
)]
pub(super) struct DropArgs {
    #[command(flatten)]
    chosen: Chosen,
    /// Why nobody will need them
    #[arg(long, value_name = "TEXT", value_parser = why)]
    why: String,
    #[command(flatten)]
    confirm: ConfirmArgs,
    #[command(flatten)]
    operator: OperatorArgs,
    #[command(flatten)]
    bench: Bench,
}

fn why(text: &str) -> Result<String, &'static str> {
    let text = text.trim();
    match text.is_empty() || text.len() > 1000 || text.contains('\0') {
        true => Err("give 1 to 1000 bytes of text"),
        false => Ok(text.to_owned()),
    }
}

/// What was done.
#[derive(Debug, Serialize)]
struct Dropped {
    dry_run: bool,
    dropped: Vec<LetterPlace>,
    refused: Vec<NotDropped>,
    /// Whether there are more than the limit.
    has_more: bool,
}

#[derive(Debug, Serialize)]
struct NotDropped {
    place: LetterPlace,
    why: String,
}

/// Runs the command.
pub(super) async fn run(args: DropArgs) -> Result<ExitCode> {
    args.chosen.check()?;
    let (registry, mut client) = args.bench.open().await?;
    let arguments = json!({"chosen": args.chosen, "why": args.why});
    let audit = Audit::begin(
        &args.bench.database,
        &args.operator,
        "dead-letters drop",
        &arguments,
    )
    .await?;
    let prefix = &args.bench.kafka.topic_prefix;
    let found = args.chosen.find(&client, &registry, prefix).await;
    let done = match found {
        Ok((places, more)) => drop_all(&args, &mut client, places, more).await,
        Err(error) => Err(error),
    };
    let detail = done.as_ref().map(detail).unwrap_or_default();
    audit.end(&done, detail).await;
    let done = done?;
    args.bench.output.output.print(&done, text)?;
    Ok(match done.refused.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(EXIT_REFUSED),
    })
}

/// All or none: whoever is asked about several is told of all of them together.
async fn drop_all(
    args: &DropArgs,
    client: &mut Client,
    places: Vec<LetterPlace>,
    more: bool,
) -> Result<Dropped> {
    let dry_run = args.operator.dry_run;
    if !(dry_run || places.is_empty()) {
        confirm(args, &places)?;
    }
    let mut done = Dropped {
        dry_run,
        dropped: Vec::new(),
        refused: Vec::new(),
        has_more: more,
    };
    let who = args.operator.who();
    let transaction = client.transaction().await.map_err(plain)?;
    for place in places {
        match drop_one(&transaction, &place, &who, &args.why).await? {
            None => done.dropped.push(place),
            Some(why) => done.refused.push(NotDropped { place, why }),
        }
    }
    // A trial does the same, and takes it back.
    let ended = match dry_run {
        true => transaction.rollback().await,
        false => transaction.commit().await,
    };
    ended.map_err(plain)?;
    Ok(done)
}

fn confirm(args: &DropArgs, places: &[LetterPlace]) -> Result<()> {
    let (chosen, filters) = (&args.chosen, &args.chosen.filters);
    let letters = counted(places.len() as u64, "letter", "letters");
    let name = match (&chosen.places[..], &filters.topic, &filters.domain) {
        ([place], _, _) => place.to_string(),
        ([], Some(name), _) | ([], _, Some(name)) => name.clone(),
        _ => letters.clone(),
    };
    let what = match places {
        [place] => format!("Dropping the dead letter {place}"),
        [first, .., last] => format!("Dropping {letters} from {first} to {last}"),
        [] => return Ok(()),
    };
    args.confirm.confirm(&Danger {
        what: &what,
        name: &name,
        named: !chosen.places.is_empty() || filters.topic.is_some() || filters.domain.is_some(),
        flags: "--yes, and the letters' places, or --topic or --domain",
    })
}

/// Answers why it was not dropped.
async fn drop_one(
    client: &impl GenericClient,
    place: &LetterPlace,
    who: &str,
    why: &str,
) -> Result<Option<String>> {
    let (topic, partition, offset) = (&place.topic, &place.partition, &place.offset);
    let dropped = client
        .execute(
            "UPDATE dead_letters SET status = 'dropped', closed_at = now(), closed_by = $4, closed_why = $5
             WHERE topic = $1 AND partition = $2 AND \"offset\" = $3 AND status = 'open'",
            &[topic, partition, offset, &who, &why],
        )
        .await
        .map_err(plain)?;
    if dropped == 1 {
        return Ok(None);
    }
    let sql = format!(
        "SELECT {STANDING} FROM dead_letters WHERE topic = $1 AND partition = $2 AND \"offset\" = $3"
    );
    let found = client
        .query_opt(&sql, &[topic, partition, offset])
        .await
        .map_err(plain)?;
    Ok(Some(match found {
        Some(row) => format!("it was already {}", standing(&row, 0).told()),
        None => "there is no such letter".to_owned(),
    }))
}

fn detail(done: &Dropped) -> Value {
    json!({"dropped": done.dropped, "refused": done.refused})
}

fn text(done: &Dropped) -> String {
    let verb = if done.dry_run { "would drop" } else { "dropped" };
    let mut lines: Vec<String> = done
        .dropped
        .iter()
        .map(|place| format!("{verb} {place}"))
        .collect();
    let refused = done.refused.iter();
    lines.extend(refused.map(|refused| format!("refused {}: {}", refused.place, printable(&refused.why))));
    if lines.is_empty() {
        lines.push("No such dead letters are open.".into());
    }
    if done.has_more {
        lines.push("There are more: see --limit".into());
    }
    lines.join("\n")
}
