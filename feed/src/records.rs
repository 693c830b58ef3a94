//! `GET /api/v1/{domain}/records/{identity}`: one record as it now is. What is absent, deleted, another tenant's or
//! not the caller's to see is told by one answer, so that none of these can be told from another.

use uuid::Uuid;

use crate::error::FeedError;
use crate::opening::Closed;
use crate::page::Document;
use crate::reading::Reading;

pub(crate) const ABSENT: FeedError = FeedError::NotFound("there is no such record for you");

/// The document of a record. `spellings` are the identity as it may be meant, the likeliest first.
pub(crate) async fn find(reading: &Reading<'_>, spellings: &[String]) -> Result<String, FeedError> {
    let domain = &reading.from.domain;
    let spellings: Vec<String> = match domain.is_entity() {
        true => spellings
            .iter()
            .filter_map(|text| Uuid::try_parse(text).ok())
            .map(|id| id.to_string())
            .collect(),
        false => spellings
            .iter()
            .filter(|text| !text.is_empty() && !text.contains('\0'))
            .cloned()
            .collect(),
    };
    if spellings.is_empty() {
        return Err(ABSENT);
    }
    let values: [crate::store::Parameter<'_>; 3] = [&reading.tenant, &spellings, &reading.reader];
    let rows = reading
        .store
        .query(&reading.from.statements.record, &values)
        .await?;
    let row = rows.first().ok_or(ABSENT)?;
    let document = Document {
        id: row.try_get(0)?,
        version: row.try_get(1)?,
        synced_at: row.try_get(2)?,
        doc: row.try_get(3)?,
    };
    let mut json = document.to_json(domain.id_column());
    if let Some(opener) = reading.opener {
        let closed = Closed {
            domain,
            subject: document.id.to_owned(),
            json: &mut json,
        };
        opener.open(reading.tenant, vec![closed]).await?;
    }
    Ok(json)
}
