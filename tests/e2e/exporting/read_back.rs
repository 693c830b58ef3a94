//! What is in the files of an export, read back: rows of each format in the words of JSON lines, and whether they are those
//! of the log.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use chrono::{DateTime, SecondsFormat, Utc};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::support::kafka::Record;
use crate::support::service::Deployment;

/// A folder of a test's own.
pub(super) fn folder(deployment: &Deployment, name: &str) -> PathBuf {
    deployment.dir.join(format!("{name}-{}", Uuid::new_v4().simple()))
}

/// The files of an export by their paths within the domain's folder.
pub(super) fn files(into: &Path, domain: &str) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let Ok(days) = std::fs::read_dir(into.join(domain)) else {
        return files;
    };
    for day in days
        .map(|day| day.expect("an entry"))
        .filter(|day| day.path().is_dir())
    {
        for file in std::fs::read_dir(day.path()).expect("a day") {
            let file = file.expect("an entry");
            let name = format!(
                "{}/{}",
                day.file_name().to_string_lossy(),
                file.file_name().to_string_lossy()
            );
            // One that is being written may get its name meanwhile.
            if let Ok(bytes) = std::fs::read(file.path()) {
                files.insert(name, bytes);
            }
        }
    }
    files
}

pub(super) fn names(into: &Path, domain: &str) -> Vec<String> {
    files(into, domain).into_keys().collect()
}

pub(super) type Rows = Vec<Map<String, Value>>;

/// All rows, by partition and offset.
fn in_order(mut rows: Rows) -> Rows {
    rows.sort_by_key(|row| (row["partition"].as_i64(), row["offset"].as_i64()));
    rows
}

pub(super) fn json_rows(into: &Path, domain: &str) -> Rows {
    let mut rows = Vec::new();
    for (name, bytes) in files(into, domain) {
        let text = String::from_utf8(bytes).expect("UTF-8");
        rows.extend(text.lines().map(|line| {
            let row: Map<String, Value> =
                serde_json::from_str(line).unwrap_or_else(|e| panic!("{name}: {e}: {line}"));
            let partition = format!("/partition={:04}.jsonl", row["partition"].as_i64().expect("one"));
            assert!(name.ends_with(&partition), "{name}: {line}");
            row
        }));
    }
    in_order(rows)
}

/// What parquet files hold, in the words of JSON lines.
pub(super) fn parquet_rows(into: &Path, domain: &str) -> Rows {
    let mut rows = Vec::new();
    for (name, _) in files(into, domain) {
        let file = std::fs::File::open(into.join(domain).join(&name)).expect("a file");
        let reader = SerializedFileReader::new(file).expect("parquet");
        for row in reader.get_row_iter(None).expect("rows") {
            let row = row.expect("a row");
            let cells = row
                .get_column_iter()
                .map(|(name, field)| (name.clone(), value(field)));
            rows.push(cells.collect());
        }
    }
    in_order(rows)
}

fn value(field: &Field) -> Value {
    let time =
        |at: Option<DateTime<Utc>>, digits| Value::from(at.expect("a time").to_rfc3339_opts(digits, true));
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => json!(value),
        Field::Int(number) => json!(number),
        Field::Long(number) => json!(number),
        Field::Double(number) => json!(number),
        Field::Str(text) => json!(text),
        Field::TimestampMillis(at) => time(DateTime::from_timestamp_millis(*at), SecondsFormat::Millis),
        Field::TimestampMicros(at) => time(DateTime::from_timestamp_micros(*at), SecondsFormat::Micros),
        other => panic!("no column is of {other:?}"),
    }
}

/// What CSV files hold: an empty cell is none, and text that could be a formula has its `'` taken away.
pub(super) fn csv_rows(into: &Path, domain: &str) -> Vec<Vec<(String, Option<String>)>> {
    let mut rows = Vec::new();
    for (_, bytes) in files(into, domain) {
        let mut lines = csv(&String::from_utf8(bytes).expect("UTF-8")).into_iter();
        let heading = lines.next().expect("a heading");
        for line in lines {
            assert_eq!(line.len(), heading.len(), "{line:?}");
            let names = heading.iter().map(|name| name.clone().expect("a name"));
            rows.push(names.zip(line).collect());
        }
    }
    rows.sort_by_key(|row: &Vec<(String, Option<String>)>| {
        let number = |name: &str| {
            let cell = row.iter().find(|(known, _)| known == name);
            cell.and_then(|(_, cell)| cell.as_deref()?.parse::<i64>().ok())
        };
        (number("partition"), number("offset"))
    });
    rows
}

/// RFC 4180, read as strictly as it is written.
fn csv(text: &str) -> Vec<Vec<Option<String>>> {
    let (mut rows, mut row, mut chars) = (Vec::new(), Vec::new(), text.chars().peekable());
    while chars.peek().is_some() {
        let mut cell = String::new();
        let quoted = chars.next_if_eq(&'"').is_some();
        loop {
            match chars.peek() {
                Some('"') if quoted => {
                    chars.next();
                    match chars.next_if_eq(&'"') {
                        Some(quote) => cell.push(quote),
                        None => break,
                    }
                }
                Some(',' | '\r') if !quoted => break,
                Some(_) => cell.extend(chars.next()),
                None => panic!("a file that ends in a cell: {cell}"),
            }
        }
        if cell
            .trim_start_matches('\'')
            .starts_with(['=', '+', '-', '@', '\t'])
        {
            assert!(!quoted || cell.starts_with('\''), "a formula: {cell}");
        }
        if quoted
            && cell
                .trim_start_matches('\'')
                .starts_with(['=', '+', '-', '@', '\t'])
        {
            cell.remove(0);
        }
        row.push((quoted || !cell.is_empty()).then_some(cell));
        match chars.next() {
            Some(',') => {}
            Some('\r') => {
                assert_eq!(chars.next(), Some('\n'), "a line ends in CR LF");
                rows.push(std::mem::take(&mut row));
            }
            other => panic!("{other:?} after a cell"),
        }
    }
    rows
}

/// What a row says of its record is what the log has.
pub(super) fn is_of(row: &Map<String, Value>, record: &Record) {
    assert_eq!(
        (row["partition"].as_i64(), row["offset"].as_i64()),
        (Some(record.partition.into()), Some(record.offset)),
    );
    let at = DateTime::from_timestamp_millis(record.logged_at).expect("a time");
    assert_eq!(row["log_time"], at.to_rfc3339_opts(SecondsFormat::Millis, true));
    assert_eq!(row["payload"], record.value);
    if row["unreadable"].is_null() {
        assert_eq!(row["event_id"], record.header("ce_id"));
        assert_eq!(row["type"], record.header("ce_type"));
        assert_eq!(row["record"], record.header("ce_subject"));
        let batch = format!(
            "{}/{}",
            row["batch_id"].as_str().expect("one"),
            row["batch_index"]
        );
        assert_eq!(batch, record.header("ce_batch"));
        assert_eq!(row["base_version"].to_string(), record.header("ce_baseversion"));
    }
}
