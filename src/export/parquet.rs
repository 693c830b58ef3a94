//! Parquet, written column by column without Arrow, which would triple what there is to compile. Rows are held until a row
//! group is full, by rows or by bytes, so that memory does not grow with the file. The same rows give the same bytes.

use std::fs::File;
use std::sync::Arc;

use anyhow::{Result, bail};
use parquet::basic::{Compression, Encoding, LogicalType, Repetition, TimeUnit, Type as Physical, ZstdLevel};
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::{ColumnPath, Type};

use super::columns::{Cell, Column, Kind};
use super::sheet::Sheet;

/// Most rows of a row group, and about how many bytes of text.
const GROUP_ROWS: usize = 1 << 16;
const GROUP_BYTES: usize = 32 << 20;

/// Columns whose values are each another: a dictionary would be thrown away again.
const NO_DICTIONARY: [&str; 3] = ["event_id", "payload", "reason"];
/// Numbers that mostly grow.
const DELTAS: [&str; 3] = ["offset", "log_time", "item_time"];

/// A file that is being written.
pub(super) struct Parquet {
    writer: SerializedFileWriter<File>,
    columns: Arc<Vec<Column>>,
    group: Vec<Gathered>,
    rows: usize,
    bytes: usize,
}

/// A column of the row group that is being filled.
struct Gathered {
    values: Values,
    /// For each row whether there is a value (1) or null (0), where there may be null.
    present: Option<Vec<i16>>,
}

enum Values {
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Double(Vec<f64>),
    Boolean(Vec<bool>),
    Text(Vec<ByteArray>),
}

impl Parquet {
    pub(super) fn begin(file: File, columns: &Arc<Vec<Column>>, notes: &[(&str, String)]) -> Result<Parquet> {
        let fields = columns.iter().map(|column| Ok(Arc::new(field(column)?)));
        let schema = Type::group_type_builder("tidelog_event")
            .with_fields(fields.collect::<Result<_>>()?)
            .build()?;
        let writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties(columns, notes)))?;
        Ok(Parquet {
            writer,
            group: columns.iter().map(Gathered::of).collect(),
            columns: columns.clone(),
            rows: 0,
            bytes: 0,
        })
    }

    fn flush(&mut self) -> Result<()> {
        if self.rows == 0 {
            return Ok(());
        }
        let mut group = self.writer.next_row_group()?;
        for gathered in &mut self.group {
            let Some(mut column) = group.next_column()? else {
                bail!("the file has fewer columns than a row");
            };
            gathered.write(column.untyped())?;
            column.close()?;
        }
        group.close()?;
        (self.rows, self.bytes) = (0, 0);
        Ok(())
    }
}

impl Sheet for Parquet {
    fn write(&mut self, row: Vec<Cell>) -> Result<()> {
        for ((gathered, column), cell) in self.group.iter_mut().zip(self.columns.iter()).zip(row) {
            if let Cell::Text(text) = &cell {
                self.bytes += text.len();
            }
            gathered.take(column, cell)?;
        }
        self.rows += 1;
        match self.rows >= GROUP_ROWS || self.bytes >= GROUP_BYTES {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn finish(mut self: Box<Self>) -> Result<File> {
        self.flush()?;
        Ok(self.writer.into_inner()?)
    }
}

fn field(column: &Column) -> Result<Type> {
    let time = |unit| Some(LogicalType::timestamp(true, unit));
    let (physical, logical) = match column.kind {
        Kind::Int32 => (Physical::INT32, None),
        Kind::Int64 => (Physical::INT64, None),
        Kind::Double => (Physical::DOUBLE, None),
        Kind::Boolean => (Physical::BOOLEAN, None),
        Kind::Text => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
        Kind::Millis => (Physical::INT64, time(TimeUnit::MILLIS)),
        Kind::Micros => (Physical::INT64, time(TimeUnit::MICROS)),
    };
    let repetition = match column.required {
        true => Repetition::REQUIRED,
        false => Repetition::OPTIONAL,
    };
    Ok(Type::primitive_type_builder(&column.name, physical)
        .with_logical_type(logical)
        .with_repetition(repetition)
        .build()?)
}

fn properties(columns: &[Column], notes: &[(&str, String)]) -> WriterProperties {
    let notes = notes
        .iter()
        .map(|(name, value)| KeyValue::new((*name).to_owned(), value.clone()));
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        // In the form that readers expect of this.
        .set_created_by(format!("tidelog version {}", env!("CARGO_PKG_VERSION")))
        .set_key_value_metadata(Some(notes.collect()))
        .set_column_statistics_enabled(ColumnPath::from("payload"), EnabledStatistics::None);
    for name in NO_DICTIONARY {
        properties = properties.set_column_dictionary_enabled(ColumnPath::from(name), false);
    }
    for name in DELTAS {
        properties = properties
            .set_column_dictionary_enabled(ColumnPath::from(name), false)
            .set_column_encoding(ColumnPath::from(name), Encoding::DELTA_BINARY_PACKED);
    }
    let by_offset = columns.iter().position(|column| column.name == "offset");
    let sorted = by_offset.map(|at| SortingColumn {
        column_idx: at as i32,
        descending: false,
        nulls_first: false,
    });
    properties
        .set_sorting_columns(sorted.map(|sorted| vec![sorted]))
        .build()
}

impl Gathered {
    fn of(column: &Column) -> Gathered {
        let values = match column.kind {
            Kind::Int32 => Values::Int32(Vec::new()),
            Kind::Int64 | Kind::Millis | Kind::Micros => Values::Int64(Vec::new()),
            Kind::Double => Values::Double(Vec::new()),
            Kind::Boolean => Values::Boolean(Vec::new()),
            Kind::Text => Values::Text(Vec::new()),
        };
        Gathered {
            values,
            present: (!column.required).then(Vec::new),
        }
    }

    fn take(&mut self, column: &Column, cell: Cell) -> Result<()> {
        match (&mut self.values, cell) {
            (_, Cell::Null) if self.present.is_some() => {
                self.note(0);
                return Ok(());
            }
            (Values::Int32(values), Cell::Integer(number)) => values.push(i32::try_from(number)?),
            (Values::Int64(values), Cell::Integer(number)) => values.push(number),
            (Values::Int64(values), Cell::Time(at)) => values.push(match column.kind {
                Kind::Micros => at.timestamp_micros(),
                _ => at.timestamp_millis(),
            }),
            (Values::Double(values), Cell::Number(number)) => values.push(number),
            (Values::Boolean(values), Cell::Boolean(value)) => values.push(value),
            (Values::Text(values), Cell::Text(text)) => values.push(ByteArray::from(text.into_bytes())),
            (_, cell) => bail!("the column {} cannot hold {cell:?}", column.name),
        }
        self.note(1);
        Ok(())
    }

    /// Notes that the next row has a value (1) or none (0).
    fn note(&mut self, level: i16) {
        if let Some(present) = &mut self.present {
            present.push(level);
        }
    }

    /// Writes the column, and is empty again.
    fn write(&mut self, writer: &mut ColumnWriter<'_>) -> Result<()> {
        let present = self.present.as_deref();
        match (writer, &mut self.values) {
            (ColumnWriter::Int32ColumnWriter(writer), Values::Int32(values)) => {
                writer.write_batch(values, present, None)?;
                values.clear();
            }
            (ColumnWriter::Int64ColumnWriter(writer), Values::Int64(values)) => {
                writer.write_batch(values, present, None)?;
                values.clear();
            }
            (ColumnWriter::DoubleColumnWriter(writer), Values::Double(values)) => {
                writer.write_batch(values, present, None)?;
                values.clear();
            }
            (ColumnWriter::BoolColumnWriter(writer), Values::Boolean(values)) => {
                writer.write_batch(values, present, None)?;
                values.clear();
            }
            (ColumnWriter::ByteArrayColumnWriter(writer), Values::Text(values)) => {
                writer.write_batch(values, present, None)?;
                values.clear();
            }
            _ => bail!("a column is written as another type than it has"),
        }
        if let Some(present) = &mut self.present {
            present.clear();
        }
        Ok(())
    }
}
