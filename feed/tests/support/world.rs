//! What a projector would write, without one: a log in memory, events applied in the order of their partition, each
//! with its row, its feed row and the position in one transaction. And the model of it: who sees what by now.

use std::collections::{BTreeMap, VecDeque};

use tidelog_events::ids::Role;
use uuid::Uuid;

use super::{Asker, PREFIX, Stage};

pub const PARTITIONS: usize = 3;
pub const TENANTS: [&str; 2] = ["acme", "other"];
pub const USERS: [&str; 2] = ["ann", "bob"];
pub const DOMAINS: [&str; 5] = ["helpdesk", "attendance", "journal", "journal-media", "metrics"];

/// Seconds since 1970 at which the log begins.
const EPOCH: i64 = 1_800_000_000;

/// A small generator, so that a seed gives the same history everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % n
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub domain: &'static str,
    pub tenant: &'static str,
    pub id: String,
}

/// A record as it is after what was applied.
#[derive(Debug, Clone)]
pub struct Record {
    pub version: i64,
    pub deleted: bool,
    pub owner: String,
    pub audience: Vec<String>,
    pub parent: Option<String>,
}

#[derive(Debug, Clone)]
struct Event {
    key: Key,
    /// What becomes of it: gone, or there with an audience.
    audience: Option<Vec<String>>,
    owner: String,
    parent: Option<String>,
    millis: i64,
}

#[derive(Default)]
pub struct World {
    pub records: BTreeMap<Key, Record>,
    log: BTreeMap<(&'static str, usize), VecDeque<Event>>,
    next: BTreeMap<(&'static str, usize), i64>,
    millis: i64,
}

/// A domain's topic and table, as in its definition.
fn home(domain: &str) -> (&'static str, &'static str) {
    match domain {
        "helpdesk" => ("sync.helpdesk.v1", "helpdesk"),
        "attendance" => ("sync.attendance.v1", "attendance"),
        "journal" => ("sync.journal.v1", "journal"),
        "journal-media" => ("sync.journal.v1", "journal_media"),
        _ => ("telemetry.metrics.v1", "metrics"),
    }
}

fn entity_id(n: usize) -> String {
    Uuid::from_u128(n as u128 * 0x0123_4567_89ab_cdef_0011_2233_4455_6677).to_string()
}

fn partition_of(n: usize) -> usize {
    n * 7 % PARTITIONS
}

/// An SQL literal of an array of texts.
fn array(texts: &[String]) -> String {
    format!(
        "ARRAY[{}]::text[]",
        texts
            .iter()
            .map(|text| format!("'{text}'"))
            .collect::<Vec<_>>()
            .join(",")
    )
}

impl World {
    /// Appends one event of a random kind to the log.
    pub fn append(&mut self, random: &mut Random) {
        self.millis += random.below(3) as i64;
        let domain = DOMAINS[random.below(DOMAINS.len())];
        let tenant = TENANTS[random.below(2)];
        let (n, child) = (random.below(6), random.below(3));
        let (id, parent) = match domain {
            "journal-media" => (entity_id(100 + n * 10 + child), Some(entity_id(n))),
            "metrics" => (format!("phone-{n}/battery%20level/{child}"), None),
            _ => (entity_id(n), None),
        };
        let owner = USERS[random.below(2)].to_owned();
        let mut audience = vec![format!("user:{owner}")];
        match random.below(4) {
            0 => audience.push("*".into()),
            1 => audience.push("role:supervisor".into()),
            2 => audience.push(format!("user:{}", USERS[random.below(2)])),
            _ => {}
        }
        let gone = domain != "metrics" && random.below(4) == 0;
        let event = Event {
            key: Key { domain, tenant, id },
            audience: (!gone).then_some(audience),
            owner,
            parent,
            millis: self.millis,
        };
        self.log
            .entry((home(domain).0, partition_of(n)))
            .or_default()
            .push_back(event);
    }

    /// Applies the next event of one partition; tells whether there was one.
    pub async fn apply(&mut self, stage: &Stage, topic: &'static str, partition: usize) -> bool {
        let Some(event) = self.log.entry((topic, partition)).or_default().pop_front() else {
            return false;
        };
        let next = self.next.entry((topic, partition)).or_default();
        let offset = *next;
        *next += 1;
        let mut sql = String::from("BEGIN;\n");
        self.fold(&event, partition, offset, &mut sql);
        sql.push_str(&self.positions(topic, partition));
        sql.push_str("COMMIT;");
        stage.execute(&sql).await;
        true
    }

    /// Applies a random part of what is left, or all of it.
    pub async fn apply_some(&mut self, stage: &Stage, random: &mut Random, all: bool) {
        for topic in DOMAINS.map(|domain| home(domain).0) {
            for partition in 0..PARTITIONS {
                while (all || random.below(3) > 0) && self.apply(stage, topic, partition).await {}
            }
        }
        let all: String = DOMAINS
            .map(|domain| {
                (0..PARTITIONS)
                    .map(|p| self.positions(home(domain).0, p))
                    .collect::<String>()
            })
            .concat();
        stage.execute(&all).await;
    }

    /// The positions' row of a partition: applied as far as the next event, or now where there is none.
    fn positions(&self, topic: &'static str, partition: usize) -> String {
        let at = (topic, partition);
        let through = self
            .log
            .get(&at)
            .and_then(|log| log.front())
            .map_or(self.millis, |event| event.millis);
        format!(
            "INSERT INTO positions (topic, partition, next_offset, applied_through)
             VALUES ('{PREFIX}{topic}', {partition}, {next}, {through})
             ON CONFLICT (topic, partition) DO UPDATE
             SET next_offset = excluded.next_offset, applied_through = excluded.applied_through;\n",
            next = self.next.get(&at).copied().unwrap_or(0),
            through = instant(through),
        )
    }

    fn fold(&mut self, event: &Event, partition: usize, offset: i64, sql: &mut String) {
        let before = self.records.get(&event.key).cloned();
        let live = before.as_ref().filter(|record| !record.deleted);
        if event.audience.is_none() && live.is_none() {
            return; // Deleting what is not there has no effect.
        }
        let operation = match (&event.audience, live) {
            (None, _) => "delete",
            (Some(_), None) => "create",
            (Some(_), Some(_)) => "update",
        };
        let parent = event.parent.as_ref().map(|parent| Key {
            domain: "journal",
            id: parent.clone(),
            ..event.key
        });
        let inherited = parent.map(|parent| {
            self.records
                .get(&parent)
                .filter(|r| !r.deleted)
                .map_or(Vec::new(), |r| r.audience.clone())
        });
        let audience = match &event.audience {
            None => Vec::new(),
            Some(own) => inherited.unwrap_or_else(|| own.clone()),
        };
        let record = Record {
            version: before.as_ref().map_or(0, |record| record.version) + 1,
            deleted: event.audience.is_none(),
            // An edit never changes the owner.
            owner: before
                .as_ref()
                .map_or(event.owner.clone(), |record| record.owner.clone()),
            audience: audience.clone(),
            parent: event.parent.clone(),
        };
        let place = (partition, offset, event.millis);
        write(sql, &event.key, &record, before.as_ref(), operation, place);
        self.records.insert(event.key.clone(), record);
        if event.key.domain == "journal" {
            self.children(&event.key, &audience, place, sql);
        }
    }

    /// A parent's audience is its children's.
    fn children(&mut self, parent: &Key, audience: &[String], place: (usize, i64, i64), sql: &mut String) {
        for (key, record) in &mut self.records {
            let mine = key.domain == "journal-media" && key.tenant == parent.tenant;
            if mine
                && record.parent.as_ref() == Some(&parent.id)
                && !record.deleted
                && record.audience != audience
            {
                let before = record.clone();
                record.audience = audience.to_vec();
                write(sql, key, record, Some(&before), "audience", place);
            }
        }
    }

    /// What somebody sees of a domain by now: each identity with its version.
    pub fn seen(&self, who: &Asker, domain: &str) -> BTreeMap<String, i64> {
        let tokens = [
            "*".to_owned(),
            format!("user:{}", who.user),
            format!("role:{}", who.role.as_str()),
        ];
        let sees = |record: &Record| match domain {
            "helpdesk" => true,
            "attendance" => record.owner == who.user,
            "metrics" => record.owner == who.user || who.role != Role::User,
            _ => record.audience.iter().any(|entry| tokens.contains(entry)),
        };
        self.records
            .iter()
            .filter(|(key, record)| {
                key.domain == domain && key.tenant == who.tenant && !record.deleted && sees(record)
            })
            .map(|(key, record)| (key.id.clone(), record.version))
            .collect()
    }
}

fn instant(millis: i64) -> String {
    format!(
        "timestamptz 'epoch' + interval '{} seconds' + interval '{millis} milliseconds'",
        EPOCH
    )
}

fn write(
    sql: &mut String,
    key: &Key,
    record: &Record,
    before: Option<&Record>,
    operation: &str,
    (partition, offset, millis): (usize, i64, i64),
) {
    let (_, table) = home(key.domain);
    let id = if key.domain == "metrics" {
        "item_id"
    } else {
        "mobile_id"
    };
    let (tenant, subject, version) = (key.tenant, &key.id, record.version);
    let (deleted, owner) = (record.deleted, &record.owner);
    let doc = if deleted {
        "{}".to_owned()
    } else {
        format!(r#"{{"v":{version},"priority":"HIGH"}}"#)
    };
    let at = instant(millis);
    let [
        mut columns,
        mut values,
        mut feed_columns,
        mut feed_values,
        mut set,
    ] = [const { String::new() }; 5];
    let mut unique = format!("tenant_id, {id}");
    if let Some(parent) = &record.parent {
        columns.push_str(", parent_id");
        values.push_str(&format!(", '{parent}'"));
        unique.push_str(", parent_id");
    }
    feed_columns.push_str(&columns);
    feed_values.push_str(&values);
    if key.domain.starts_with("journal") {
        columns.push_str(", audience");
        values.push_str(&format!(", {}", array(&record.audience)));
        set.push_str(", audience = excluded.audience");
        let earlier = before.map_or("NULL".to_owned(), |record| array(&record.audience));
        feed_columns.push_str(", audience_before, audience");
        feed_values.push_str(&format!(", {earlier}, {}", array(&record.audience)));
    }
    sql.push_str(&format!(
        r#"INSERT INTO {table} (tenant_id, {id}, version, deleted, doc, last_sync_timestamp, updated_at, created_at,
               owner_id, user_id, device_id, run_from, ahead_base, partition, "offset"{columns})
           VALUES ('{tenant}', '{subject}', {version}, {deleted}, '{doc}', {at}, {at}, {at},
               '{owner}', '{owner}', 'phone-1', 0, 0, {partition}, {offset}{values})
           ON CONFLICT ({unique}) DO UPDATE
           SET version = excluded.version, deleted = excluded.deleted, doc = excluded.doc,
               last_sync_timestamp = excluded.last_sync_timestamp, partition = excluded.partition,
               "offset" = excluded."offset"{set};
           INSERT INTO {table}_changes (tenant_id, partition, "offset", {id}, version, operation, fields, changed_at,
               item_time, user_id, device_id, batch_id, batch_index, base_version, item_hash{feed_columns})
           VALUES ('{tenant}', {partition}, {offset}, '{subject}', {version}, '{operation}', '{{}}', {at},
               {at}, '{owner}', 'phone-1', '{nil}', 0, 0, '{nil}'{feed_values});
"#,
        nil = Uuid::nil(),
    ));
}
