//! Filters of `/changes`: from query parameters to the values that a statement compares. What a value may be is told
//! by the field's type in the definition. Knows no SQL.

use chrono::{DateTime, NaiveDate, NaiveTime, SecondsFormat, Utc};
use tidelog_events::domain::{Domain, FieldType, Filter, canonical_value, parse_datetime};

use crate::error::FeedError;

/// The value of each filter of the definition, in its order, in the form that the field is stored in.
pub(crate) type Values = Vec<Option<String>>;

/// The filters that a query asks for, by `parameter`, which looks one up; `None` if it asks for none.
pub(crate) fn values<'q>(
    domain: &Domain,
    parameter: impl Fn(&str) -> Result<Option<&'q str>, FeedError>,
) -> Result<Option<Values>, FeedError> {
    let values = domain
        .filters
        .iter()
        .map(|filter| match parameter(filter.parameter())? {
            Some(text) => value(domain, filter, text)
                .map(Some)
                .map_err(|message| FeedError::parameter(filter.parameter(), message)),
            None => Ok(None),
        })
        .collect::<Result<Values, FeedError>>()?;
    Ok(values.iter().any(Option::is_some).then_some(values))
}

fn value(domain: &Domain, filter: &Filter, text: &str) -> Result<String, String> {
    let field = match filter {
        Filter::From { .. } => return moment(text).map(stored),
        Filter::Equals { field, .. } => domain.field(field),
    };
    if text.contains('\0') {
        return Err("must not hold U+0000".into());
    }
    match field.map(|field| &field.kind) {
        Some(FieldType::Enum { values, case }) => canonical_value(values, *case, text)
            .map(str::to_owned)
            .ok_or_else(|| format!("must be one of {}", values.join(", "))),
        Some(FieldType::DateTime { .. }) => moment(text).map(stored),
        Some(FieldType::Integer { .. }) => text
            .parse::<i64>()
            .map(|n| n.to_string())
            .map_err(|_| "must be a whole number".into()),
        Some(FieldType::Number { .. }) => match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(number.to_string()),
            _ => Err("must be a number".into()),
        },
        Some(FieldType::Boolean) => text
            .parse::<bool>()
            .map(|b| b.to_string())
            .map_err(|_| "must be true or false".into()),
        Some(FieldType::Uuid) => uuid::Uuid::try_parse(text)
            .map(|id| id.hyphenated().to_string())
            .map_err(|_| "must be a UUID".into()),
        _ => Ok(text.to_owned()),
    }
}

/// A time in RFC 3339, or a date, which stands for its midnight in UTC.
fn moment(text: &str) -> Result<DateTime<Utc>, String> {
    let date = || text.parse::<NaiveDate>().ok().filter(|_| text.len() == 10);
    time(text)
        .or_else(|| Some(date()?.and_time(NaiveTime::MIN).and_utc()))
        .ok_or_else(|| "must be a date, as 2026-01-31, or an RFC 3339 time, as 2026-01-31T09:30:00Z".into())
}

/// An RFC 3339 time out of a query string, where a `+` that was not escaped has become a space.
pub(crate) fn time(text: &str) -> Option<DateTime<Utc>> {
    parse_datetime(text).or_else(|| parse_datetime(&text.replace(' ', "+")))
}

fn stored(moment: DateTime<Utc>) -> String {
    moment.to_rfc3339_opts(SecondsFormat::Micros, true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidelog_events::domain::Registry;

    fn one(domain: &str, name: &str, text: &str) -> Result<Option<Values>, String> {
        let registry = Registry::shipped();
        let domain = registry.by_name(domain).expect("a domain");
        values(domain, |parameter| Ok((parameter == name).then_some(text))).map_err(|error| error.to_string())
    }

    #[test]
    fn a_value_is_compared_in_the_fields_letter_case() {
        assert_eq!(
            one("helpdesk", "priority", "high"),
            Ok(Some(vec![Some("HIGH".into())]))
        );
        assert_eq!(one("helpdesk", "colour", "red"), Ok(None));
        let error = one("helpdesk", "priority", "urgent").expect_err("no such priority");
        assert_eq!(error, "priority must be one of HIGH, MEDIUM, LOW");
    }

    #[test]
    fn date_from_takes_a_date_or_a_time_and_nothing_else() {
        let day = |text: &str| Ok(Some(vec![Some(text.to_owned())]));
        assert_eq!(
            one("attendance", "date_from", "2026-01-31"),
            day("2026-01-31T00:00:00.000000Z")
        );
        assert_eq!(
            one("attendance", "date_from", "2026-01-31T05:30:00 05:30"),
            day("2026-01-31T00:00:00.000000Z")
        );
        for bad in ["yesterday", "", "2026-02-30", "2026-1-1", "+12026-01-01"] {
            assert!(one("attendance", "date_from", bad).is_err(), "{bad:?}");
        }
    }
}
