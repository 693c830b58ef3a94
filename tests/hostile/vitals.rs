//! What a process takes of the machine, as the kernel tells: memory, threads, file handles.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::support::eventually;
use crate::support::process::Process;

/// What it takes at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Vitals {
    /// Resident memory in MiB.
    pub(crate) memory: u64,
    pub(crate) threads: u64,
    pub(crate) handles: u64,
}

/// What an attack costs beyond what there was, in the same units.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) memory: u64,
    pub(crate) threads: u64,
    pub(crate) handles: u64,
}

/// Of these, what may stay: an allocator keeps some of what it had, and pools keep connections.
const MAY_STAY: Cost = Cost {
    memory: 96,
    threads: 8,
    handles: 32,
};

impl Vitals {
    pub(crate) fn of(process: &Process) -> Vitals {
        Vitals::of_pid(process.pid())
    }

    fn of_pid(pid: i32) -> Vitals {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the service runs");
        let number = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let word = line.and_then(|line| line.split_whitespace().next());
            word.and_then(|word| word.parse().ok()).expect("a number")
        };
        Vitals {
            memory: number("VmRSS:") / 1024,
            threads: number("Threads:"),
            handles: std::fs::read_dir(format!("/proc/{pid}/fd"))
                .expect("the service runs")
                .count() as u64,
        }
    }

    fn most(self, other: Vitals) -> Vitals {
        Vitals {
            memory: self.memory.max(other.memory),
            threads: self.threads.max(other.threads),
            handles: self.handles.max(other.handles),
        }
    }

    pub(crate) fn since(&self, before: &Vitals) -> Cost {
        Cost {
            memory: self.memory.saturating_sub(before.memory),
            threads: self.threads.saturating_sub(before.threads),
            handles: self.handles.saturating_sub(before.handles),
        }
    }
}

impl Cost {
    fn fits(&self, most: &Cost) -> bool {
        self.memory <= most.memory && self.threads <= most.threads && self.handles <= most.handles
    }

    #[track_caller]
    pub(crate) fn within(&self, most: &Cost, name: &str) {
        assert!(self.fits(most), "{name} cost {self}, and may cost {most}");
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "+{} MiB, +{} threads, +{} file handles",
            self.memory, self.threads, self.handles
        )
    }
}

/// Waits until a process has given back what an attack made it take.
pub(crate) async fn given_back(process: &Process, before: &Vitals, name: &str) {
    let what = format!("what {name} cost is given back");
    eventually(&what, async || {
        Vitals::of(process).since(before).fits(&MAY_STAY).then_some(())
    })
    .await;
}

/// Looks at a process again and again, and keeps the most that it took.
pub(crate) struct Watch {
    done: Arc<AtomicBool>,
    task: JoinHandle<Vitals>,
}

impl Watch {
    pub(crate) fn start(process: &Process) -> Watch {
        let done = Arc::new(AtomicBool::new(false));
        let (pid, stop) = (process.pid(), done.clone());
        let task = tokio::spawn(async move {
            let mut most = Vitals::default();
            while !stop.load(Ordering::Relaxed) {
                most = most.most(Vitals::of_pid(pid));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            most.most(Vitals::of_pid(pid))
        });
        Watch { done, task }
    }

    pub(crate) async fn stop(self) -> Vitals {
        self.done.store(true, Ordering::Relaxed);
        self.task.await.expect("the watch goes on")
    }
}
