//! What a projector counts of itself: what the figures are called and labelled by, topics, domains and tables, never tenants.
//! Whoever runs it may keep and show them; otherwise counting costs nothing. Must not know how.

use metrics::{counter, describe_counter, describe_gauge, gauge};
use tidelog_events::domain::Registry;
use tidelog_events::topic_name;

const REMOVED: &str = "tidelog_history_removed_rows_total";
const WITHHELD: &str = "tidelog_withheld_partitions";

/// Says what there is, with nothing counted yet.
pub(crate) fn begin(registry: &Registry, topic_prefix: &str) {
    describe_counter!(
        REMOVED,
        "Rows that were older than the history of their domain and were removed"
    );
    describe_gauge!(
        WITHHELD,
        "Partitions of this process that cannot be read from their position, since the log does not have it"
    );
    for topic in registry.topics() {
        withheld(&topic_name(topic_prefix, topic), 0);
    }
}

/// So many more rows of a table were removed.
pub(crate) fn removed(domain: &str, table: &str, rows: i64) {
    let labels = [("domain", domain.to_owned()), ("table", table.to_owned())];
    counter!(REMOVED, &labels).increment(rows.max(0).cast_unsigned());
}

/// So many partitions of a topic, named with its prefix, are withheld.
pub(crate) fn withheld(topic: &str, partitions: usize) {
    gauge!(WITHHELD, "topic" => topic.to_owned()).set(partitions as f64);
}
