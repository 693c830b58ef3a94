//! A private Apache Kafka: one node that is broker and KRaft controller at once, on 127.0.0.1.
//!
//! Everything lies in one folder, and the server runs in it, so its settings name no path and no path
//! can upset them. Ports may differ from one start to the next: the voter set is static, so it stands in
//! the settings and not in the metadata log. This module must not know of topics or of Tidelog's data.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::net::TcpStream;
use tokio::process::Command;

use super::files::{ok_if_absent, ports, random_hex, write_whole};
use super::guard::StopSignal;
use super::jars;
use super::process::{Process, Server, log_of};

pub(super) const NAME: &str = "Kafka";
pub(super) const STOP: StopSignal = StopSignal::Term;
/// Recovery after a power cut reads the open segment of each partition.
const START_DEADLINE: Duration = Duration::from_secs(120);
/// What the broker logs once it is caught up, unfenced and listening.
const READY: &str = "Kafka Server started";

const LOG4J: &str = "\
status = warn
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %-5p %m (%c{1})%n%ex
rootLogger.level = info
rootLogger.appenderRef.out.ref = out
# Four hundred lines of settings at each start.
logger.config.name = org.apache.kafka.common.config.AbstractConfig
logger.config.level = warn
";

/// A Kafka that answers.
pub(super) struct Kafka {
    pub(super) process: Process,
    /// For `bootstrap.servers`.
    pub(super) brokers: String,
}

impl Kafka {
    /// Starts the Kafka whose data is in `home`, making it if there is none.
    pub(super) async fn start(home: &Path, exe: &Path, advertised: Option<SocketAddr>) -> Result<Self> {
        let since = Instant::now();
        std::fs::create_dir_all(home).with_context(|| format!("cannot make {}", home.display()))?;
        let java = java().await?;
        let jars = jars::folder().await?;
        super::process::clear(NAME, home, STOP).await?;
        write_whole(&home.join("log4j2.properties"), LOG4J)?;
        format_once(home, exe, &java, &jars).await?;

        let mut anew = false;
        loop {
            let ports = ports(&home.join("ports"), anew)?;
            write_whole(
                &home.join("server.properties"),
                &settings("data", ports, advertised),
            )?;
            match Self::start_on(ports, home, exe, &java, &jars).await {
                Ok(kafka) => {
                    let took = since.elapsed().as_secs_f64();
                    eprintln!(
                        "  Kafka {} is up on {} ({took:.1} s)",
                        jars::version(),
                        kafka.brokers
                    );
                    return Ok(kafka);
                }
                // Somebody took a port between our look and Kafka's bind.
                Err(e) if !anew && format!("{e:#}").contains("Address already in use") => anew = true,
                Err(e) => {
                    return Err(e.context(format!(
                        "Kafka does not start. If its data is damaged and you can do without it, remove {} \
                         and try again",
                        home.display()
                    )));
                }
            }
        }
    }

    async fn start_on(ports: [u16; 2], home: &Path, exe: &Path, java: &Path, jars: &Path) -> Result<Self> {
        let mut args = jvm(jars);
        args.extend(["kafka.Kafka", "server.properties"].map(OsString::from));
        let server = Server {
            name: NAME,
            exe,
            home,
            dir: home,
            signal: STOP,
            user: None,
            program: java,
            args,
        };
        let mut process = Process::start(server).await?;
        let deadline = Instant::now() + START_DEADLINE;
        let broker = ("127.0.0.1", ports[0]);
        // Both: the log proves that it is our broker, the connection that it listens.
        while !(process.log().contains(READY) && TcpStream::connect(broker).await.is_ok()) {
            process.alive()?;
            if Instant::now() > deadline {
                bail!(
                    "not ready after {} s; see {}",
                    START_DEADLINE.as_secs(),
                    log_of(home).display()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(Self {
            process,
            brokers: format!("127.0.0.1:{}", ports[0]),
        })
    }
}

/// Formats the storage on first use, under another name until it is whole.
async fn format_once(home: &Path, exe: &Path, java: &Path, jars: &Path) -> Result<()> {
    let (data, fresh) = (home.join("data"), home.join("data.new"));
    if data.is_dir() {
        return Ok(());
    }
    std::fs::remove_dir_all(&fresh).or_else(ok_if_absent)?;
    // The ports don't matter here.
    let config = home.join("format.properties");
    write_whole(&config, &settings("data.new", [9092, 9093], None))?;
    // A cluster id is 16 bytes in 22 digits of base64url, and hex digits are such digits too; the last
    // one has only two bits to say, and `A` leaves them zero.
    let cluster_id = format!("{}A", &random_hex()[..21]);
    let mut args: Vec<OsString> = vec!["-XX:+UseSerialGC".into()];
    args.extend(jvm(jars));
    let format = [
        "kafka.tools.StorageTool",
        "format",
        "--cluster-id",
        &cluster_id,
        "--config",
        "format.properties",
    ];
    args.extend(format.map(OsString::from));
    let name = "Formatting Kafka's storage";
    let format = Server {
        name,
        exe,
        home,
        dir: home,
        signal: STOP,
        user: None,
        program: java,
        args,
    };
    Process::start(format).await?.finish().await?;
    std::fs::remove_file(&config)?;
    std::fs::rename(&fresh, &data).with_context(|| format!("cannot make {}", data.display()))
}

fn jvm(jars: &Path) -> Vec<OsString> {
    let mut class_path = jars.as_os_str().to_owned();
    class_path.push("/*");
    vec![
        "-Xmx512m".into(),
        // Compile once, quickly. The optimising compiler takes most of a core for the first minutes under load, which a
        // broker that runs for months never notices, and one on a laptop or in a test does nothing but notice.
        "-XX:TieredStopAtLevel=1".into(),
        "-Dlog4j2.configurationFile=log4j2.properties".into(),
        "-cp".into(),
        class_path,
    ]
}

fn settings(data: &str, [broker, controller]: [u16; 2], advertised: Option<SocketAddr>) -> String {
    let advertised = advertised.unwrap_or_else(|| ([127, 0, 0, 1], broker).into());
    format!(
        "\
# Written by tidelog at each start.
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://{advertised}
log.dirs={data}

# A topic comes into being by `tidelog topics`, with the settings that it needs, or not at all.
auto.create.topics.enable=false

# One node holds one replica.
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1

# Few clients: 50 partitions for each of these are files to open at each start.
offsets.topic.num.partitions=4
transaction.state.log.num.partitions=4
share.coordinator.state.topic.num.partitions=4

# A test's consumer joins at once instead of waiting three seconds for others.
group.initial.rebalance.delay.ms=0

# And one that was killed is soon missed, where it says so itself.
group.min.session.timeout.ms=1000

# 128 MB by default, allocated at start: a third of the process.
log.cleaner.dedupe.buffer.size=4194304
"
    )
}

/// The Java to run, which has to be 17 or later (Kafka 4's least).
async fn java() -> Result<std::path::PathBuf> {
    let home = std::env::var_os("JAVA_HOME").filter(|home| !home.is_empty());
    let java = home.map_or_else(|| "java".into(), |home| Path::new(&home).join("bin/java"));
    let advice = "Kafka needs Java 17 or later (`apt-get install openjdk-17-jre-headless`; `make run` does \
                  that for you), on PATH or where JAVA_HOME says";
    let mut command = Command::new(&java);
    // It names its version on stderr.
    let output = command.arg("-version").kill_on_drop(true).output().await;
    let output = output.with_context(|| format!("cannot run {}. {advice}", java.display()))?;
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    match java_major(&said) {
        Some(17..) => Ok(java),
        Some(found) => bail!("{} is Java {found}. {advice}", java.display()),
        None => bail!(
            "{} does not say its version, but: {}. {advice}",
            java.display(),
            said.trim()
        ),
    }
}

/// 17 from `openjdk version "17.0.15" …`, 8 from `java version "1.8.0_422"`.
fn java_major(said: &str) -> Option<u32> {
    let version = said.split_once("version \"")?.1;
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match numbers.next()?.ok()? {
        1 => numbers.next()?.ok(),
        major => Some(major),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_javas_version_old_and_new() {
        assert_eq!(java_major("openjdk version \"17.0.15\" 2025-04-15\n"), Some(17));
        assert_eq!(java_major("openjdk version \"25\" 2025-09-16\n"), Some(25));
        assert_eq!(
            java_major("Picked up JAVA_TOOL_OPTIONS: x\njava version \"1.8.0_422\"\n"),
            Some(8)
        );
        assert_eq!(java_major("no java here"), None);
    }
}
