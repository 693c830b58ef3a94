//! An export that is cut short, by a signal or without one, leaves whole files and goes on.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::events::{appended, at, day};
use super::read_back::{files, folder, is_of, json_rows, names};
use super::{deployment, export};
use crate::support::eventually_blocking;
use crate::support::items::Known;
use crate::support::kafka::{produce_stamped, read_topic};
use crate::support::phone::tenant;
use crate::support::service::{Deployment, PARTITIONS};

/// A running export.
struct Running(Child);

impl Running {
    fn start(deployment: &Deployment, domain: &str, into: &Path, args: &[&str]) -> Running {
        let into = into.display().to_string();
        let all = ["export", "--domain", domain, "--into", &into];
        let mut command = deployment.command(&[&all, args].concat());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Running(child.expect("tidelog can be run"))
    }

    /// Ends it once there is a new file, whole or begun; answers its exit code if it was done before. That it sweeps up what was begun
    /// before is nothing new: whoever is cut there each time never comes any further.
    fn cut(&mut self, signal: Signal, into: &Path, domain: &str, after: Duration) -> Option<i32> {
        let before = names(into, domain);
        let ended = eventually_blocking("a new file, or the end", || {
            let ended = self.0.try_wait().expect("a child can be waited for");
            let more = names(into, domain).iter().any(|name| !before.contains(name));
            (ended.is_some() || more).then_some(ended)
        });
        if let Some(status) = ended {
            return status.code();
        }
        std::thread::sleep(after);
        kill_process(Pid::from_child(&self.0), signal).expect("it is not waited for yet");
        match self.0.wait().expect("a child can be waited for").code() {
            Some(0) => Some(0),
            code => {
                assert!(signal == Signal::KILL || code == Some(1), "{code:?}");
                None
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_is_killed_goes_on_and_misses_nothing() {
    let deployment = deployment();
    let (known, mine) = (Known::of("work-orders"), tenant("killed"));
    let topic = deployment.topic(known.topic);
    let mut records = Vec::new();
    for ago in (1..=4).rev() {
        for n in 0..900 {
            let time = at(day(ago), "00:00:00") + chrono::Duration::seconds(n * 90);
            records.push(appended(known, &mine, n as i32 % PARTITIONS, time));
        }
    }
    produce_stamped(&deployment.brokers, &topic, &records).await;
    let wait = ["--wait", "60s"];
    for format in ["jsonl", "parquet"] {
        let args = [&wait[..], &["--format", format]].concat();
        let whole = folder(deployment, "whole");
        assert!(
            export(deployment, known.url, &whole, &args)
                .ok()
                .contains("3,600 events in 12 files")
        );
        let cut = folder(deployment, "cut");
        let mut cuts = 0;
        for turn in 0.. {
            let signal = if turn % 3 == 2 { Signal::INT } else { Signal::KILL };
            let mut running = Running::start(deployment, known.url, &cut, &args);
            let after = Duration::from_millis(turn * 3 % 20);
            if let Some(code) = running.cut(signal, &cut, known.url, after) {
                assert_eq!(code, 0);
                break;
            }
            cuts += 1;
        }
        assert!(cuts > 0, "it was never cut");
        assert_eq!(
            files(&cut, known.url),
            files(&whole, known.url),
            "{format} after {cuts} cuts"
        );
        if format == "jsonl" {
            let rows = json_rows(&cut, known.url);
            let log = read_topic(&deployment.brokers, &topic);
            assert_eq!((rows.len(), log.len()), (3600, 3600));
            rows.iter().zip(&log).for_each(|(row, record)| is_of(row, record));
        }
    }
}
