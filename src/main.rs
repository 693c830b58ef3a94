//! The command line: one subcommand, one file. What the service does is in the crates; here they are set up and
//! composed. This is also the only place that turns errors into exit codes: 0 done, 1 failed, 2 wrong command line or
//! setting; what else a command says, its help lists.

mod audit;
mod bench;
mod check_domain;
mod connections;
mod database;
mod dead_letters;
mod dev;
mod domains;
mod erase;
mod export;
mod figures;
mod gateway;
mod guard_rails;
mod health;
mod hits;
mod ingest;
mod kafka;
mod logging;
mod look;
mod migrate;
mod moment;
mod output;
mod preflight;
mod progress;
mod project;
mod refold;
mod serve;
mod settings;
mod shutdown;
mod snapshot;
mod stack;
mod status;
mod tail;
mod tenant;
mod token;
mod topics;
mod trace;
mod version;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// librdkafka makes a record on one thread and frees it on another, ten allocations each, which glibc's allocator is slow
/// at: with this one, which serves C code too, the gateway takes 10 µs of processor time an item instead of 12.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// An offline-first sync backend in which the message log is the truth
#[derive(Parser)]
#[command(version = version::VERSION, propagate_version = true, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    global: settings::GlobalSettings,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Dev {
        #[command(flatten)]
        domains: settings::DomainSettings,
        #[command(flatten)]
        seal: settings::SealSettings,
        // Last: the command's help is its text.
        #[command(flatten)]
        dev: dev::DevArgs,
    },
    Serve(serve::ServeArgs),
    Ingest(ingest::IngestArgs),
    Project(project::ProjectArgs),
    Migrate(migrate::MigrateArgs),
    Topics(topics::TopicsArgs),
    Status(status::StatusArgs),
    Replay(refold::replay::ReplayArgs),
    Rebuild(refold::rebuild::RebuildArgs),
    Verify(refold::verify::VerifyArgs),
    Snapshot(Box<snapshot::SnapshotArgs>),
    Tail(Box<tail::TailArgs>),
    Trace(Box<trace::TraceArgs>),
    Tenant(tenant::TenantArgs),
    DeadLetters(dead_letters::DeadLettersArgs),
    Erase(Box<erase::EraseArgs>),
    Export(Box<export::ExportArgs>),
    Audit(audit::AuditArgs),
    Token(token::TokenArgs),
    CheckDomain(check_domain::CheckDomainArgs),
    Bench(bench::BenchArgs),
    #[command(name = "__guard", hide = true)]
    Guard(stack::guard::GuardArgs),
}

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the async runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(run());
    // Whoever had work to finish had time for it. A thread that waits for a Kafka that is away must not keep the
    // process, as dropping the runtime would.
    runtime.shutdown_background();
    code
}

async fn run() -> ExitCode {
    let cli: Cli = match settings::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    logging::start(&cli.global.log, cli.global.log_format);
    let done = |()| ExitCode::SUCCESS;
    let ended = match cli.command {
        Command::Dev { dev, domains, seal } => {
            let serve = async |env| serve::under_dev(env, domains, seal).await;
            dev::run(dev, serve).await.map(done)
        }
        Command::Serve(args) => serve::serve(args).await.map(done),
        Command::Ingest(args) => ingest::ingest(args).await.map(done),
        Command::Project(args) => project::project(args).await.map(done),
        Command::Migrate(args) => migrate::run(args).await.map(done),
        Command::Topics(args) => topics::run(args).await,
        Command::Status(args) => status::run(args).await.map(done),
        Command::Replay(args) => refold::replay::run(args).await.map(done),
        Command::Rebuild(args) => refold::rebuild::run(args).await,
        Command::Verify(args) => refold::verify::run(args).await,
        Command::Snapshot(args) => snapshot::run(*args).await,
        Command::Tail(args) => tail::run(*args).await.map(done),
        Command::Trace(args) => trace::run(*args).await.map(done),
        Command::Tenant(args) => tenant::run(args).await.map(done),
        Command::DeadLetters(args) => dead_letters::run(args).await,
        Command::Erase(args) => erase::run(*args).await,
        Command::Export(args) => export::run(*args).await,
        Command::Audit(args) => audit::run(args).await.map(done),
        Command::Token(args) => token::run(args).map(done),
        Command::CheckDomain(args) => check_domain::run(args),
        Command::Bench(args) => bench::run(args).await.map(done),
        Command::Guard(args) => stack::guard::run(args).await,
    };
    ended.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        match error.is::<guard_rails::Refused>() || error.is::<settings::Wrong>() {
            true => ExitCode::from(settings::EXIT_USAGE),
            false => ExitCode::FAILURE,
        }
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_defined() {
        crate::Cli::command().debug_assert();
    }
}
