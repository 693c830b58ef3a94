//! Settings: each is a flag, an environment variable and a line in `tidelog.toml`, in that order of precedence, under
//! one name (`--kafka-brokers`, `TIDELOG_KAFKA_BROKERS`, `kafka_brokers`).
//!
//! A setting is declared once, below, as a clap argument with an `env`; the groups are what commands flatten. Clap
//! knows flags, environment and defaults. The file joins in by becoming the default of its settings, so no command
//! has to know that there is one. Nothing here opens a connection.

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Args, Command, Parser, ValueEnum};
use tidelog_events::seal::SealSecret;
use tidelog_events::seal::secret::LEAST_SECRET;
use toml::de::{DeTable, DeValue};

/// The exit code for a wrong command line or a wrong setting.
pub(crate) const EXIT_USAGE: u8 = 2;

/// Where `--help` lists settings.
const SETTINGS: &str = "Settings";
const EVERYWHERE: &str = "Settings of every command";

/// What every command takes.
#[derive(Args, Clone, Debug)]
pub(crate) struct GlobalSettings {
    /// Settings file; without this, tidelog.toml in the working directory if there is one
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// What to log to stderr: a level, or levels by module like "info,librdkafka=debug"
    #[arg(
        long,
        global = true,
        help_heading = EVERYWHERE,
        env = "TIDELOG_LOG",
        value_name = "FILTER",
        default_value = "info",
        value_parser = crate::logging::check_filter
    )]
    pub(crate) log: String,
    /// Form of log lines
    #[arg(
        long,
        global = true,
        help_heading = EVERYWHERE,
        env = "TIDELOG_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub(crate) log_format: LogFormat,
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// The log.
#[derive(Args, Clone, Debug)]
pub(crate) struct KafkaSettings {
    /// Kafka brokers to start from, separated by commas
    #[arg(long, help_heading = SETTINGS, env = "TIDELOG_KAFKA_BROKERS", value_name = "HOST:PORT,…", value_parser = brokers)]
    pub(crate) kafka_brokers: String,
    /// Put before every topic's name, as it is
    #[arg(
        long,
        help_heading = SETTINGS,
        env = "TIDELOG_TOPIC_PREFIX",
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true,
        value_parser = topic_prefix
    )]
    pub(crate) topic_prefix: String,
}

/// How topics are made.
#[derive(Args, Clone, Debug)]
pub(crate) struct TopicSettings {
    /// Partitions of each topic; later changes would move records away from their history
    #[arg(
        long,
        help_heading = SETTINGS,
        env = "TIDELOG_PARTITIONS",
        value_name = "N",
        default_value_t = 6,
        value_parser = clap::value_parser!(i32).range(1..=10_000)
    )]
    pub(crate) partitions: i32,
    /// Copies of each topic [default: 3, or as many as there are brokers if fewer]
    #[arg(
        long,
        help_heading = SETTINGS,
        env = "TIDELOG_REPLICATION_FACTOR",
        value_name = "N",
        value_parser = clap::value_parser!(i32).range(1..=100)
    )]
    pub(crate) replication_factor: Option<i32>,
}

/// The projection.
#[derive(Args, Clone, Debug)]
pub(crate) struct DatabaseSettings {
    /// Postgres, as postgres://user:password@host:5432/database
    #[arg(long, help_heading = SETTINGS, env = "TIDELOG_DATABASE_URL", value_name = "URL", hide_env_values = true, value_parser = database_url)]
    pub(crate) database_url: Secret,
    /// Schema that holds all of the service's tables
    #[arg(
        long,
        help_heading = SETTINGS,
        env = "TIDELOG_SCHEMA",
        value_name = "NAME",
        default_value = "tidelog",
        value_parser = schema
    )]
    pub(crate) schema: String,
}

/// How many connections a gateway keeps.
#[derive(Args, Clone, Debug)]
pub(crate) struct PoolSettings {
    /// Postgres connections of a gateway, at most: half for writing, half for reading
    #[arg(
        long,
        help_heading = SETTINGS,
        env = "TIDELOG_DATABASE_POOL",
        value_name = "N",
        default_value_t = 16,
        value_parser = clap::value_parser!(u16).range(2..=1000)
    )]
    pub(crate) database_pool: u16,
}

/// A user's own domains.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct DomainSettings {
    /// Folder of your own domain definitions (*.toml), besides the ones that ship
    #[arg(long, help_heading = SETTINGS, env = "TIDELOG_DOMAINS_DIR", value_name = "DIR")]
    pub(crate) domains_dir: Option<PathBuf>,
}

/// Who may call.
#[derive(Args, Clone, Debug)]
pub(crate) struct AuthSettings {
    /// Secret that signs bearer tokens (HS256): at least 16 bytes, better 32. Prefer the environment: others on this
    /// machine can read a flag
    #[arg(long, help_heading = SETTINGS, env = "TIDELOG_JWT_SECRET", value_name = "SECRET", hide_env_values = true, value_parser = jwt_secret)]
    pub(crate) jwt_secret: Secret,
}

/// What personal values are sealed with.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct SealSettings {
    /// Secret that personal values are sealed with, so that a user can be erased: at least 32 bytes; without it nothing is
    /// sealed. Lost, all sealed values are lost. The same for every gateway, projector and tool of a deployment. Prefer the
    /// environment
    #[arg(long, help_heading = SETTINGS, env = "TIDELOG_SEAL_SECRET", value_name = "SECRET", hide_env_values = true, value_parser = seal_secret)]
    pub(crate) seal_secret: Option<Secret>,
}

impl SealSettings {
    /// The secret, ready for use.
    pub(crate) fn secret(&self) -> Option<Arc<SealSecret>> {
        let secret = self.seal_secret.as_ref()?;
        SealSecret::new(secret.reveal()).map(Arc::new)
    }
}

/// Where the gateway listens.
#[derive(Args, Clone, Debug)]
pub(crate) struct ListenSettings {
    /// Address of the gateway
    #[arg(long, help_heading = SETTINGS, env = "TIDELOG_LISTEN", value_name = "ADDR:PORT", default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,
}

/// Where a projector's figures are.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct MetricsSettings {
    /// Address under which projectors serve /metrics (Prometheus) [default: none]
    #[arg(long, help_heading = SETTINGS, env = "TIDELOG_METRICS_LISTEN", value_name = "ADDR:PORT")]
    pub(crate) metrics_listen: Option<SocketAddr>,
}

/// How many connections a gateway's clients may have.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct ConnectionSettings {
    /// Open connections of clients, at most; for one more, some that are idle are closed
    #[arg(
        long,
        help_heading = SETTINGS,
        env = "TIDELOG_MAX_CONNECTIONS",
        value_name = "N",
        default_value_t = 4096,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    pub(crate) max_connections: u32,
    /// Of these, of one IP address [default: as many]. Behind a load balancer all clients have its address
    #[arg(
        long,
        help_heading = SETTINGS,
        env = "TIDELOG_MAX_CONNECTIONS_PER_ADDRESS",
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    pub(crate) max_connections_per_address: Option<u32>,
}

/// How a service ends.
#[derive(Args, Clone, Debug)]
pub(crate) struct ShutdownSettings {
    /// Time for requests and folds in flight after SIGINT or SIGTERM, like 20s or 1m
    #[arg(
        long,
        help_heading = SETTINGS,
        env = "TIDELOG_SHUTDOWN_DEADLINE",
        value_name = "TIME",
        default_value = "20s",
        value_parser = duration
    )]
    pub(crate) shutdown_deadline: Duration,
}

/// How a gateway announces its end.
#[derive(Args, Clone, Debug)]
pub(crate) struct NoticeSettings {
    /// For how long a gateway says on /readyz that it stops before it takes no more, like 5s: as long as whoever balances
    /// load needs to see it
    #[arg(
        long,
        help_heading = SETTINGS,
        env = "TIDELOG_SHUTDOWN_NOTICE",
        value_name = "TIME",
        default_value = "0s",
        value_parser = pause
    )]
    pub(crate) shutdown_notice: Duration,
}

/// What the command line asks for cannot be, which shows only when it is looked at closely. Ends the process with the exit code of
/// a wrong command line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Wrong(pub(crate) String);

/// A text that is shown nowhere: neither in logs nor in errors.
#[derive(Clone)]
pub(crate) struct Secret(String);

impl Secret {
    /// Hides a text.
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }

    /// The text, for whoever uses it without showing it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

// What a value must look like. The messages never repeat the value: clap does, except for secrets.

fn brokers(text: &str) -> Result<String, String> {
    let well_formed = |broker: &str| {
        broker
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
    };
    let brokers: Vec<&str> = text.split(',').map(str::trim).collect();
    if brokers.iter().all(|broker| well_formed(broker)) {
        Ok(brokers.join(","))
    } else {
        Err("give HOST:PORT, several separated by commas".into())
    }
}

/// Kafka: up to 249 of these in a name, of which the longest own one gets its share.
fn topic_prefix(text: &str) -> Result<String, String> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if text.len() <= 100 && text.bytes().all(legal) {
        Ok(text.to_owned())
    } else {
        Err("give up to 100 of A-Z, a-z, 0-9, '.', '_' and '-'".into())
    }
}

/// Needs no quoting anywhere, and leaves room for what is derived from it.
fn schema(text: &str) -> Result<String, String> {
    let mut bytes = text.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
    let rest = bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if !(first && rest && text.len() <= 41) {
        Err("give a letter a-z or '_', then up to 40 of a-z, 0-9 and '_'".into())
    } else if text.starts_with("pg_") || text == "information_schema" {
        Err("this name is Postgres' own; choose another".into())
    } else {
        Ok(text.to_owned())
    }
}

fn database_url(text: &str) -> Result<Secret, String> {
    crate::database::parse_url(text)?;
    Ok(Secret::new(text.to_owned()))
}

fn jwt_secret(text: &str) -> Result<Secret, String> {
    if text.len() < 16 {
        return Err(format!(
            "it has {} bytes and needs at least 16, better 32: `openssl rand -hex 32` makes one",
            text.len()
        ));
    }
    Ok(Secret::new(text.to_owned()))
}

fn seal_secret(text: &str) -> Result<Secret, String> {
    if text.len() < LEAST_SECRET {
        return Err(format!(
            "it has {} bytes and needs at least {LEAST_SECRET}: `openssl rand -hex 32` makes one",
            text.len()
        ));
    }
    Ok(Secret::new(text.to_owned()))
}

/// A number and a unit: `500ms`, `20s`, `15m`, `1h`, `7d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    duration_or_none(text)
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| DURATION_RULE.into())
}

const DURATION_RULE: &str = "give a whole number and a unit: 500ms, 20s, 15m, 1h or 7d";

/// The same, and also none at all: 0s.
fn pause(text: &str) -> Result<Duration, String> {
    duration_or_none(text).ok_or_else(|| DURATION_RULE.into())
}

fn duration_or_none(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(millis))
        .filter(|millis| *millis <= 1000 * 86_400_000)
        .map(Duration::from_millis)
}

/// Reads the command line, the environment and the settings file; `Err` has said why, or has shown the help.
pub(crate) fn parse<C: Parser>(args: impl IntoIterator<Item = OsString>) -> Result<C, ExitCode> {
    let args: Vec<OsString> = args.into_iter().collect();
    let mut command = C::command();
    command = match file_of(&args).and_then(|file| with_file(command, file)) {
        Ok(command) => command,
        Err(error) => {
            eprintln!("error: {error:#}");
            return Err(ExitCode::from(EXIT_USAGE));
        }
    };
    let (secrets, flags) = (secrets(&command), flags(&command));
    let parsed = command
        .try_get_matches_from_mut(args)
        .and_then(|mut matches| C::from_arg_matches_mut(&mut matches));
    parsed.map_err(|error| {
        let error = with_tip(without_secret(error, &secrets), &flags);
        // To a closed pipe there is nothing to say.
        let _ = error.print();
        ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(EXIT_USAGE))
    })
}

/// Clap shows the value that it refuses.
fn without_secret(mut error: clap::Error, secrets: &[String]) -> clap::Error {
    if let Some(ContextValue::String(shown)) = error.get(ContextKind::InvalidArg) {
        let flag = shown.split_whitespace().next().unwrap_or_default();
        if secrets.iter().any(|secret| secret == flag) {
            error.insert(ContextKind::InvalidValue, ContextValue::String("(hidden)".into()));
        }
    }
    error
}

/// Where a setting is missing, how it may be given: under what is missing, where clap has its own tips.
fn with_tip(mut error: clap::Error, flags: &[String]) -> clap::Error {
    const TIP: &str = "a setting is a flag (--kafka-brokers), an environment variable (TIDELOG_KAFKA_BROKERS) or a line in \
                       tidelog.toml (kafka_brokers = \"…\"). For those of a running `tidelog dev`: set -a; . .tidelog/env; set +a";
    let missing = match (error.kind(), error.get(ContextKind::InvalidArg)) {
        (ErrorKind::MissingRequiredArgument, Some(ContextValue::Strings(missing))) => missing.as_slice(),
        _ => &[],
    };
    let flag = |shown: &String| shown.split_whitespace().next().unwrap_or_default().to_owned();
    if missing.iter().any(|shown| flags.contains(&flag(shown))) {
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![TIP.into()]));
    }
    error
}

fn flags(command: &Command) -> Vec<String> {
    let flag = |arg: &Arg| format!("--{}", arg.get_long().unwrap_or_default());
    settings(command).iter().map(flag).collect()
}

fn secrets(command: &Command) -> Vec<String> {
    let is_secret = |arg: &&Arg| arg.is_hide_env_values_set();
    let flag = |arg: &Arg| format!("--{}", arg.get_long().unwrap_or_default());
    settings(command).iter().filter(is_secret).map(flag).collect()
}

/// Every argument that is a setting, once, sorted by name.
fn settings(command: &Command) -> Vec<Arg> {
    fn collect(command: &Command, found: &mut Vec<Arg>) {
        found.extend(
            command
                .get_arguments()
                .filter(|arg| arg.get_env().is_some())
                .cloned(),
        );
        command
            .get_subcommands()
            .for_each(|command| collect(command, found));
    }
    let mut found = Vec::new();
    collect(command, &mut found);
    found.sort_by(|a, b| a.get_id().cmp(b.get_id()));
    found.dedup_by(|a, b| a.get_id() == b.get_id());
    found
}

/// The settings file: what `--config` names, else `tidelog.toml` if there is one.
fn file_of(args: &[OsString]) -> Result<Option<(PathBuf, String)>> {
    // Looked for by hand, since what clap makes of the whole line depends on the file.
    let mut ours = args.iter().take_while(|arg| *arg != "--");
    let mut given = None;
    while let Some(arg) = ours.next() {
        if arg == "--config" {
            given = ours.next().map(PathBuf::from);
        } else if let Some(path) = arg.to_str().and_then(|arg| arg.strip_prefix("--config=")) {
            given = Some(path.into());
        }
    }
    let path = given.clone().unwrap_or_else(|| "tidelog.toml".into());
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some((path, text))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && given.is_none() => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read the settings file {}", path.display())),
    }
}

/// The command with the file's values as defaults; or all that is wrong with the file, a line each.
fn with_file(command: Command, file: Option<(PathBuf, String)>) -> Result<Command> {
    let Some((path, text)) = file else {
        return Ok(command);
    };
    let values = read_file(&settings(&command), &path, &text)?;
    Ok(with_defaults(command, &values))
}

fn with_defaults(command: Command, values: &[(String, &'static str)]) -> Command {
    command
        .mut_args(
            |arg| match values.iter().find(|(name, _)| arg.get_id() == name.as_str()) {
                // `--help` shows defaults.
                Some((_, value)) => arg
                    .hide_default_value_if_secret()
                    .required(false)
                    .default_value(*value),
                None => arg,
            },
        )
        .mut_subcommands(|command| with_defaults(command, values))
}

trait HideSecret {
    fn hide_default_value_if_secret(self) -> Self;
}

impl HideSecret for Arg {
    fn hide_default_value_if_secret(self) -> Self {
        let hide = self.is_hide_env_values_set() || self.is_hide_default_value_set();
        self.hide_default_value(hide)
    }
}

/// Name and value of each line. The values live as long as the process, which reads one file once.
fn read_file(settings: &[Arg], path: &Path, text: &str) -> Result<Vec<(String, &'static str)>> {
    let at = |offset: usize| {
        let line = 1 + text.as_bytes()[..offset.min(text.len())]
            .iter()
            .filter(|b| **b == b'\n')
            .count();
        format!("{}:{line}", path.display())
    };
    // Not the error's whole text: it quotes the line, which may hold a secret.
    let table = DeTable::parse(text).map_err(|error| {
        let place = at(error.span().map_or(0, |span| span.start));
        anyhow::anyhow!("{place}: {}", error.message())
    })?;
    let (mut values, mut wrong) = (Vec::new(), Vec::new());
    for (key, value) in table.get_ref() {
        let (name, line) = (key.get_ref(), at(key.span().start));
        let Some(setting) = settings.iter().find(|setting| setting.get_id() == name.as_ref()) else {
            let known: Vec<&str> = settings.iter().map(|setting| setting.get_id().as_str()).collect();
            wrong.push(format!(
                "{line}: unknown setting \"{name}\"; there are {}",
                known.join(", ")
            ));
            continue;
        };
        let value = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) => number.to_string(),
            DeValue::Boolean(truth) => truth.to_string(),
            other => {
                wrong.push(format!(
                    "{line}: {name} is of type {}; write a string or a whole number",
                    other.type_str()
                ));
                continue;
            }
        };
        match check(setting, &value) {
            Ok(()) => values.push((name.to_string(), &*value.leak())),
            Err(why) => wrong.push(format!("{line}: {name}: {why}")),
        }
    }
    match wrong.is_empty() {
        true => Ok(values),
        false => bail!("{}", wrong.join("\nerror: ")),
    }
}

/// Has clap judge one value, as it would judge the flag's.
fn check(setting: &Arg, value: &str) -> Result<(), String> {
    let alone = Command::new("settings")
        .no_binary_name(true)
        .arg(setting.clone().required(false).env(None::<&'static str>));
    let flag = format!("--{}={value}", setting.get_long().unwrap_or_default());
    let Err(error) = alone.try_get_matches_from([flag]) else {
        return Ok(());
    };
    if let Some(ContextValue::Strings(valid)) = error.get(ContextKind::ValidValue) {
        return Err(format!("give one of {}", valid.join(", ")));
    }
    let source = std::error::Error::source(&error).map(ToString::to_string);
    Err(source.unwrap_or_else(|| "this value is not taken".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn all() -> Vec<Arg> {
        settings(&crate::Cli::command())
    }

    /// Without the environment that the tests happen to run in.
    fn closed(command: Command) -> Command {
        command
            .mut_args(|arg| arg.env(None::<&'static str>))
            .mut_subcommands(closed)
    }

    fn read(text: &str) -> Result<Vec<(String, &'static str)>, String> {
        read_file(&all(), Path::new("tidelog.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_setting_has_one_name_for_flag_variable_and_line() {
        for setting in all() {
            let name = setting.get_id().as_str();
            let variable = setting.get_env().and_then(|env| env.to_str()).unwrap_or_default();
            assert_eq!(variable, format!("TIDELOG_{}", name.to_uppercase()));
            assert_eq!(setting.get_long(), Some(name.replace('_', "-").as_str()));
        }
    }

    #[test]
    fn the_default_file_lists_every_setting_with_its_default() {
        let text = include_str!("../config.default.toml");
        // Every line is commented out: the file changes nothing until a line is taken.
        assert_eq!(read(text).expect("a file that can be read"), []);
        let lines: Vec<(&str, &str)> = text
            .lines()
            .filter_map(|line| line.strip_prefix('#'))
            .filter(|line| !line.starts_with(' '))
            .filter_map(|line| line.split_once(" = "))
            .collect();
        let names: Vec<&str> = lines.iter().map(|(name, _)| *name).collect();
        let settings = all();
        let mut expected: Vec<&str> = settings.iter().map(|s| s.get_id().as_str()).collect();
        let mut found = names.clone();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected);
        for setting in &settings {
            let Some(default) = setting.get_default_values().first().and_then(|v| v.to_str()) else {
                continue;
            };
            let shown = lines
                .iter()
                .find(|(name, _)| setting.get_id() == *name)
                .map(|(_, v)| *v);
            let shown = shown.unwrap_or_default().trim_matches('"');
            assert_eq!(shown, default, "{}", setting.get_id());
        }
        // And what it shows can be taken as it is.
        let taken: String = lines
            .iter()
            .map(|(name, value)| format!("{name} = {value}\n"))
            .collect();
        assert_eq!(read(&taken).expect("values that are taken").len(), settings.len());
    }

    #[test]
    fn a_wrong_line_is_named_with_file_line_and_setting() {
        let error =
            read("# one\nkafka_broker = \"a:1\"\npartitions = \"six\"\nschema = [1]\nlog_format = \"xml\"\n")
                .expect_err("four defects");
        for part in [
            "tidelog.toml:2: unknown setting \"kafka_broker\"; there are ",
            "tidelog.toml:3: partitions: invalid digit",
            "tidelog.toml:4: schema is of type array",
            "tidelog.toml:5: log_format: give one of text, json",
        ] {
            assert!(error.contains(part), "{error}\ndoes not say {part}");
        }
        let error = read("a = 1\nb = = 2\n").expect_err("no TOML");
        assert!(error.starts_with("tidelog.toml:2: "), "{error}");
    }

    #[test]
    fn a_secret_that_is_refused_is_not_repeated() {
        let error = read("jwt_secret = \"hunter2\"\ndatabase_url = \"mysql://me:hunter2@db/x\"\n")
            .expect_err("two defects");
        assert!(error.contains("tidelog.toml:1: jwt_secret: it has 7 bytes and needs at least 16"));
        assert!(!error.contains("hunter2"), "{error}");
        let error = read("jwt_secret = \"hunter2\n").expect_err("no TOML");
        assert!(!error.contains("hunter2"), "{error}");

        let mut command = crate::Cli::command();
        let secrets = secrets(&command);
        let args = [
            "tidelog",
            "token",
            "--tenant=t",
            "--user=u",
            "--jwt-secret=hunter2",
        ];
        let error = command
            .try_get_matches_from_mut(args)
            .expect_err("a short secret");
        let shown = without_secret(error, &secrets).to_string();
        assert!(
            shown.contains("--jwt-secret") && !shown.contains("hunter2"),
            "{shown}"
        );
        assert_eq!(format!("{:?}", Secret::new("hunter2".into())), "(hidden)");
    }

    #[test]
    fn a_flag_goes_before_the_file_and_the_file_before_the_default() {
        let file = |text: &str| Some((PathBuf::from("tidelog.toml"), text.to_owned()));
        let partitions = |file, args: &[&str]| {
            let command = closed(with_file(crate::Cli::command(), file).expect("a file that is taken"));
            let args = ["tidelog", "topics", "--kafka-brokers=a:1"]
                .iter()
                .chain(args)
                .copied();
            let matches = command
                .try_get_matches_from(args)
                .unwrap_or_else(|e| panic!("{e}"));
            let (_, topics) = matches.subcommand().expect("a subcommand");
            *topics.get_one::<i32>("partitions").expect("a number")
        };
        assert_eq!(partitions(None, &[]), 6);
        assert_eq!(partitions(file("partitions = 3"), &[]), 3);
        assert_eq!(partitions(file("partitions = 3"), &["--partitions=2"]), 2);
        // What has no default may come from the file alone.
        let command = with_file(crate::Cli::command(), file("kafka_brokers = \"b:2, c:3\"")).expect("a file");
        let matches = closed(command)
            .try_get_matches_from(["tidelog", "topics"])
            .expect("no flag needed");
        let (_, topics) = matches.subcommand().expect("a subcommand");
        assert_eq!(
            topics.get_one::<String>("kafka_brokers").map(String::as_str),
            Some("b:2,c:3")
        );
    }

    #[test]
    fn values_are_judged_at_the_boot() {
        for good in ["a:1", "a:1, b:2", "[::1]:9092"] {
            assert!(brokers(good).is_ok(), "{good}");
        }
        for bad in ["", "a", "a:", ":1", "a:0", "a:1,", "a:99999"] {
            assert!(brokers(bad).is_err(), "{bad}");
        }
        for bad in ["", "Tidelog", "1a", "a-b", "a b", "a\"b", "pg_x", &"a".repeat(42)] {
            assert!(schema(bad).is_err(), "{bad}");
        }
        assert!(schema("_t1").is_ok() && topic_prefix("test.1-").is_ok() && topic_prefix("a/b").is_err());
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        for bad in ["", "20", "s", "1.5h", "-1s", "0s", "99999999999999999999d", "1w"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
