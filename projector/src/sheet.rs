//! Rows on their way into one table: a column at a time, as arrays, so that any number of rows is one statement. The
//! text of the statement follows from the columns alone, so a prepared statement serves every chunk.

use std::fmt::Write as _;
use tokio_postgres::types::{FromSql, ToSql};

/// A column with its values.
struct Column {
    name: &'static str,
    array: &'static str,
    cast: Option<&'static str>,
    values: Box<dyn ToSql + Sync + Send>,
}

/// Rows by column.
#[derive(Default)]
pub(crate) struct Sheet(Vec<Column>);

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
    i32 => "integer", bool => "boolean", uuid::Uuid => "uuid", Option<uuid::Uuid> => "uuid",
    chrono::DateTime<chrono::Utc> => "timestamptz", Option<Vec<u8>> => "bytea",
}

impl Sheet {
    /// Adds a column whose values are stored as they travel.
    pub(crate) fn column<T: Cell>(&mut self, name: &'static str, values: impl Iterator<Item = T>) {
        self.0.push(Column {
            name,
            array: T::TYPE,
            cast: None,
            values: Box::new(values.collect::<Vec<T>>()),
        });
    }

    /// Adds a column of texts that Postgres reads as another type.
    pub(crate) fn cast<T: Cell>(
        &mut self,
        name: &'static str,
        to: &'static str,
        values: impl Iterator<Item = T>,
    ) {
        self.0.push(Column {
            name,
            array: T::TYPE,
            cast: Some(to),
            values: Box::new(values.collect::<Vec<T>>()),
        });
    }

    /// `INSERT INTO table …`, followed by `tail` (an `ON CONFLICT`).
    pub(crate) fn insert(&self, table: &str, tail: &str) -> String {
        let mut names = String::new();
        let mut selected = String::new();
        let mut arrays = String::new();
        for (at, column) in self.0.iter().enumerate() {
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
        for (at, column) in self.0.iter().enumerate() {
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
            .0
            .iter()
            .filter(|column| !key_names.contains(&column.name))
            .map(|column| format!("\"{0}\" = excluded.\"{0}\"", column.name))
            .collect();
        format!("ON CONFLICT ({key}) DO UPDATE SET {}", assignments.join(", "))
    }

    /// The statement's parameters.
    pub(crate) fn parameters(&self) -> Vec<&(dyn ToSql + Sync)> {
        self.0
            .iter()
            .map(|column| column.values.as_ref() as &(dyn ToSql + Sync))
            .collect()
    }
}

/// A list of texts in the spelling that Postgres reads as `text[]`, for columns that hold one list a row.
pub(crate) fn array_text(items: &[String]) -> String {
    let mut text = String::from("{");
    for (at, item) in items.iter().enumerate() {
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
        assert_eq!(array_text(&["a".into(), "b\"c\\".into()]), r#"{"a","b\"c\\"}"#);
        assert_eq!(array_text(&[]), "{}");
    }
}
