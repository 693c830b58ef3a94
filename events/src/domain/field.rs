//! One field of an item: its type, its limits, and the judgement of one value. The gateway judges the text as it
//! came; nothing here looks at a second field.

use crate::error::ItemError;
use chrono::{DateTime, Datelike, NaiveDate, Utc};
use serde_json::Value;

/// Which letters of an enumeration's value count, and how it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Case {
    /// As written, and only so.
    #[default]
    Exact,
    /// Any letter case, stored in upper case.
    Upper,
    /// Any letter case, stored in lower case.
    Lower,
}

/// What a value may be.
#[derive(Debug, Clone, PartialEq)]
pub enum FieldType {
    /// Text; lengths in characters after trimming.
    Text {
        /// Least length.
        min: Option<usize>,
        /// Greatest length.
        max: Option<usize>,
    },
    /// One of a list.
    Enum {
        /// The values as stored.
        values: Vec<String>,
        /// Which letter case is taken.
        case: Case,
    },
    /// RFC 3339.
    DateTime {
        /// Refused when later than the gateway's clock by more than [`FUTURE_TOLERANCE_SECONDS`].
        not_future: bool,
    },
    /// A whole number of 64 bits.
    Integer {
        /// Least value.
        min: Option<i64>,
        /// Greatest value.
        max: Option<i64>,
    },
    /// A double.
    Number {
        /// Least value.
        min: Option<f64>,
        /// Greatest value.
        max: Option<f64>,
    },
    /// `true` or `false`.
    Boolean,
    /// A key of another system: a whole number ≥ 0 or a string of 1 to 64 characters.
    Id,
    /// A UUID as text.
    Uuid,
    /// A GeoJSON point (RFC 7946 section 3.1.2).
    Point,
    /// A list of strings.
    Strings,
    /// An object of any shape.
    Object,
    /// Anything.
    Any,
}

/// A device's clock may be this far ahead before `not_future` refuses its time.
pub const FUTURE_TOLERANCE_SECONDS: i64 = 60;

/// A field of a domain.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Its name in the item.
    pub name: String,
    /// What it may hold.
    pub kind: FieldType,
    /// A record cannot be without it.
    pub required: bool,
    /// Given by the server; what a device sends for it is passed over.
    pub read_only: bool,
    /// Somebody's own words: sealed where a deployment has a secret for that.
    pub personal: bool,
    /// Stored as a typed column too.
    pub column: bool,
    /// What a new record gets where the device says nothing.
    pub default: Option<Value>,
}

impl Field {
    /// Judges one value as sent. `now` is the gateway's clock corrected to the device's skew.
    pub fn check(&self, raw: &str, now: DateTime<Utc>) -> Result<(), ItemError> {
        if self.read_only {
            return Ok(());
        }
        if raw == "null" {
            return if self.required {
                Err(self.error("required", "is required and cannot be cleared"))
            } else {
                Ok(())
            };
        }
        match &self.kind {
            FieldType::Text { min, max } => self.check_text(raw, *min, *max),
            FieldType::Enum { values, case } => {
                let text = self.text(raw, "must be a string")?;
                match canonical_value(values, *case, &text) {
                    Some(_) => Ok(()),
                    None => Err(self.error("enum", format!("must be one of {}", values.join(", ")))),
                }
            }
            FieldType::DateTime { not_future } => self.check_datetime(raw, *not_future, now),
            FieldType::Integer { min, max } => {
                let value: i64 = serde_json::from_str(raw)
                    .map_err(|_| self.error("integer", "must be a whole number of 64 bits"))?;
                self.check_range(value as f64, min.map(|m| m as f64), max.map(|m| m as f64))
            }
            FieldType::Number { min, max } => {
                let value: f64 =
                    serde_json::from_str(raw).map_err(|_| self.error("number", "must be a number"))?;
                self.check_range(value, *min, *max)
            }
            FieldType::Boolean if raw == "true" || raw == "false" => Ok(()),
            FieldType::Boolean => Err(self.error("boolean", "must be true or false")),
            FieldType::Id => self.check_id(raw),
            FieldType::Uuid => {
                let text = self.text(raw, "must be a UUID")?;
                uuid::Uuid::try_parse(&text)
                    .map(|_| ())
                    .map_err(|_| self.error("uuid", "must be a UUID"))
            }
            FieldType::Point => self.check_point(raw),
            FieldType::Strings => serde_json::from_str::<Vec<String>>(raw)
                .map(|_| ())
                .map_err(|_| self.error("strings", "must be a list of strings")),
            FieldType::Object if raw.starts_with('{') => Ok(()),
            FieldType::Object => Err(self.error("object", "must be an object")),
            FieldType::Any => Ok(()),
        }
    }

    /// The value as it is stored: enumerations in their letter case, everything else as sent.
    pub fn stored(&self, value: Value) -> Value {
        match value.as_str().and_then(|text| self.stored_otherwise(text)) {
            Some(text) => text.into(),
            None => value,
        }
    }

    /// How a text is stored that is stored otherwise than it was sent.
    pub fn stored_otherwise(&self, text: &str) -> Option<&str> {
        match &self.kind {
            FieldType::Enum { values, case } => {
                canonical_value(values, *case, text).filter(|stored| *stored != text)
            }
            _ => None,
        }
    }

    fn error(&self, rule: &str, message: impl std::fmt::Display) -> ItemError {
        ItemError::field(&self.name, rule, format!("{} {message}", self.name))
    }

    fn text(&self, raw: &str, message: &str) -> Result<String, ItemError> {
        serde_json::from_str(raw).map_err(|_| self.error("type", message))
    }

    fn check_text(&self, raw: &str, min: Option<usize>, max: Option<usize>) -> Result<(), ItemError> {
        let text = self.text(raw, "must be a string")?;
        let length = text.trim().chars().count();
        if let Some(min) = min.filter(|min| length < *min) {
            return Err(self.error(
                "min_length",
                format!("has {length} characters; at least {min} are needed"),
            ));
        }
        if let Some(max) = max.filter(|max| length > *max) {
            return Err(self.error(
                "max_length",
                format!("has {length} characters; at most {max} are taken"),
            ));
        }
        Ok(())
    }

    fn check_datetime(&self, raw: &str, not_future: bool, now: DateTime<Utc>) -> Result<(), ItemError> {
        let text = self.text(raw, "must be an RFC 3339 date and time")?;
        let time = parse_datetime(&text).ok_or_else(|| {
            self.error(
                "rfc3339",
                "must be an RFC 3339 date and time, as 2026-01-31T09:30:00Z",
            )
        })?;
        if not_future && (time - now).num_seconds() > FUTURE_TOLERANCE_SECONDS {
            return Err(self.error("not_future", "lies in the future"));
        }
        Ok(())
    }

    fn check_range(&self, value: f64, min: Option<f64>, max: Option<f64>) -> Result<(), ItemError> {
        if let Some(min) = min.filter(|min| value < *min) {
            return Err(self.error("min", format!("must be at least {min}")));
        }
        if let Some(max) = max.filter(|max| value > *max) {
            return Err(self.error("max", format!("must be at most {max}")));
        }
        Ok(())
    }

    fn check_id(&self, raw: &str) -> Result<(), ItemError> {
        let holds = match serde_json::from_str::<Value>(raw) {
            Ok(Value::Number(number)) => number.as_u64().is_some(),
            Ok(Value::String(text)) => (1..=64).contains(&text.trim().chars().count()),
            _ => false,
        };
        if holds {
            Ok(())
        } else {
            Err(self.error(
                "id",
                "must be a whole number from 0 or a string of 1 to 64 characters",
            ))
        }
    }

    fn check_point(&self, raw: &str) -> Result<(), ItemError> {
        #[derive(serde::Deserialize)]
        struct Point {
            r#type: String,
            coordinates: Vec<f64>,
        }
        let bad = || {
            self.error(
                "geojson_point",
                "must be a GeoJSON point: type Point, coordinates [longitude, latitude]",
            )
        };
        // A derived struct would take a list too, its members by their order.
        if !raw.starts_with('{') {
            return Err(bad());
        }
        let point: Point = serde_json::from_str(raw).map_err(|_| bad())?;
        let [longitude, latitude, altitude @ ..] = point.coordinates.as_slice() else {
            return Err(bad());
        };
        let on_earth = longitude.abs() <= 180.0 && latitude.abs() <= 90.0 && altitude.len() <= 1;
        if point.r#type == "Point" && on_earth {
            Ok(())
        } else {
            Err(bad())
        }
    }
}

/// The listed value that `text` stands for.
pub fn canonical_value<'a>(values: &'a [String], case: Case, text: &str) -> Option<&'a str> {
    values
        .iter()
        .find(|value| match case {
            Case::Exact => *value == text,
            Case::Upper | Case::Lower => value.eq_ignore_ascii_case(text),
        })
        .map(String::as_str)
}

/// The longest time: RFC 3339 bounds the digits of a second by nothing, Postgres reads 128 characters, and a header as
/// long as a body is one that the log refuses, with all that was sent beside it.
const MAX_DATETIME_BYTES: usize = 64;

/// An RFC 3339 time that Postgres takes too: years 1 to 9999, an offset below 16 hours, 64 characters at most.
pub fn parse_datetime(text: &str) -> Option<DateTime<Utc>> {
    if text.len() > MAX_DATETIME_BYTES {
        return None;
    }
    if let Some(time) = own_form(text) {
        return Some(time);
    }
    let time = DateTime::parse_from_rfc3339(text).ok()?;
    let utc = time.with_timezone(&Utc);
    let in_range = (1..=9999).contains(&time.year()) && (1..=9999).contains(&utc.year());
    (in_range && time.offset().local_minus_utc().abs() < 16 * 3600).then_some(utc)
}

/// The form in which every event has its time, read without the general way's detours: `2026-01-31T09:30:00.123456Z`.
fn own_form(text: &str) -> Option<DateTime<Utc>> {
    let text: &[u8; 27] = text.as_bytes().try_into().ok()?;
    let number = |digits: std::ops::Range<usize>| {
        text[digits].iter().try_fold(0u32, |number, byte| {
            let digit = byte.wrapping_sub(b'0');
            (digit < 10).then(|| number * 10 + u32::from(digit))
        })
    };
    let between = [
        (4, b'-'),
        (7, b'-'),
        (10, b'T'),
        (13, b':'),
        (16, b':'),
        (19, b'.'),
        (26, b'Z'),
    ];
    let year = number(0..4).filter(|year| *year > 0)?;
    if between.iter().any(|(at, byte)| text[*at] != *byte) {
        return None;
    }
    let date = NaiveDate::from_ymd_opt(year.cast_signed(), number(5..7)?, number(8..10)?)?;
    let time = date.and_hms_micro_opt(number(11..13)?, number(14..16)?, number(17..19)?, number(20..26)?)?;
    Some(time.and_utc())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(kind: FieldType) -> Field {
        Field {
            name: "f".into(),
            kind,
            required: false,
            read_only: false,
            personal: false,
            column: false,
            default: None,
        }
    }

    fn rule(kind: FieldType, raw: &str) -> Option<String> {
        field(kind)
            .check(raw, Utc::now())
            .err()
            .and_then(|error| error.rule)
    }

    #[test]
    fn each_type_names_the_rule_that_was_broken() {
        let text = || FieldType::Text {
            min: Some(3),
            max: Some(5),
        };
        assert_eq!(rule(text(), r#""  ab ""#).as_deref(), Some("min_length"));
        assert_eq!(rule(text(), r#""abcdef""#).as_deref(), Some("max_length"));
        assert_eq!(rule(text(), "7").as_deref(), Some("type"));
        assert_eq!(rule(text(), r#"" äöüxy ""#), None);
        let priority = || FieldType::Enum {
            values: vec!["HIGH".into(), "LOW".into()],
            case: Case::Upper,
        };
        assert_eq!(rule(priority(), r#""high""#), None);
        assert_eq!(rule(priority(), r#""urgent""#).as_deref(), Some("enum"));
        let time = || FieldType::DateTime { not_future: false };
        for bad in [
            "2026-13-01T00:00:00Z",
            "2026-01-01",
            "yesterday",
            "0000-01-01T00:00:00Z",
            "2026-01-01T00:00:00+23:00",
        ] {
            assert_eq!(
                rule(time(), &format!("\"{bad}\"")).as_deref(),
                Some("rfc3339"),
                "{bad}"
            );
        }
        assert_eq!(rule(time(), r#""2026-01-01T00:00:00.123456+05:30""#), None);
        assert_eq!(
            rule(
                FieldType::DateTime { not_future: true },
                r#""2999-01-01T00:00:00Z""#
            )
            .as_deref(),
            Some("not_future")
        );
        assert_eq!(
            rule(
                FieldType::Integer {
                    min: Some(0),
                    max: None
                },
                "-1"
            )
            .as_deref(),
            Some("min")
        );
        assert_eq!(
            rule(FieldType::Integer { min: None, max: None }, "1.5").as_deref(),
            Some("integer")
        );
        assert_eq!(
            rule(
                FieldType::Number {
                    min: Some(0.0),
                    max: Some(1.0)
                },
                "1.01"
            )
            .as_deref(),
            Some("max")
        );
        assert_eq!(rule(FieldType::Id, "-4").as_deref(), Some("id"));
        assert_eq!(rule(FieldType::Id, r#""site-7""#), None);
        assert_eq!(
            rule(FieldType::Point, r#"{"type":"Point","coordinates":[181,0]}"#).as_deref(),
            Some("geojson_point")
        );
        assert_eq!(
            rule(FieldType::Point, r#"["Point",[72.8,19.0]]"#).as_deref(),
            Some("geojson_point")
        );
        assert_eq!(
            rule(
                FieldType::Point,
                r#"{"type":"Point","coordinates":[72.8,19.0,3]}"#
            ),
            None
        );
        assert_eq!(rule(FieldType::Strings, r#"["a",1]"#).as_deref(), Some("strings"));
        assert_eq!(rule(FieldType::Object, "[]").as_deref(), Some("object"));
    }

    #[test]
    fn a_time_has_no_more_digits_than_a_header_and_a_column_hold() {
        let of = |digits: usize| parse_datetime(&format!("2026-03-01T10:00:00.{}+05:30", "1".repeat(digits)));
        assert_eq!(
            of(38).map(|time| time.timestamp_subsec_nanos()),
            Some(111_111_111)
        );
        assert_eq!(of(39), None);
    }

    #[test]
    fn null_clears_what_is_not_required() {
        assert_eq!(rule(FieldType::Boolean, "null"), None);
        let required = Field {
            required: true,
            ..field(FieldType::Boolean)
        };
        assert_eq!(
            required
                .check("null", Utc::now())
                .err()
                .and_then(|e| e.rule)
                .as_deref(),
            Some("required")
        );
    }

    proptest::proptest! {
        #[test]
        fn its_own_form_is_read_as_the_general_one_is(
            seconds in -62_135_596_800i64..253_402_300_800,
            micros in 0u32..1_000_000,
            (at, byte) in (0usize..27, proptest::prelude::any::<char>()),
        ) {
            let time = DateTime::from_timestamp(seconds, micros * 1000).expect("within four digits");
            let text = time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
            proptest::prop_assert_eq!(own_form(&text), Some(time));
            let mut wrong = text;
            wrong.replace_range(at..=at, &byte.to_string());
            if let Some(read) = own_form(&wrong) {
                let general = DateTime::parse_from_rfc3339(&wrong).expect("a time");
                proptest::prop_assert_eq!(read, general.with_timezone(&Utc));
            }
        }
    }
}
