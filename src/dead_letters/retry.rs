//! `tidelog dead-letters retry`: a letter's record goes to the end of its partition's log once more, where the fold meets it
//! as what it is: an event with its own ids and base version, behind whatever its record became since. Nothing that was
//! applied changes, and phones get what comes of it as a new change.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use tokio_postgres::Client;

use super::Bench;
use super::append::Appender;
use super::choice::Chosen;
use super::drop::EXIT_REFUSED;
use super::letter::{Letter, LetterPlace};
use super::order::Rules;
use crate::audit::Audit;
use crate::database::plain;
use crate::guard_rails::OperatorArgs;
use crate::output::printable;

/// Appends dead letters again, once this build can read them
#[derive(Args, Clone, Debug)]
#[command(
    long_about = "Appends the records of dead letters to the end of their partitions, as they were: to be used once what \
                  could not read them can, for example since projectors were upgraded. They keep their ids and base versions, so \
                  what became of a record since is respected by its policy. Letters of one record go in the order of the log. \
                  Refused, with the reason: what this build still cannot read; what was retried or dropped before; what \
                  its sender was told an outcome of; what an earlier open letter of the record stands before; what would go \
                  over later items of the same device.",
    after_help = "Examples:\n  tidelog dead-letters retry sync.helpdesk.v1/2/17 --dry-run\n  \
                  tidelog dead-letters retry --domain journal-media --since 24h\n\nExit codes:\n  \
                  0  all were appended, or there was nothing to retry\n  \
                  1  failed, for example because Kafka is away; those before stay appended, and a retry goes on from there\n  \
                  2  wrong command line or setting\n  3  some were refused; it says which and why"
)]
pub(super) struct RetryArgs {
    #[command(flatten)]
    chosen: Chosen,
    /// Also where the same device has changed the record since: the earlier item then goes over its later ones
    #[arg(long)]
    over_later: bool,
    #[command(flatten)]
    operator: OperatorArgs,
    #[command(flatten)]
    bench: Bench,
}

/// What was done.
#[derive(Debug, Default, Serialize)]
struct Retried {
    dry_run: bool,
    retried: Vec<Again>,
    refused: Vec<NotRetried>,
    /// Whether there are more than the limit.
    has_more: bool,
}

#[derive(Debug, Serialize)]
struct Again {
    place: LetterPlace,
    /// Where it lies now; none in a trial.
    now_at: Option<LetterPlace>,
}

#[derive(Debug, Serialize)]
struct NotRetried {
    place: LetterPlace,
    why: String,
}

/// Runs the command.
pub(super) async fn run(args: RetryArgs) -> Result<ExitCode> {
    args.chosen.check()?;
    let (registry, mut client) = args.bench.open().await?;
    let arguments = json!({"chosen": args.chosen, "over_later": args.over_later});
    let audit = Audit::begin(
        &args.bench.database,
        &args.operator,
        "dead-letters retry",
        &arguments,
    )
    .await?;
    let rules = Rules {
        registry: &registry,
        prefix: &args.bench.kafka.topic_prefix,
        over_later: args.over_later,
    };
    let mut done = Retried {
        dry_run: args.operator.dry_run,
        ..Retried::default()
    };
    let ended = retry_all(&args, &rules, &mut client, &mut done).await;
    // What was done before a failure was done.
    audit.end(&ended, detail(&done)).await;
    args.bench.output.output.print(&done, text)?;
    ended?;
    Ok(match done.refused.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(EXIT_REFUSED),
    })
}

/// One after the other in the order of the log, since letters of one record must not overtake each other.
async fn retry_all(
    args: &RetryArgs,
    rules: &Rules<'_>,
    client: &mut Client,
    done: &mut Retried,
) -> Result<()> {
    let (places, more) = args.chosen.find(client, rules.registry, rules.prefix).await?;
    done.has_more = more;
    let appender = Appender::new(&args.bench.kafka)?;
    let (who, mut gone) = (args.operator.who(), Vec::new());
    for place in places {
        match retry_one(&place, &who, rules, client, &appender, (&gone, done.dry_run)).await? {
            Ok(now_at) => {
                gone.push(place.clone());
                done.retried.push(Again { place, now_at });
            }
            Err(why) => done.refused.push(NotRetried { place, why }),
        }
    }
    Ok(())
}

/// Answers where the letter lies now, or why it was refused. Its row is locked meanwhile, so that of two operators one waits,
/// and then finds it retried.
///
/// A crash between the append and the row's update leaves the letter open although it was appended. That harms nothing: when it
/// is retried again there is a second copy in the log, which has the event id of the first, and the fold takes an event that it has
/// seen for a repeat, whatever came of the first and whatever the record became since.
async fn retry_one(
    place: &LetterPlace,
    who: &str,
    rules: &Rules<'_>,
    client: &mut Client,
    appender: &Appender,
    (gone, dry_run): (&[LetterPlace], bool),
) -> Result<Result<Option<LetterPlace>, String>> {
    let transaction = client.transaction().await.map_err(plain)?;
    let Some(letter) = Letter::load(&transaction, place, true).await? else {
        return Ok(Err("there is no such letter".into()));
    };
    if let Some(why) = rules.against(&transaction, &letter, gone).await? {
        return Ok(Err(why));
    }
    if dry_run {
        return Ok(Ok(None));
    }
    let now_at = appender.append(&letter).await?;
    let noted = async {
        transaction
            .execute(
                "UPDATE dead_letters SET status = 'retried', closed_at = now(), closed_by = $4, retried_offset = $5
                 WHERE topic = $1 AND partition = $2 AND \"offset\" = $3",
                &[&place.topic, &place.partition, &place.offset, &who, &now_at.offset],
            )
            .await?;
        transaction.commit().await
    };
    noted.await.map_err(plain).with_context(|| {
        format!("{place} was appended again at {now_at}, but that is not noted: retry it, which changes nothing more")
    })?;
    Ok(Ok(Some(now_at)))
}

fn detail(done: &Retried) -> Value {
    json!({"retried": done.retried, "refused": done.refused})
}

fn text(done: &Retried) -> String {
    let mut lines: Vec<String> = Vec::new();
    for again in &done.retried {
        lines.push(match &again.now_at {
            Some(now_at) => format!("retried {}: it lies at {now_at} now", again.place),
            None => format!("would retry {}", again.place),
        });
    }
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
