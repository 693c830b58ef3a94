//! Two gateways and two projectors of one deployment, as processes that a nemesis ends, stops and starts. Knows nothing of
//! what phones do with them.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::process::Process;
use crate::support::service::Deployment;
use crate::support::{eventually, eventually_blocking};

/// Which process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Gateway(usize),
    Projector(usize),
}

pub(crate) const GATEWAYS: [Who; 2] = [Who::Gateway(0), Who::Gateway(1)];
pub(crate) const PROJECTORS: [Who; 2] = [Who::Projector(0), Who::Projector(1)];
pub(crate) const ALL: [Who; 4] = [GATEWAYS[0], GATEWAYS[1], PROJECTORS[0], PROJECTORS[1]];

/// A lease, a session and a delivery end sooner than in earnest, so that a case need not wait for them: a third of the time
/// and the same orders of steps.
const NUMBERS: &str = "lease_ms=2000,session_ms=2500,delivery_ms=3000";

/// The processes.
pub(crate) struct Field {
    /// Of the first gateway; what commands and looks at Postgres use.
    pub(crate) deployment: Deployment,
    /// As the processes are started, one for each gateway's port.
    through: [Deployment; 2],
    processes: Mutex<[Option<Process>; 4]>,
    /// What each is started with, always.
    always: Mutex<[Vec<(String, String)>; 4]>,
    /// What a nemesis saw that must not be.
    noted: Mutex<Vec<String>>,
}

impl Who {
    fn slot(self) -> usize {
        match self {
            Who::Gateway(n) => n,
            Who::Projector(n) => 2 + n,
        }
    }

    fn command(self) -> &'static str {
        match self {
            Who::Gateway(_) => "ingest",
            Who::Projector(_) => "project",
        }
    }
}

impl Field {
    /// Starts all four. `deployment` is prepared and has an undisturbed way to Kafka and Postgres; `through` may have another.
    pub(crate) fn start(deployment: &Deployment, through: &Deployment) -> Field {
        Field::start_with(deployment, through, &[])
    }

    /// The same, with variables that the processes get besides.
    pub(crate) fn start_with(
        deployment: &Deployment,
        through: &Deployment,
        variables: &[(&str, &str)],
    ) -> Field {
        let mut through = through.clone().with("TIDELOG_DRILL_NUMBERS", NUMBERS);
        for (name, value) in variables {
            through = through.with(name, *value);
        }
        let mut second = through.clone();
        second.port = Deployment::on("chaos-port", "", "", "").port;
        let field = Field {
            deployment: deployment.clone(),
            through: [through, second],
            processes: Mutex::default(),
            always: Mutex::default(),
            noted: Mutex::default(),
        };
        for who in ALL {
            field.launch(who, &[]);
        }
        field.ready();
        field
    }

    /// The gateways, as phones reach them.
    pub(crate) fn gateways(&self) -> [Deployment; 2] {
        self.through.clone()
    }

    /// Waits until both gateways take batches.
    pub(crate) fn ready(&self) {
        for gateway in &self.through {
            eventually_blocking("a gateway is ready", || {
                self.revive();
                (crate::support::http::status_of(gateway.port, "/readyz") == Some(200)).then_some(())
            });
        }
    }

    fn launch(&self, who: Who, variables: &[(&str, &str)]) {
        let gateway = match who {
            Who::Gateway(n) => &self.through[n],
            Who::Projector(_) => &self.through[0],
        };
        let mut deployment = gateway
            .clone()
            .with("TIDELOG_LISTEN", format!("127.0.0.1:{}", gateway.port));
        for (name, value) in &self.always.lock().expect("no panic")[who.slot()] {
            deployment = deployment.with(name, value);
        }
        for (name, value) in variables {
            deployment = deployment.with(name, *value);
        }
        let name = format!("{}-{}", who.command(), who.slot());
        let process = Process::start(&name, &deployment.command(&[who.command()]), &deployment.dir);
        self.processes.lock().expect("no panic")[who.slot()] = Some(process);
    }

    /// Keeps what must not be, where it is.
    pub(crate) fn note(&self, wrong: bool, what: impl FnOnce() -> String) {
        if wrong {
            self.noted.lock().expect("no panic").push(what());
        }
    }

    pub(crate) fn noted(&self) -> Vec<String> {
        self.noted.lock().expect("no panic").clone()
    }

    /// Has a process be another version from its next start on.
    pub(crate) fn becomes(&self, who: Who, fold: u32) {
        let numbers = format!("{NUMBERS},fold={fold}");
        self.always.lock().expect("no panic")[who.slot()] = vec![("TIDELOG_DRILL_NUMBERS".into(), numbers)];
    }

    fn take(&self, who: Who) -> Option<Process> {
        self.processes.lock().expect("no panic")[who.slot()].take()
    }

    /// Starts one anew; if it runs, it is killed before.
    pub(crate) fn start_anew(&self, who: Who, variables: &[(&str, &str)]) {
        self.kill(who);
        self.launch(who, variables);
    }

    /// kill -9.
    pub(crate) fn kill(&self, who: Who) {
        if let Some(mut process) = self.take(who) {
            match process.ended() {
                Some(_) => drop(process),
                None => process.kill9(),
            }
        }
    }

    /// SIGTERM; it has to end by itself and well.
    pub(crate) fn terminate(&self, who: Who) {
        if let Some(mut process) = self.take(who)
            && process.ended().is_none()
        {
            let code = process.terminate();
            // One that has just been started may not listen for signals yet.
            assert!(matches!(code, 0 | 143), "{who:?} did not stop well: {code}");
        }
    }

    /// A process that is to be killed at a step may have come to it.
    pub(crate) fn signal(&self, who: Who, signal: Signal) {
        if let Some(process) = &self.processes.lock().expect("no panic")[who.slot()] {
            process.signal_if_running(signal);
        }
    }

    /// Starts one anew and waits until it is in the middle of a step, where it stays for so long.
    pub(crate) async fn halt_at(&self, who: Who, step: &str, time: u32, millis: u32) {
        // In order, so that the group need not wait for the end of its session.
        self.terminate(who);
        let stop = format!("{step}@{time}:wait={millis}");
        self.start_anew(who, &[("TIDELOG_DRILL_STOP", &stop)]);
        let from = self.said(who).len();
        eventually(&format!("{who:?} is at {step}"), async || {
            self.said(who)[from..].contains("drill: waits at").then_some(())
        })
        .await;
    }

    /// The same, and freezes it there: what it had begun, it goes on with when it is continued.
    pub(crate) async fn stop_at(&self, who: Who, step: &str, time: u32) {
        self.halt_at(who, step, time, 1500).await;
        self.signal(who, Signal::STOP);
    }

    /// Waits until a process has ended by itself; answers what it said.
    pub(crate) async fn ends(&self, who: Who) -> String {
        eventually(&format!("{who:?} has ended"), async || {
            (!self.runs(who)).then_some(())
        })
        .await;
        self.said(who)
    }

    /// Everything that a process has said.
    pub(crate) fn said(&self, who: Who) -> String {
        let processes = self.processes.lock().expect("no panic");
        processes[who.slot()]
            .as_ref()
            .map(Process::log)
            .unwrap_or_default()
    }

    /// Whether it runs.
    pub(crate) fn runs(&self, who: Who) -> bool {
        let mut processes = self.processes.lock().expect("no panic");
        processes[who.slot()]
            .as_mut()
            .is_some_and(|process| process.ended().is_none())
    }

    /// Starts whatever has ended.
    pub(crate) fn revive(&self) {
        for who in ALL {
            if !self.runs(who) {
                drop(self.take(who));
                self.launch(who, &[]);
            }
        }
    }

    /// The greatest memory that any of them has had, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        let processes = self.processes.lock().expect("no panic");
        processes
            .iter()
            .flatten()
            .filter_map(Process::peak_memory_if_running)
            .max()
            .unwrap_or(0)
    }

    /// Waits until everything in the log is applied; an error says that it is not in time.
    pub(crate) async fn settle(&self, patience: Duration) -> Result<(), String> {
        let since = Instant::now();
        while since.elapsed() < patience {
            self.revive();
            let ran = self.deployment.run(&["status", "--output", "json"]);
            let status: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap_or_default();
            if ran.code == 0 && status["lag"] == 0 {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(format!("not everything in the log is applied after {patience:?}"))
    }
}

impl Drop for Field {
    /// How they end was tried where that matters; here it need only be quick.
    fn drop(&mut self) {
        ALL.into_iter().for_each(|who| self.kill(who));
    }
}
