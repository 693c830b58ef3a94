//! Which dead letters a command is about: places, or filters, and never more than a limit. What is done with them is the
//! command's to say.

use anyhow::Result;
use chrono::{DateTime, Utc};
use clap::{Args, ValueEnum};
use serde::Serialize;
use tidelog_events::domain::Registry;
use tidelog_events::envelope::sources_of;
use tidelog_events::ids::TenantId;
use tidelog_events::topic_name;
use tokio_postgres::{GenericClient, Row};

use super::letter::LetterPlace;
use crate::database::plain;
use crate::domains;
use crate::guard_rails::Refused;
use crate::moment::moment;

/// Which letters, by what they are.
#[derive(Args, Clone, Debug, Default, Serialize)]
pub(super) struct Filters {
    /// Of this topic, with the deployment's prefix
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) topic: Option<String>,
    /// Of the topic of this domain
    #[arg(long, value_name = "NAME", conflicts_with = "topic")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) domain: Option<String>,
    /// Of this tenant, by what the letters say themselves
    #[arg(long, value_parser = |text: &str| TenantId::parse(text))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tenant: Option<TenantId>,
    /// Logged no earlier than this: RFC 3339, or how long ago, like 24h
    #[arg(long, value_name = "TIME", value_parser = moment)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) since: Option<DateTime<Utc>>,
}

/// Which letters an action is about.
#[derive(Args, Clone, Debug, Serialize)]
pub(super) struct Chosen {
    /// Letters by their places, topic/partition/offset
    #[arg(value_name = "PLACE", conflicts_with_all = ["topic", "domain", "tenant", "since"])]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) places: Vec<LetterPlace>,
    #[command(flatten)]
    #[serde(flatten)]
    pub(super) filters: Filters,
    /// Most letters at once, the earliest of each partition first
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..=1000))]
    pub(super) limit: i64,
}

/// What has become of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Status {
    /// Nobody has dealt with them
    Open,
    /// Appended again
    Retried,
    /// Given up
    Dropped,
    /// Any of these
    All,
}

impl Status {
    fn as_str(self) -> Option<&'static str> {
        match self {
            Status::Open => Some("open"),
            Status::Retried => Some("retried"),
            Status::Dropped => Some("dropped"),
            Status::All => None,
        }
    }
}

impl Filters {
    /// A page of letters in the order of their places: `columns` of each, which begin with the three of its place.
    /// Answers one more than `limit` where there are more.
    pub(super) async fn page(
        &self,
        client: &impl GenericClient,
        (registry, prefix): (&Registry, &str),
        status: Status,
        after: Option<&LetterPlace>,
        (columns, limit): (&str, i64),
    ) -> Result<Vec<Row>> {
        let topic = self.full_topic(registry, prefix)?;
        let tenant = self.tenant.as_ref().map(TenantId::as_str);
        let sources = self.tenant.as_ref().map(sources_of);
        let (status, limit) = (status.as_str(), limit + 1);
        let (after_topic, after_partition, after_offset) = match after {
            Some(place) => (Some(&place.topic), place.partition, place.offset),
            None => (None, 0, 0),
        };
        let sql = format!(
            "SELECT topic, partition, \"offset\"{columns} FROM dead_letters
             WHERE ($1::text IS NULL OR topic = $1) AND ($2::text IS NULL OR status = $2)
               AND ($3::timestamptz IS NULL OR logged_at >= $3)
               AND ($4::text IS NULL OR coalesce(tenant_id = $4, EXISTS (
                    SELECT FROM jsonb_array_elements(headers) header
                    WHERE header ->> 0 = 'ce_source' AND starts_with(header ->> 1, $5))))
               AND ($6::text IS NULL OR (topic, partition, \"offset\") > ($6, $7, $8))
             ORDER BY topic, partition, \"offset\" LIMIT $9"
        );
        client
            .query(
                &sql,
                &[
                    &topic,
                    &status,
                    &self.since,
                    &tenant,
                    &sources,
                    &after_topic,
                    &after_partition,
                    &after_offset,
                    &limit,
                ],
            )
            .await
            .map_err(plain)
    }

    fn full_topic(&self, registry: &Registry, prefix: &str) -> Result<Option<String>> {
        let Some(name) = &self.domain else {
            return Ok(self.topic.clone());
        };
        Ok(Some(topic_name(prefix, &domains::named(registry, name)?.topic)))
    }

    fn is_empty(&self) -> bool {
        self.topic.is_none() && self.domain.is_none() && self.tenant.is_none() && self.since.is_none()
    }
}

impl Chosen {
    /// Refuses a command that would be about everything.
    pub(super) fn check(&self) -> Result<()> {
        if self.places.is_empty() && self.filters.is_empty() {
            let flags = "their places, or --topic, --domain, --tenant or --since";
            return Err(Refused::Unnamed(format!("say which letters: give {flags}")).into());
        }
        Ok(())
    }

    /// The places: those that were given, or those of the open letters that the filters find. Each once, in the order of
    /// the log. Answers besides whether there are more than the limit.
    pub(super) async fn find(
        &self,
        client: &impl GenericClient,
        registry: &Registry,
        prefix: &str,
    ) -> Result<(Vec<LetterPlace>, bool)> {
        // The limit is at most a thousand.
        let limit = self.limit as usize;
        let mut places = self.places.clone();
        if places.is_empty() {
            let which = (registry, prefix);
            let rows = self
                .filters
                .page(client, which, Status::Open, None, ("", self.limit))
                .await?;
            places = rows.iter().map(place).collect();
        }
        places.sort();
        places.dedup();
        let more = places.len() > limit;
        places.truncate(limit);
        Ok((places, more))
    }
}

/// The place that a row begins with.
pub(super) fn place(row: &Row) -> LetterPlace {
    LetterPlace {
        topic: row.get(0),
        partition: row.get(1),
        offset: row.get(2),
    }
}
