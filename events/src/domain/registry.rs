//! All domains of a deployment: the ones that ship and those of a user's folder. Finds them by URL, topic or entity
//! type, and refuses two that would get in each other's way. The files of a user's folder are read by the caller.

use super::{Defect, Domain, parse};
use chrono::TimeDelta;
use std::sync::Arc;

/// The definitions that ship.
const SHIPPED: [(&str, &str); 10] = [
    ("activity.toml", include_str!("../../definitions/activity.toml")),
    (
        "work-orders.toml",
        include_str!("../../definitions/work-orders.toml"),
    ),
    (
        "attendance.toml",
        include_str!("../../definitions/attendance.toml"),
    ),
    ("helpdesk.toml", include_str!("../../definitions/helpdesk.toml")),
    ("journal.toml", include_str!("../../definitions/journal.toml")),
    (
        "journal-media.toml",
        include_str!("../../definitions/journal-media.toml"),
    ),
    ("voice.toml", include_str!("../../definitions/voice.toml")),
    (
        "behavioral.toml",
        include_str!("../../definitions/behavioral.toml"),
    ),
    ("sessions.toml", include_str!("../../definitions/sessions.toml")),
    ("metrics.toml", include_str!("../../definitions/metrics.toml")),
];

/// First parts of paths that are the service's own.
const OWN_PATHS: [&str; 3] = ["sync", "conflicts", "settings"];

/// Tables that are the service's own.
const OWN_TABLES: [&str; 10] = [
    "audit",
    "outcomes",
    "conflicts",
    "positions",
    "batches",
    "idempotency_records",
    "dead_letters",
    "devices",
    "uploads",
    "refinery_schema_history",
];

/// Why a set of definitions cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// One file has defects.
    #[error("{file}:\n{}", .defects.iter().map(|d| format!("  {d}")).collect::<Vec<_>>().join("\n"))]
    Defects {
        /// The file's name.
        file: String,
        /// All that is wrong.
        defects: Vec<Defect>,
    },
    /// Two files, or a file and the service, claim one name.
    #[error("{file}: {message}")]
    Clash {
        /// The later file.
        file: String,
        /// What clashes.
        message: String,
    },
}

/// The domains of a deployment.
#[derive(Debug, Clone)]
pub struct Registry {
    domains: Vec<Arc<Domain>>,
}

impl Registry {
    /// The domains that ship.
    pub fn shipped() -> Registry {
        // The shipped files are compiled in and a test parses them, so this cannot fail at run time.
        Self::with(&[]).expect("the shipped definitions are valid")
    }

    /// The domains that ship and a user's own, as (file name, text).
    pub fn with(own: &[(String, String)]) -> Result<Registry, RegistryError> {
        let mut registry = Registry { domains: Vec::new() };
        let shipped = SHIPPED.iter().map(|(file, text)| (*file, *text));
        for (file, text) in shipped.chain(own.iter().map(|(file, text)| (file.as_str(), text.as_str()))) {
            let domain = parse(text).map_err(|defects| RegistryError::Defects {
                file: file.to_owned(),
                defects,
            })?;
            registry.admit(domain).map_err(|message| RegistryError::Clash {
                file: file.to_owned(),
                message,
            })?;
        }
        Ok(registry)
    }

    /// The same domains, for one thread among several: those who fold count who holds a domain, and where all count at one place
    /// they wait for each other.
    pub fn apart(&self) -> Registry {
        let apart = self.domains.iter().map(|domain| {
            Arc::new(Domain {
                table: Arc::from(&*domain.table),
                ..(**domain).clone()
            })
        });
        Registry {
            domains: apart.collect(),
        }
    }

    fn admit(&mut self, domain: Domain) -> Result<(), String> {
        if OWN_TABLES.contains(&&*domain.table) {
            return Err(format!(
                "the table {:?} is the service's own; choose another",
                domain.table
            ));
        }
        if OWN_PATHS.contains(&domain.name.as_str()) {
            return Err(format!(
                "{:?} is a path of the service's own; choose another domain name",
                domain.name
            ));
        }
        let parent_topic = match &domain.parent {
            None => None,
            Some(parent) => {
                let found = self
                    .by_name(&parent.domain)
                    .filter(|found| found.is_entity() && found.parent.is_none());
                let Some(found) = found else {
                    return Err(format!(
                        "parent.domain {:?} is no entity domain without a parent that is known before this one",
                        parent.domain
                    ));
                };
                if found.topic != domain.topic {
                    return Err(format!("a child shares its parent's topic, {:?}", found.topic));
                }
                Some(found.topic.clone())
            }
        };
        for other in &self.domains {
            let same = |a: &str, b: &str| a == b;
            if same(&other.name, &domain.name) {
                return Err(format!("there is a domain {:?} already", domain.name));
            }
            if same(&other.table, &domain.table)
                || same(&other.changes_table(), &domain.table)
                || same(&other.table, &domain.changes_table())
            {
                return Err(format!(
                    "the table {:?} is taken by the domain {:?}",
                    domain.table, other.name
                ));
            }
            if same(&other.topic, &domain.topic) && parent_topic.as_deref() != Some(other.topic.as_str()) {
                return Err(format!(
                    "the topic {:?} is taken by the domain {:?}",
                    domain.topic, other.name
                ));
            }
            if domain.entity_type.is_some() && other.entity_type == domain.entity_type {
                return Err(format!("the entity_type is taken by the domain {:?}", other.name));
            }
        }
        self.domains.push(Arc::new(domain));
        Ok(())
    }

    /// Every domain.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Domain>> {
        self.domains.iter()
    }

    /// By the name in URLs.
    pub fn by_name(&self, name: &str) -> Option<&Arc<Domain>> {
        self.domains.iter().find(|domain| domain.name == name)
    }

    /// By table, as the type of an event names it.
    pub fn by_table(&self, table: &str) -> Option<&Arc<Domain>> {
        self.domains.iter().find(|domain| *domain.table == *table)
    }

    /// By the entity type of a mixed batch.
    pub fn by_entity_type(&self, entity_type: &str) -> Option<&Arc<Domain>> {
        self.domains
            .iter()
            .find(|domain| domain.entity_type.as_deref() == Some(entity_type))
    }

    /// The topics, each once, without a deployment's prefix.
    pub fn topics(&self) -> Vec<&str> {
        let mut topics: Vec<&str> = self.domains.iter().map(|domain| domain.topic.as_str()).collect();
        topics.sort_unstable();
        topics.dedup();
        topics
    }

    /// How long what happened on a topic has to be kept: as long as the domain on it that looks back furthest; none for ever.
    pub fn history_of(&self, topic: &str) -> Option<TimeDelta> {
        let of_topic = self.domains.iter().filter(|domain| domain.topic == topic);
        let each: Option<Vec<TimeDelta>> = of_topic.map(|domain| domain.history).collect();
        each?.into_iter().max()
    }

    /// The domains on a topic, the parent first.
    pub fn on_topic(&self, topic: &str) -> Vec<Arc<Domain>> {
        self.domains
            .iter()
            .filter(|domain| domain.topic == topic)
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_definitions_hold() {
        let registry = Registry::with(&[]).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(registry.iter().count(), 10);
        assert_eq!(registry.topics().len(), 9);
        assert_eq!(registry.on_topic("sync.journal.v1").len(), 2);
    }

    #[test]
    fn a_topic_keeps_what_the_domain_on_it_needs_that_looks_back_furthest() {
        let parent = "domain = \"plans\"\nkind = \"entity\"\ntopic = \"sync.plans.v1\"\nhistory = \"30d\"\n[fields]\nnote = { type = \"string\" }\n";
        let child = "domain = \"steps\"\nkind = \"entity\"\ntopic = \"sync.plans.v1\"\nhistory = \"400d\"\n[parent]\ndomain = \"plans\"\nfield = \"plan\"\n\
                     [fields]\nplan = { type = \"uuid\" }\n";
        let of = |child: &str| {
            let own = [
                ("plans.toml".into(), parent.to_owned()),
                ("steps.toml".into(), child.to_owned()),
            ];
            Registry::with(&own)
                .expect("definitions")
                .history_of("sync.plans.v1")
        };
        assert_eq!(of(child), Some(TimeDelta::days(400)));
        assert_eq!(of(&child.replace("history = \"400d\"\n", "")), None);
        assert_eq!(Registry::shipped().history_of("sync.helpdesk.v1"), None);
        for bad in ["6d", "36501d", "400", "d", "0s", "-8d", "9h", ""] {
            let text = parent.replace("30d", bad);
            assert!(Registry::with(&[("plans.toml".into(), text)]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn two_domains_cannot_share_a_topic() {
        let own = "domain = \"inspections\"\nkind = \"entity\"\ntopic = \"sync.helpdesk.v1\"\n[fields]\nnote = { type = \"string\" }\n";
        let error = Registry::with(&[("inspections.toml".into(), own.into())]).expect_err("a clash");
        assert!(
            error.to_string().contains("taken by the domain \"helpdesk\""),
            "{error}"
        );
    }

    #[test]
    fn defects_name_their_line() {
        let own = "domain = \"inspections\"\nkind = \"entity\"\ntopic = \"sync.inspections.v1\"\nfilters = [\"grade\"]\n\n[status]\nfield = \"state\"\ninitial = \"open\"\ntransitions = { open = [\"shut\"] }\n\n[fields]\nstate = { type = \"enum\", values = [\"open\", \"closed\"] }\nscore = { type = \"interger\" }\n";
        let Err(RegistryError::Defects { defects, .. }) = Registry::with(&[("x".into(), own.into())]) else {
            panic!("defects")
        };
        let lines: Vec<usize> = defects.iter().map(|defect| defect.line).collect();
        assert_eq!(lines, [4, 9, 13], "{defects:?}");
    }
}
