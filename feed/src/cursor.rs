//! The cursor: where a reader stands in each partition of a domain's feed, and, during a first sync, how far its walk
//! over the rows has come. Opaque to clients and bound to tenant and domain. What one says is never believed beyond
//! its shape: it only chooses where to read on, and every read checks for itself what the caller may see.

use serde::{Deserialize, Serialize};
use tidelog_events::ids::TenantId;
use tidelog_events::token::{self, TokenError};
use uuid::Uuid;

/// More partitions than a topic has anywhere; a cursor that names more is none of ours.
const MAX_PARTITIONS: usize = 10_000;

/// A place in one partition of the feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spot {
    /// The partition.
    #[serde(rename = "p")]
    pub(crate) partition: i32,
    /// The next offset to read.
    #[serde(rename = "o")]
    pub(crate) next: i64,
    /// Of the rows at that offset, the last one read: where one event changes many records (a parent's visibility
    /// does its children's), a page may end between them.
    #[serde(rename = "i", default, skip_serializing_if = "Option::is_none")]
    pub(crate) after: Option<Uuid>,
}

/// The last row that a walk has passed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Passed {
    /// Its identity.
    #[serde(rename = "i")]
    pub(crate) id: String,
    /// Its parent's, in a domain of children.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub(crate) parent: Option<Uuid>,
}

/// Where a reader goes on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// A place in each partition; one that is missing is read from its start.
    #[serde(rename = "f")]
    pub(crate) feed: Vec<Spot>,
    /// While the walk of a first sync goes on: after which row.
    #[serde(rename = "w", default, skip_serializing_if = "Option::is_none")]
    pub(crate) walk: Option<Passed>,
    /// More follows after the page that it ended: who stands here does not hold what there is up to here, since a record
    /// that changed again is told with its last change only.
    #[serde(rename = "m", default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) more: bool,
}

impl Cursor {
    /// The text that the client keeps.
    pub fn seal(&self, tenant: &TenantId, domain: &str) -> String {
        token::seal(&["cursor", tenant.as_str(), domain], self)
    }

    /// Reads a cursor of that tenant and domain. `uuids` tells whether the domain's identities are UUIDs.
    pub fn open(text: &str, tenant: &TenantId, domain: &str, uuids: bool) -> Result<Cursor, TokenError> {
        let cursor: Cursor = token::open(&["cursor", tenant.as_str(), domain], text)?;
        let spots = cursor
            .feed
            .iter()
            .all(|spot| spot.partition >= 0 && spot.next >= 0);
        let walk = cursor.walk.as_ref().is_none_or(|passed| match uuids {
            true => Uuid::try_parse(&passed.id).is_ok(),
            false => !passed.id.contains('\0'),
        });
        match spots && walk && cursor.feed.len() <= MAX_PARTITIONS {
            true => Ok(cursor),
            false => Err(TokenError::NotOurs),
        }
    }

    /// The place in a partition, made at its start where there was none.
    pub(crate) fn spot(&mut self, partition: i32) -> &mut Spot {
        let at = match self.feed.iter().position(|spot| spot.partition == partition) {
            Some(at) => at,
            None => {
                self.feed.push(Spot {
                    partition,
                    next: 0,
                    after: None,
                });
                self.feed.len() - 1
            }
        };
        &mut self.feed[at]
    }

    /// The next offset to read in a partition.
    pub(crate) fn next_in(&self, partition: i32) -> i64 {
        let spot = self.feed.iter().find(|spot| spot.partition == partition);
        spot.map_or(0, |spot| spot.next)
    }

    /// Moves to what was applied, where that is further on: nothing of this domain lies between.
    pub(crate) fn advance(&mut self, partition: i32, applied: i64) {
        let spot = self.spot(partition);
        if applied > spot.next {
            *spot = Spot {
                partition,
                next: applied,
                after: None,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::parse(name).expect("a tenant")
    }

    #[test]
    fn a_cursor_opens_for_its_tenant_and_domain_alone() {
        let mut cursor = Cursor {
            walk: Some(Passed {
                id: Uuid::nil().to_string(),
                parent: None,
            }),
            ..Cursor::default()
        };
        cursor.advance(3, 17);
        cursor.spot(0).after = Some(Uuid::max());
        let text = cursor.seal(&tenant("acme"), "helpdesk");
        assert_eq!(Cursor::open(&text, &tenant("acme"), "helpdesk", true), Ok(cursor));
        for (who, domain) in [("other", "helpdesk"), ("acme", "activity")] {
            assert_eq!(
                Cursor::open(&text, &tenant(who), domain, true),
                Err(TokenError::NotOurs)
            );
        }
        assert!(Cursor::open("null", &tenant("acme"), "helpdesk", true).is_err());
    }

    #[test]
    fn a_forged_cursor_of_another_shape_is_refused() {
        let forged = |cursor: Cursor| Cursor::open(&cursor.seal(&tenant("a"), "d"), &tenant("a"), "d", true);
        let walk = Some(Passed {
            id: "no uuid".into(),
            parent: None,
        });
        assert!(
            forged(Cursor {
                walk,
                ..Cursor::default()
            })
            .is_err()
        );
        let feed = vec![Spot {
            partition: 0,
            next: -1,
            after: None,
        }];
        assert!(
            forged(Cursor {
                feed,
                ..Cursor::default()
            })
            .is_err()
        );
    }

    #[test]
    fn a_place_never_moves_back() {
        let mut cursor = Cursor::default();
        cursor.advance(0, 5);
        cursor.advance(0, 3);
        assert_eq!(
            cursor.feed,
            [Spot {
                partition: 0,
                next: 5,
                after: None
            }]
        );
    }
}
