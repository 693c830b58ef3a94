//! Reads a partition's part of the log, says which day each record counts to, keeps what is asked for and finds out what
//! became of it. Knows no file.
//!
//! **The day of a record** is the latest UTC day of the log's times up to it, in its partition: the time of a record that
//! lies a little before its predecessor's (several gateways stamp them) counts as its predecessor's, as it does in the
//! fold. So a day's records are one stretch of a partition, each record is in exactly one day, and the log alone says in
//! which.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use anyhow::{Context, Result};
use chrono::{DateTime, NaiveDate, Utc};
use futures_util::stream::{self, StreamExt};
use tidelog_events::domain::{Domain, Registry};
use tidelog_events::envelope::tenant_of;
use tidelog_events::ids::TenantId;
use tidelog_projector::ProjectorError;
use tidelog_projector::log::{Log, Parcel};
use tidelog_projector::record::LogRecord;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio_postgres::Client;

use super::plan::Span;
use crate::look::became::Became;
use crate::look::outcomes;
use crate::look::seen::Seen;

/// How many parcels are asked about at once: one is read and sent while Postgres works on another.
const ASKED_AT_ONCE: usize = 2;

/// A record that is exported.
#[derive(Debug)]
pub(super) struct Kept {
    /// The record.
    pub(super) seen: Seen,
    /// Whose it is, as far as its headers tell.
    pub(super) tenant: Option<TenantId>,
    /// What became of it; nothing where nobody asked.
    pub(super) became: Option<Became>,
}

/// What is read, in its order.
#[derive(Debug)]
pub(super) enum Page {
    /// A span begins.
    Begin(Span),
    /// Records of one day of it. None at all where none of them is kept.
    Day {
        /// The day.
        date: NaiveDate,
        /// Where they begin, with those that are not kept.
        first_offset: i64,
        /// Those that are kept.
        kept: Vec<Kept>,
    },
    /// The span is read to its end.
    End,
}

/// What is read from, and what is kept.
pub(super) struct Reading {
    /// The log.
    pub(super) log: Log,
    /// The domains.
    pub(super) registry: Arc<Registry>,
    /// The one that is exported.
    pub(super) domain: Arc<Domain>,
    /// Only of this tenant.
    pub(super) tenant: Option<TenantId>,
    /// To ask what became of records; none where nobody needs to know.
    pub(super) client: Option<Client>,
    /// New offsets that were passed.
    pub(super) passed: AtomicI64,
}

impl Reading {
    /// Reads a span; answers whether somebody still takes the pages.
    pub(super) async fn read(&self, span: &Span, pages: &Sender<Page>) -> Result<bool> {
        if pages.send(Page::Begin(span.clone())).await.is_err() {
            return Ok(false);
        }
        let (held, parcels, mut days) = self.begin(span).await?;
        let held = stream::iter(held.map(Ok));
        let parcels = held.chain(stream::unfold(parcels, |mut parcels| async move {
            let parcel = parcels.recv().await?;
            Some((parcel, parcels))
        }));
        let stretches = parcels.map(|parcel| parcel.map(|parcel| self.stretches(&parcel, &mut days)));
        let told = stretches
            .map(|stretches| async move {
                let (mut stretches, next_offset) = stretches.with_context(|| self.cannot_read(span))?;
                self.ask(&mut stretches, span).await?;
                anyhow::Ok((stretches, next_offset))
            })
            .buffered(ASKED_AT_ONCE);
        let mut told = std::pin::pin!(told);
        let mut passed = span.from;
        while let Some(parcel) = told.next().await {
            let (stretches, next_offset) = parcel?;
            for stretch in stretches {
                let page = Page::Day {
                    date: stretch.date,
                    first_offset: stretch.first_offset,
                    kept: stretch.kept,
                };
                if pages.send(page).await.is_err() {
                    return Ok(false);
                }
            }
            let new = next_offset.max(passed) - passed;
            self.passed.fetch_add(new, Ordering::Relaxed);
            passed += new;
        }
        Ok(pages.send(Page::End).await.is_ok())
    }

    /// Begins where the last run ended; or with the file that it ended with, if there is more for that one.
    async fn begin(&self, span: &Span) -> Result<(Option<Parcel>, Receiver<ReadParcel>, Days)> {
        let from = |offset: i64| {
            self.log
                .read(&BTreeMap::from([(span.partition, (offset, Some(span.to)))]))
        };
        let Some(again) = span.again else {
            return Ok((None, from(span.from), Days(None)));
        };
        let anew = || (None, from(again.first_offset), Days(Some(again.date)));
        if again.pending {
            return Ok(anew());
        }
        let mut parcels = from(span.from);
        let first = parcels.recv().await.transpose();
        let first = first.with_context(|| self.cannot_read(span))?;
        let more = first.as_ref().and_then(|parcel| parcel.records.first());
        Ok(match more {
            Some(record) if record.log_time().date_naive() <= again.date => anew(),
            _ => (first, parcels, Days(Some(again.date))),
        })
    }

    /// A parcel's records by day, and the offset after them.
    fn stretches(&self, parcel: &Parcel, days: &mut Days) -> (Vec<Stretch>, i64) {
        let mut stretches: Vec<Stretch> = Vec::new();
        for record in &parcel.records {
            let date = days.of(record.log_time());
            if stretches.last().is_none_or(|last| last.date != date) {
                stretches.push(Stretch {
                    date,
                    first_offset: record.offset(),
                    kept: Vec::new(),
                });
            }
            if let (Some(kept), Some(last)) = (self.kept(record), stretches.last_mut()) {
                last.kept.push(kept);
            }
        }
        (stretches, parcel.next_offset)
    }

    /// What is neither of this domain nor of another one on its topic is nobody's, and in the exports of all of them.
    fn kept(&self, record: &LogRecord) -> Option<Kept> {
        let seen = Seen::of(record, &self.registry, true);
        let tenant = match &seen.event {
            Ok((_, domain)) if domain.topic == self.domain.topic && domain.name != self.domain.name => {
                return None;
            }
            Ok((event, _)) => Some(event.tenant.clone()),
            Err(_) => tenant_by_source(record),
        };
        let wanted = self.tenant.is_none() || self.tenant == tenant;
        wanted.then_some(Kept {
            seen,
            tenant,
            became: None,
        })
    }

    /// Finds out what became of those of which that can be known.
    async fn ask(&self, stretches: &mut [Stretch], span: &Span) -> Result<()> {
        let Some(client) = &self.client else {
            return Ok(());
        };
        let all = || stretches.iter().flat_map(|stretch| &stretch.kept);
        let known: Vec<&Seen> = all()
            .map(|kept| &kept.seen)
            .filter(|seen| seen.offset < span.known_to)
            .collect();
        let found = match known.is_empty() {
            true => Vec::new(),
            false => outcomes::of(client, &self.registry, &known)
                .await
                .context("cannot ask Postgres what became of events; start the same command again when it is back, and it goes on")?,
        };
        let mut found = found.into_iter();
        for kept in stretches.iter_mut().flat_map(|stretch| &mut stretch.kept) {
            let asked = kept.seen.offset < span.known_to;
            let became = if asked { found.next() } else { None };
            kept.became = Some(became.unwrap_or(Became::PENDING));
        }
        Ok(())
    }

    fn cannot_read(&self, span: &Span) -> String {
        format!(
            "partition {} of {} cannot be read from offset {} on",
            span.partition,
            self.log.topic(),
            span.from
        )
    }
}

type ReadParcel = Result<Parcel, ProjectorError>;

struct Stretch {
    date: NaiveDate,
    first_offset: i64,
    kept: Vec<Kept>,
}

/// The day of one record after the other.
struct Days(Option<NaiveDate>);

impl Days {
    fn of(&mut self, at: DateTime<Utc>) -> NaiveDate {
        let date = at.date_naive();
        let date = self.0.map_or(date, |latest| latest.max(date));
        self.0 = Some(date);
        date
    }
}

fn tenant_by_source(record: &LogRecord) -> Option<TenantId> {
    let (_, source) = record.headers().find(|(name, _)| *name == "ce_source")?;
    tenant_of(std::str::from_utf8(source?).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_steps_back_counts_to_the_day_of_the_one_before() {
        let at = |text: &str| {
            DateTime::parse_from_rfc3339(text)
                .expect("a time")
                .with_timezone(&Utc)
        };
        let mut days = Days(None);
        let of: Vec<String> = [
            "2026-03-01T23:59:59.999Z",
            "2026-03-02T00:00:00.000Z",
            "2026-03-01T23:59:59.000Z",
            "2026-03-02T00:00:01Z",
            "2026-03-04T10:00:00Z",
        ]
        .iter()
        .map(|text| days.of(at(text)).to_string())
        .collect();
        assert_eq!(
            of,
            [
                "2026-03-01",
                "2026-03-02",
                "2026-03-02",
                "2026-03-02",
                "2026-03-04"
            ]
        );
    }
}
