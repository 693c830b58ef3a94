//! What `verify --follow` finds, as metrics. Knows what the figures are called and labelled by: topics,
//! domains and partitions, never tenants. Not how they come about.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use metrics::{counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::verify::Verified;
use crate::figures;
use crate::version::{COMMIT, RELEASE};

/// A domain's name and its table.
pub(super) type Named = (String, String);

/// The figures.
pub(super) struct Exposed {
    recorder: PrometheusRecorder,
    /// The domains and partitions of which differences were told: where there are none any more, that has to be told too.
    told: Mutex<BTreeSet<(String, String)>>,
}

impl Exposed {
    /// Nothing is known yet of any of the topics.
    pub(super) fn new(topics: &[String]) -> Exposed {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            describe();
            gauge!("tidelog_verify_up").set(1.0);
            gauge!("tidelog_build_info", "version" => RELEASE, "commit" => COMMIT).set(1.0);
            for topic in topics {
                counter!("tidelog_verify_events_total", "topic" => topic.clone()).absolute(0);
                counter!("tidelog_verify_failed_runs_total", "topic" => topic.clone()).absolute(0);
            }
        });
        Exposed {
            recorder,
            told: Mutex::default(),
        }
    }

    /// So many more events were read.
    pub(super) fn read(&self, topic: &str, events: u64) {
        metrics::with_local_recorder(&self.recorder, || {
            counter!("tidelog_verify_events_total", "topic" => topic.to_owned()).increment(events);
        });
    }

    /// Whether it gets on.
    pub(super) fn up(&self, up: bool) {
        metrics::with_local_recorder(&self.recorder, || {
            gauge!("tidelog_verify_up").set(f64::from(u8::from(up)))
        });
    }

    /// A topic could not be looked at.
    pub(super) fn failed(&self, topic: &str) {
        self.up(false);
        metrics::with_local_recorder(&self.recorder, || {
            counter!("tidelog_verify_failed_runs_total", "topic" => topic.to_owned()).increment(1);
        });
    }

    /// A topic was looked at, whose domains these are.
    pub(super) fn verified(&self, topic: &str, domains: &[Named], verified: &Verified, seconds: f64) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        for sum in &verified.checksums {
            if let Some((domain, _)) = domains.iter().find(|(_, table)| table == sum.table()) {
                told.insert((domain.clone(), sum.partition().to_string()));
            }
        }
        let places = verified
            .differences
            .iter()
            .map(|shown| place(domains, shown.table(), shown.partition()));
        let places: Vec<(String, String)> = places.collect();
        told.extend(places.iter().cloned());
        metrics::with_local_recorder(&self.recorder, || {
            for (domain, partition) in told
                .iter()
                .filter(|(domain, _)| domains.iter().any(|(name, _)| name == domain))
            {
                let differences = places
                    .iter()
                    .filter(|place| (&place.0, &place.1) == (domain, partition))
                    .count();
                let labels = [("domain", domain.clone()), ("partition", partition.clone())];
                gauge!("tidelog_verify_differences", &labels).set(differences as f64);
            }
            for sum in &verified.checksums {
                if let Some((domain, _)) = domains.iter().find(|(_, table)| table == sum.table()) {
                    let labels = [
                        ("domain", domain.clone()),
                        ("partition", sum.partition().to_string()),
                    ];
                    gauge!("tidelog_verify_records", &labels).set(sum.rows() as f64);
                }
            }
            let now = chrono::Utc::now().timestamp_millis() as f64 / 1000.0;
            gauge!("tidelog_verify_last_completed_timestamp_seconds", "topic" => topic.to_owned()).set(now);
            gauge!("tidelog_verify_duration_seconds", "topic" => topic.to_owned()).set(seconds);
        });
        drop(told);
        self.up(true);
    }

    /// Serves them until `stop`.
    pub(super) async fn serve(&self, listener: TcpListener, stop: watch::Receiver<bool>) {
        figures::serve(self.recorder.handle(), listener, stop).await;
    }
}

/// The domain and partition that a row is counted under. A table that all domains share counts under the topic's first domain,
/// which is the one that `replay` is to be told.
fn place(domains: &[Named], table: &str, partition: Option<i32>) -> (String, String) {
    let of_domain =
        |(_, rows): &&Named| table == rows || table.strip_suffix("_changes") == Some(rows.as_str());
    let domain = domains.iter().find(of_domain).or(domains.first());
    (
        domain.map(|(name, _)| name.clone()).unwrap_or_default(),
        partition.map_or("unknown".to_owned(), |partition| partition.to_string()),
    )
}

fn describe() {
    describe_counter!(
        "tidelog_verify_events_total",
        "Events of the log that were read and folded again"
    );
    describe_gauge!(
        "tidelog_verify_records",
        "Rows of a domain's table at the last look, deleted records included"
    );
    describe_gauge!(
        "tidelog_verify_differences",
        "Rows that are not what the log says, at the last look; tidelog replay mends them"
    );
    describe_gauge!(
        "tidelog_verify_last_completed_timestamp_seconds",
        "When a topic was last looked at to the end, in seconds since 1970"
    );
    describe_gauge!(
        "tidelog_verify_duration_seconds",
        "How long the last look at a topic took"
    );
    describe_counter!(
        "tidelog_verify_failed_runs_total",
        "Looks that were given up, for Kafka or Postgres being away or the log being cut off"
    );
    describe_gauge!(
        "tidelog_build_info",
        "1, with the release and the commit that this build is of"
    );
    describe_gauge!(
        "tidelog_verify_up",
        "1 while looks come to their ends; 0 since one failed or waits for Kafka or Postgres"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal() -> Vec<Named> {
        let names = [("journal", "journal"), ("journal-media", "journal_media")];
        names
            .map(|(name, table)| (name.to_owned(), table.to_owned()))
            .to_vec()
    }

    #[test]
    fn a_row_counts_under_its_domain_or_the_topics_first() {
        let of = |table, partition| place(&journal(), table, partition);
        assert_eq!(
            of("journal_media_changes", Some(2)),
            ("journal-media".into(), "2".into())
        );
        assert_eq!(of("journal", Some(0)), ("journal".into(), "0".into()));
        assert_eq!(of("outcomes", None), ("journal".into(), "unknown".into()));
    }

    #[test]
    fn what_is_not_known_yet_is_not_told_and_failures_are() {
        let exposed = Exposed::new(&["sync.journal.v1".into()]);
        exposed.read("sync.journal.v1", 7);
        exposed.failed("sync.journal.v1");
        let page = exposed.recorder.handle().render();
        for line in [
            "# TYPE tidelog_verify_events_total counter",
            "tidelog_verify_events_total{topic=\"sync.journal.v1\"} 7",
            "tidelog_verify_failed_runs_total{topic=\"sync.journal.v1\"} 1",
            "tidelog_verify_up 0",
        ] {
            assert!(page.lines().any(|told| told == line), "{line} in\n{page}");
        }
        let build = format!("tidelog_build_info{{version=\"{RELEASE}\",commit=\"{COMMIT}\"}} 1");
        assert!(page.lines().any(|told| told == build), "{build} in\n{page}");
        assert!(page.contains("# HELP tidelog_verify_up 1 while"), "{page}");
        assert!(!page.contains("tidelog_verify_differences{"), "{page}");
    }
}
