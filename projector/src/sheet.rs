//! Rows on their way into one table: a column at a time, as arrays, so that any number of rows is one statement. The
//! text of the statement follows from the columns alone, so a prepared statement serves every chunk.

use crate::rows::Cells;
use crate::state::Doc;
use chrono::{DateTime, Utc};
use std::fmt::Write as _;
use tokio_postgres::types::{FromSql, ToSql};
use uuid::Uuid;

/// A column with its values.
struct Column {
    name: &'static str,
    array: &'static str,
    cast: Option<&'static str>,
    values: Values,
}

/// Values of one column: given at once, or row by row.
enum Values {
    Whole(Box<dyn ToSql + Sync + Send>),
    Texts(Vec<Option<String>>),
    Uuids(Vec<Option<Uuid>>),
    BigInts(Vec<Option<i64>>),
    Integers(Vec<i32>),
    Booleans(Vec<bool>),
    Times(Vec<DateTime<Utc>>),
}

impl Values {
    fn parameter(&self) -> &(dyn ToSql + Sync) {
        match self {
            Values::Whole(values) => values.as_ref(),
            Values::Texts(values) => values,
            Values::Uuids(values) => values,
            Values::BigInts(values) => values,
            Values::Integers(values) => values,
            Values::Booleans(values) => values,
            Values::Times(values) => values,
        }
    }
}

/// Rows by column.
#[derive(Default)]
pub(crate) struct Sheet {
    columns: Vec<Column>,
    /// The column whose value comes next, where rows are added one by one.
    next: usize,
}

/// A Rust type with the Postgres type that it travels as.
pub(crate) trait Cell: ToSql + Sync + Send + 'static {
    /// The element type of the array.
    const TYPE: &'static str;
}

macro_rules! cells {
    ($($rust:ty => $postgres:literal),* $(,)?) => {
        $(impl Cell for $rust { const TYPE: &'static str = $postgres; })*
    };
}

cells! {
    String => "text", Option<String> => "text", &'static str => "text", i64 => "bigint", Option<i64> => "bigint",
    i32 => "integer", bool => "boolean", Uuid => "uuid", Option<Uuid> => "uuid",
    DateTime<Utc> => "timestamptz", Option<Vec<u8>> => "bytea",
}

impl Sheet {
    /// Adds a column whose values are stored as they travel.
    pub(crate) fn column<T: Cell>(&mut self, name: &'static str, values: impl Iterator<Item = T>) {
        self.columns.push(Column {
            name,
            array: T::TYPE,
            cast: None,
            values: Values::Whole(Box::new(values.collect::<Vec<T>>())),
        });
    }

    /// Adds a column of texts that Postgres reads as another type.
    pub(crate) fn cast<T: Cell>(
        &mut self,
        name: &'static str,
        to: &'static str,
        values: impl Iterator<Item = T>,
    ) {
        self.columns.push(Column {
            name,
            array: T::TYPE,
            cast: Some(to),
            values: Values::Whole(Box::new(values.collect::<Vec<T>>())),
        });
    }

    /// `INSERT INTO table …`, followed by `tail` (an `ON CONFLICT`).
    pub(crate) fn insert(&self, table: &str, tail: &str) -> String {
        let mut names = String::new();
        let mut selected = String::new();
        let mut arrays = String::new();
        for (at, column) in self.columns.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            let cast = column.cast.map_or(String::new(), |cast| format!("::{cast}"));
            // Writing to a String cannot fail.
            let _ = write!(names, "{comma}\"{}\"", column.name);
            let _ = write!(selected, "{comma}k.\"{}\"{cast}", column.name);
            let _ = write!(arrays, "{comma}${}::{}[]", at + 1, column.array);
        }
        format!("INSERT INTO {table} ({names}) SELECT {selected} FROM unnest({arrays}) AS k({names}) {tail}")
    }

    /// `UPDATE table …` of the rows whose `key` columns are the sheet's, by its other columns.
    pub(crate) fn update(&self, table: &str, key: &[&str]) -> String {
        let mut names = Vec::new();
        let mut assigned = Vec::new();
        let mut matched = Vec::new();
        let mut arrays = Vec::new();
        for (at, column) in self.columns.iter().enumerate() {
            let name = column.name;
            let cast = column.cast.map_or(String::new(), |cast| format!("::{cast}"));
            match key.contains(&name) {
                true => matched.push(format!("t.\"{name}\" = k.\"{name}\"")),
                false => assigned.push(format!("\"{name}\" = k.\"{name}\"{cast}")),
            }
            names.push(format!("\"{name}\""));
            arrays.push(format!("${}::{}[]", at + 1, column.array));
        }
        format!(
            "UPDATE {table} t SET {} FROM unnest({}) AS k({}) WHERE {}",
            assigned.join(", "),
            arrays.join(", "),
            names.join(", "),
            matched.join(" AND ")
        )
    }

    /// An `ON CONFLICT` that overwrites every column but the key's.
    pub(crate) fn overwrite(&self, key: &str) -> String {
        let key_names: Vec<&str> = key.split(", ").collect();
        let assignments: Vec<String> = self
            .columns
            .iter()
            .filter(|column| !key_names.contains(&column.name))
            .map(|column| format!("\"{0}\" = excluded.\"{0}\"", column.name))
            .collect();
        format!("ON CONFLICT ({key}) DO UPDATE SET {}", assignments.join(", "))
    }

    /// The statement's parameters.
    pub(crate) fn parameters(&self) -> Vec<&(dyn ToSql + Sync)> {
        self.columns
            .iter()
            .map(|column| column.values.parameter())
            .collect()
    }

    /// Adds what `fill` gives for a row.
    pub(crate) fn row(&mut self, fill: impl FnOnce(&mut Sheet)) {
        self.next = 0;
        fill(self);
    }

    /// The values of the column that comes next; the first row makes them.
    fn values(
        &mut self,
        name: &'static str,
        (array, cast): (&'static str, Option<&'static str>),
        none: Values,
    ) -> &mut Values {
        if self.next == self.columns.len() {
            self.columns.push(Column {
                name,
                array,
                cast,
                values: none,
            });
        }
        let column = &mut self.columns[self.next];
        debug_assert_eq!(column.name, name, "all rows have the same columns");
        self.next += 1;
        &mut column.values
    }

    fn text_as(&mut self, name: &'static str, cast: Option<&'static str>, value: Option<String>) {
        if let Values::Texts(values) = self.values(name, ("text", cast), Values::Texts(Vec::new())) {
            values.push(value);
        }
    }
}

impl Cells for Sheet {
    fn text(&mut self, name: &'static str, value: Option<&str>) {
        self.text_as(name, None, value.map(str::to_owned));
    }

    fn uuid_text(&mut self, name: &'static str, value: &str) {
        self.text_as(name, Some("uuid"), Some(value.to_owned()));
    }

    fn uuid(&mut self, name: &'static str, value: Option<Uuid>) {
        if let Values::Uuids(values) = self.values(name, ("uuid", None), Values::Uuids(Vec::new())) {
            values.push(value);
        }
    }

    fn bigint(&mut self, name: &'static str, value: Option<i64>) {
        if let Values::BigInts(values) = self.values(name, ("bigint", None), Values::BigInts(Vec::new())) {
            values.push(value);
        }
    }

    fn integer(&mut self, name: &'static str, value: i32) {
        if let Values::Integers(values) = self.values(name, ("integer", None), Values::Integers(Vec::new())) {
            values.push(value);
        }
    }

    fn boolean(&mut self, name: &'static str, value: bool) {
        if let Values::Booleans(values) = self.values(name, ("boolean", None), Values::Booleans(Vec::new())) {
            values.push(value);
        }
    }

    fn time(&mut self, name: &'static str, value: DateTime<Utc>) {
        if let Values::Times(values) = self.values(name, ("timestamptz", None), Values::Times(Vec::new())) {
            values.push(value);
        }
    }

    fn json(&mut self, name: &'static str, value: Option<&Doc>) {
        self.text_as(name, Some("jsonb"), value.map(|doc| doc.text().to_owned()));
    }

    fn texts<'a>(&mut self, name: &'static str, value: Option<impl ExactSizeIterator<Item = &'a str>>) {
        self.text_as(name, Some("text[]"), value.map(array_text));
    }
}

/// A list of texts in the spelling that Postgres reads as `text[]`, for columns that hold one list a row.
pub(crate) fn array_text<'a>(items: impl Iterator<Item = &'a str>) -> String {
    let mut text = String::from("{");
    for (at, item) in items.enumerate() {
        if at > 0 {
            text.push(',');
        }
        text.push('"');
        for character in item.chars() {
            if matches!(character, '"' | '\\') {
                text.push('\\');
            }
            text.push(character);
        }
        text.push('"');
    }
    text.push('}');
    text
}

/// Reads a column, or says which one holds something else.
pub(crate) fn get<'a, T: FromSql<'a>>(
    row: &'a tokio_postgres::Row,
    name: &str,
) -> Result<T, crate::ProjectorError> {
    row.try_get(name)
        .map_err(|error| crate::ProjectorError::Stored(format!("column {name}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sheet_writes_one_statement_for_any_number_of_rows() {
        let mut sheet = Sheet::default();
        sheet.column("tenant_id", ["a".to_owned(), "b".to_owned()].into_iter());
        sheet.cast("doc", "jsonb", ["{}".to_owned(), "{}".to_owned()].into_iter());
        assert_eq!(
            sheet.insert("t", &sheet.overwrite("tenant_id")),
            "INSERT INTO t (\"tenant_id\", \"doc\") SELECT k.\"tenant_id\", k.\"doc\"::jsonb FROM unnest($1::text[], $2::text[]) \
             AS k(\"tenant_id\", \"doc\") ON CONFLICT (tenant_id) DO UPDATE SET \"doc\" = excluded.\"doc\""
        );
        assert_eq!(sheet.parameters().len(), 2);
    }

    #[test]
    fn lists_survive_their_spelling() {
        assert_eq!(array_text(["a", "b\"c\\"].into_iter()), r#"{"a","b\"c\\"}"#);
        assert_eq!(array_text([].into_iter()), "{}");
    }
}
