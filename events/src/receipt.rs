//! The receipt of a batch: which batch it was and where its records lie in the log. It holds everything that a reader
//! needs to know whether the batch has been applied, so it resolves even where the gateway could write nothing down.

use crate::batch::BatchId;
use crate::ids::TenantId;
use crate::position::{Appended, TopicPartition};
use crate::token::{self, TokenError};
use serde::{Deserialize, Serialize};

/// What a receipt says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The batch.
    pub batch: BatchId,
    /// How many of its items were appended; the others were refused at once.
    pub appended_items: u32,
    /// Where they lie.
    pub appended: Appended,
    /// What it was posted to ([`Target::in_receipt`](crate::target::Target::in_receipt)); none for a domain, unless it has no items.
    pub target: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Wire {
    b: BatchId,
    n: u32,
    p: Vec<(String, i32, i64)>,
    #[serde(rename = "to", default, skip_serializing_if = "Option::is_none")]
    target: Option<String>,
}

impl Receipt {
    /// The text that the phone keeps.
    pub fn seal(&self, tenant: &TenantId) -> String {
        let places = self
            .appended
            .iter()
            .map(|(at, last)| (at.topic.clone(), at.partition, last))
            .collect();
        token::seal(
            &["receipt", tenant.as_str()],
            &Wire {
                b: self.batch,
                n: self.appended_items,
                p: places,
                target: self.target.clone(),
            },
        )
    }

    /// Reads a receipt of that tenant.
    pub fn open(text: &str, tenant: &TenantId) -> Result<Receipt, TokenError> {
        let wire: Wire = token::open(&["receipt", tenant.as_str()], text)?;
        let mut appended = Appended::default();
        for (topic, partition, last) in wire.p {
            appended.note(TopicPartition { topic, partition }, last);
        }
        Ok(Receipt {
            batch: wire.b,
            appended_items: wire.n,
            appended,
            target: wire.target,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use uuid::Uuid;

    fn receipt(target: Option<&str>) -> Receipt {
        let mut appended = Appended::default();
        let (topic, partition) = ("sync.helpdesk.v1".to_owned(), 2);
        appended.note(TopicPartition { topic, partition }, 7);
        Receipt {
            batch: BatchId(Uuid::nil()),
            appended_items: 1,
            appended,
            target: target.map(str::to_owned),
        }
    }

    #[test]
    fn a_receipt_says_what_it_was_posted_to_and_opens_for_its_tenant_alone() {
        let (acme, other) = (
            TenantId::parse("acme").expect("tenant"),
            TenantId::parse("other").expect("tenant"),
        );
        for target in [None, Some("sync"), Some("conflicts")] {
            let sealed = receipt(target).seal(&acme);
            assert_eq!(Receipt::open(&sealed, &acme), Ok(receipt(target)));
            assert_eq!(Receipt::open(&sealed, &other), Err(TokenError::NotOurs));
        }
    }

    #[test]
    fn a_domains_receipt_is_what_it_was_before_there_were_others() {
        let acme = TenantId::parse("acme").expect("tenant");
        let before = json!({"b": Uuid::nil(), "n": 1, "p": [["sync.helpdesk.v1", 2, 7]]});
        let before = token::seal(&["receipt", "acme"], &before);
        assert_eq!(Receipt::open(&before, &acme), Ok(receipt(None)));
        assert_eq!(receipt(None).seal(&acme), before);
    }
}
