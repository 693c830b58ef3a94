//! What came out: figures, each with what stands beside it and what was aimed for, as a table for people, for programs
//! and for BENCHMARKS.md. Knows nothing of how a figure was taken.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::child::Memory;
use super::ground::Ground;
use crate::database::plain;
use crate::output::table;
use crate::progress::grouped;

/// Marks the part of a Markdown file that is ours.
const BEGIN: &str = "<!-- tidelog bench writes from here -->";
const END: &str = "<!-- to here -->";
/// The most memory that a process should take.
const MEMORY_AIM: u64 = 150_000_000;

/// One line.
#[derive(Debug, Serialize)]
pub(super) struct Figure {
    pub(super) part: &'static str,
    pub(super) what: String,
    pub(super) value: f64,
    pub(super) unit: &'static str,
    pub(super) beside: Option<Beside>,
    pub(super) aim: Option<Aim>,
}

/// What a figure is to be judged by.
#[derive(Debug, Serialize)]
pub(super) struct Beside {
    what: String,
    value: f64,
    rate: bool,
}

/// What was aimed for.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Aim {
    /// Of what stands beside it, at least.
    Ratio(f64),
    /// In the figure's unit.
    AtMost(f64),
}

impl Beside {
    pub(super) fn rate(what: &str, value: f64) -> Self {
        Self {
            what: what.to_owned(),
            value,
            rate: true,
        }
    }

    pub(super) fn time(what: &str, value: f64) -> Self {
        Self {
            what: what.to_owned(),
            value,
            rate: false,
        }
    }
}

impl Figure {
    fn ratio(&self) -> Option<f64> {
        self.beside.as_ref().map(|beside| self.value / beside.value)
    }

    fn met(&self) -> Option<bool> {
        match self.aim? {
            Aim::Ratio(least) => Some(self.ratio()? >= least),
            Aim::AtMost(most) => Some(self.value <= most),
        }
    }

    fn cells(&self) -> [String; 6] {
        let shown = |value: f64| match self.unit {
            "/s" => format!("{}/s", grouped(value)),
            unit => format!("{value:.1}{unit}"),
        };
        let beside = self.beside.as_ref();
        let aim = match self.aim {
            Some(Aim::Ratio(least)) => format!("≥ {least}"),
            Some(Aim::AtMost(most)) => format!("≤ {most}{}", self.unit),
            None => String::new(),
        };
        let met = self
            .met()
            .map_or("", |met| if met { ": met" } else { ": missed" });
        [
            format!("({}) {}", self.part, self.what),
            shown(self.value),
            beside.map_or(String::new(), |beside| shown(beside.value)),
            beside.map_or(String::new(), |beside| beside.what.clone()),
            self.ratio().map_or(String::new(), |ratio| format!("{ratio:.2}")),
            format!("{aim}{met}"),
        ]
    }
}

/// Memory of a process, under one load.
#[derive(Debug, Serialize)]
struct Process {
    what: String,
    at_rest_bytes: u64,
    peak_bytes: u64,
}

/// The machine in general terms.
#[derive(Debug, Default, Serialize)]
pub(super) struct Machine {
    cores: usize,
    memory_bytes: u64,
    system: String,
    load_before: f64,
    software: Vec<String>,
}

impl Machine {
    pub(super) fn here() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let (memory, load) = (read("/proc/meminfo"), read("/proc/loadavg"));
        let kilobytes: u64 = memory
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))
            .and_then(|text| text.trim().trim_end_matches(" kB").parse().ok())
            .unwrap_or_default();
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: kilobytes * 1024,
            system: format!("{} on {}", std::env::consts::OS, std::env::consts::ARCH),
            load_before: load
                .split(' ')
                .next()
                .and_then(|text| text.parse().ok())
                .unwrap_or_default(),
            software: Vec::new(),
        }
    }

    fn text(&self) -> String {
        format!(
            "{} cores, {:.0} GB of memory, {}, shared by the phones, Kafka, Postgres and all that is measured; load \
             average {:.1} before. {}.",
            self.cores,
            self.memory_bytes as f64 / 1e9,
            self.system,
            self.load_before,
            self.software.join(", ")
        )
    }
}

/// Everything that came out.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    machine: Machine,
    quick: bool,
    figures: Vec<Figure>,
    memory: Vec<Process>,
    notes: Vec<String>,
}

impl Report {
    pub(super) fn new(machine: Machine, quick: bool) -> Self {
        if machine.load_before > 0.3 * machine.cores as f64 {
            eprintln!(
                "warning: this machine is busy (load average {:.1}): figures will be worse",
                machine.load_before
            );
        }
        Self {
            machine,
            quick,
            figures: Vec::new(),
            memory: Vec::new(),
            notes: Vec::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.figures.is_empty()
    }

    pub(super) fn figure(&mut self, figure: Figure) {
        self.figures.push(figure);
    }

    /// How a measurement was made.
    pub(super) fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    /// Memory of a process; the worst of all rounds counts.
    pub(super) fn memory(&mut self, what: &str, memory: Memory) {
        match self.memory.iter_mut().find(|process| process.what == what) {
            Some(process) => {
                process.at_rest_bytes = process.at_rest_bytes.max(memory.at_rest);
                process.peak_bytes = process.peak_bytes.max(memory.peak);
            }
            None => self.memory.push(Process {
                what: what.to_owned(),
                at_rest_bytes: memory.at_rest,
                peak_bytes: memory.peak,
            }),
        }
    }

    /// Notes what the stack is made of.
    pub(super) async fn note_stack(&mut self, ground: &Ground) -> Result<()> {
        let client = ground.connect("public").await?;
        let version: String = client
            .query_one("SHOW server_version", &[])
            .await
            .map_err(plain)?
            .get(0);
        let version = version.split(' ').next().unwrap_or_default();
        let pom = include_str!("../../deploy/kafka/pom.xml");
        let kafka = pom
            .split_once("<version>")
            .and_then(|(_, rest)| rest.split_once('-'))
            .map_or("", |(v, _)| v);
        let (_, librdkafka) = rdkafka::util::get_rdkafka_version();
        self.machine.software = vec![
            format!("Kafka {kafka} with one node, whose JVM compiles quickly rather than well (C1)"),
            format!("Postgres {version} with its default settings (commits reach the disk)"),
            format!("librdkafka {librdkafka}"),
        ];
        Ok(())
    }

    fn rows(&self) -> Vec<[String; 6]> {
        self.figures.iter().map(Figure::cells).collect()
    }

    fn memory_rows(&self) -> Vec<[String; 4]> {
        let megabytes = |bytes: u64| match bytes {
            0 => "-".to_owned(),
            bytes => format!("{:.0} MB", bytes as f64 / 1e6),
        };
        self.memory
            .iter()
            .map(|process| {
                let met = if process.peak_bytes <= MEMORY_AIM {
                    "met"
                } else {
                    "missed"
                };
                let aim = format!("≤ {}: {met}", megabytes(MEMORY_AIM));
                [
                    format!("(e) {}", process.what),
                    megabytes(process.at_rest_bytes),
                    megabytes(process.peak_bytes),
                    aim,
                ]
            })
            .collect()
    }

    /// For a terminal.
    pub(super) fn text(&self) -> String {
        let heading = ["", "Tidelog", "beside it", "", "ratio", "aim"];
        let right = [false, true, true, false, true, false];
        let memory = ["memory of each process", "at rest", "peak", "aim"];
        let notes: String = self.notes.iter().map(|note| format!("\n{note}\n")).collect();
        format!(
            "{}\n{}\n{}\n{notes}",
            table(heading, right, &self.rows()),
            table(memory, [false, true, true, false], &self.memory_rows()),
            self.machine.text()
        )
    }

    fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let mut text = String::from("| | Tidelog | beside it | | ratio | aim |\n|---|--:|--:|---|--:|---|\n");
        text.extend(self.rows().iter().map(|cells| line(cells)));
        text.push_str("\n| memory of each process | at rest | peak | aim |\n|---|--:|--:|---|\n");
        text.extend(self.memory_rows().iter().map(|cells| line(cells)));
        let rounds = if self.quick {
            "A quick look, once each. "
        } else {
            "Medians of three rounds. "
        };
        text.push_str(&format!("\n{rounds}{}\n", self.machine.text()));
        text.extend(self.notes.iter().map(|note| format!("\n- {note}\n")));
        text
    }

    /// Puts the table into a Markdown file, between our marks; what else the file says stays.
    pub(super) fn write(&self, file: &Path) -> Result<()> {
        let ours = format!("{BEGIN}\n\n{}\n{END}", self.markdown());
        let text = match std::fs::read_to_string(file) {
            Ok(text) => replace(&text, &ours)
                .with_context(|| format!("{} has no lines \"{BEGIN}\" and \"{END}\"", file.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => format!("# Benchmarks\n\n{ours}\n"),
            Err(error) => bail!("cannot read {}: {error}", file.display()),
        };
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }
}

fn replace(text: &str, ours: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{ours}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(value: f64, aim: Aim) -> Figure {
        let beside = Some(Beside::rate("alone", 100.0));
        Figure {
            part: "a",
            what: "items".into(),
            value,
            unit: "/s",
            beside,
            aim: Some(aim),
        }
    }

    #[test]
    fn an_aim_is_met_or_missed() {
        assert_eq!(figure(50.0, Aim::Ratio(0.5)).met(), Some(true));
        assert_eq!(figure(49.0, Aim::Ratio(0.5)).met(), Some(false));
        assert_eq!(figure(49.0, Aim::AtMost(49.0)).met(), Some(true));
        let cells = figure(1234.0, Aim::Ratio(0.5)).cells();
        assert_eq!(
            cells,
            ["(a) items", "1,234/s", "100/s", "alone", "12.34", "≥ 0.5: met"]
        );
    }

    #[test]
    fn what_stands_around_the_table_stays() {
        let text = format!("# Benchmarks\n{BEGIN}\nold\n{END}\nwhy\n");
        let ours = format!("{BEGIN}\nnew\n{END}");
        assert_eq!(
            replace(&text, &ours),
            Some(format!("# Benchmarks\n{BEGIN}\nnew\n{END}\nwhy\n"))
        );
        assert_eq!(replace("# Benchmarks\n", &ours), None);
    }
}
