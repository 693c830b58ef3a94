//! What differs between the tables and the log, for people and for programs. Knows nothing of how it was found.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use tidelog_projector::shadow::{Difference, TableSum};

/// Rows that are listed for people.
const LISTED: usize = 50;

/// A live row that is not what the log says.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    table: String,
    /// `missing`, `extra` or `changed`: what is wrong with the live row.
    differs: &'static str,
    key: Value,
    partition: Option<i32>,
    offset: Option<i64>,
    columns: Vec<String>,
}

impl Shown {
    /// The row's table.
    pub(super) fn table(&self) -> &str {
        &self.table
    }

    /// The partition that made it, as far as either side says.
    pub(super) fn partition(&self) -> Option<i32> {
        self.partition
    }
}

impl From<&Difference> for Shown {
    fn from(difference: &Difference) -> Shown {
        Shown {
            table: difference.table.clone(),
            differs: difference.differs.as_str(),
            key: difference.key.clone(),
            partition: difference.partition,
            offset: difference.offset,
            columns: difference.columns.clone(),
        }
    }
}

/// The sums of one table and partition, which are equal where the rows are.
#[derive(Debug, Serialize)]
pub(super) struct Sum {
    table: String,
    partition: i32,
    rows: i64,
    checksum: String,
    expected_rows: i64,
    expected_checksum: String,
}

impl Sum {
    /// The table.
    pub(super) fn table(&self) -> &str {
        &self.table
    }

    /// By its number.
    pub(super) fn partition(&self) -> i32 {
        self.partition
    }

    /// Live rows.
    pub(super) fn rows(&self) -> i64 {
        self.rows
    }
}

pub(super) fn sums(tables: &[TableSum]) -> Vec<Sum> {
    let each = tables.iter().flat_map(|table| {
        table.partitions.iter().map(|sum| Sum {
            table: table.table.clone(),
            partition: sum.partition,
            rows: sum.rows,
            checksum: sum.sum.clone(),
            expected_rows: sum.expected_rows,
            expected_checksum: sum.expected_sum.clone(),
        })
    });
    each.collect()
}

/// A line a row, and a line that counts them.
pub(super) fn text(differences: &[Shown]) -> String {
    let mut text = String::new();
    for shown in differences.iter().take(LISTED) {
        let columns = match shown.columns.is_empty() {
            true => String::new(),
            false => format!(" in {}", shown.columns.join(", ")),
        };
        let place = match (shown.partition, shown.offset) {
            (Some(partition), Some(offset)) => format!(" (partition {partition}, offset {offset})"),
            _ => String::new(),
        };
        text.push_str(&format!(
            "  {} {}: {}{columns}{place}\n",
            shown.table, shown.differs, shown.key
        ));
    }
    if differences.len() > LISTED {
        text.push_str(&format!(
            "  … and {} more (all of them with --output json)\n",
            differences.len() - LISTED
        ));
    }
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for shown in differences {
        *counts.entry((&shown.table, shown.differs)).or_default() += 1;
    }
    let counts: Vec<String> = counts
        .iter()
        .map(|((table, differs), count)| format!("{count} {differs} in {table}"))
        .collect();
    if !counts.is_empty() {
        text.push_str(&format!("  {}\n", counts.join(", ")));
    }
    text
}
