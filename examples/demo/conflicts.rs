//! Two people change one ticket offline, under the two policies that lose nothing: one that merges, field by field, and one
//! that lets a person decide.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::phone::{Answer, Phone};
use crate::show::{Show, tell};
use crate::tickets::{self, Item};

/// Events that these steps append.
pub(crate) const EVENTS: usize = 5;

/// Who takes part: two phones, an operator and a supervisor of their tenant.
pub(crate) struct People<'a> {
    pub(crate) asha: &'a Phone,
    pub(crate) boris: &'a Phone,
    pub(crate) operator: Phone,
    pub(crate) supervisor: Phone,
}

impl People<'_> {
    async fn set_policy(&self, show: &mut Show, policy: &str) -> Result<()> {
        let wanted = json!({"domains": {"helpdesk": {"policy": policy}}});
        let set = self
            .operator
            .put("/api/v1/settings/sync", &wanted.to_string())
            .await?;
        show.check("the settings are taken", set.status, 200)
            .with_context(|| set.whole())?;
        show.check(
            "the policy in force",
            &set.json["effective"]["domains"]["helpdesk"]["policy"],
            policy,
        )?;
        tell(&format!("PUT /api/v1/settings/sync {wanted}"));
        Ok(())
    }

    /// Boris is online, Asha is not: both change the ticket as they know it. Answers what Asha is told afterwards.
    async fn both_change(
        &self,
        show: &mut Show,
        ticket: &Item,
        version: i64,
        boris: &[(&str, &str)],
        asha: &[(&str, &str)],
    ) -> Result<Value> {
        let change = async |phone: &Phone, members| {
            let change = tickets::change(&ticket.id, version, members);
            phone.post(&format!("demo-{}", Uuid::new_v4()), &[change]).await
        };
        let first = change(self.boris, boris).await?;
        show.check("Boris's change is applied", first.list("synced_items").len(), 1)
            .with_context(|| first.whole())?;
        let second = change(self.asha, asha).await?;
        show.check("Asha's is a conflict", second.list("conflicts").len(), 1)
            .with_context(|| second.whole())?;
        Ok(second.list("conflicts")[0].clone())
    }

    async fn record(&self, show: &mut Show, phone: &Phone, id: &str) -> Result<Answer> {
        let record = phone.get(&format!("/api/v1/helpdesk/records/{id}")).await?;
        show.check("the record is there", record.status, 200)
            .with_context(|| record.whole())?;
        Ok(record)
    }
}

/// A ticket that both know at `version`: Boris sets its priority, Asha writes a comment, and both stand.
pub(crate) async fn merged(show: &mut Show, people: &People<'_>, ticket: &Item, version: i64) -> Result<()> {
    show.step("The tenant chooses `merge`; then both phones change one ticket, each another field");
    people.set_policy(show, "merge").await?;
    let asha = [("comments", "Asha: the spare part is here")];
    let told = people
        .both_change(show, ticket, version, &[("priority", "MEDIUM")], &asha)
        .await?;
    show.check("decided by", &told["resolution"], "merge")?;
    show.check("whose state stands", &told["winner"], "merged")?;
    let record = people.record(show, people.boris, &ticket.id).await?;
    show.check("Boris's priority", &record.json["priority"], "MEDIUM")?;
    show.check("Asha's comment", &record.json["comments"], asha[0].1)?;
    show.check("the version", &record.json["version"], version + 2)?;
    tell(&format!(
        "version {}: Boris's priority {} and Asha's words {} both stand",
        record.json["version"], record.json["priority"], record.json["comments"]
    ));
    Ok(())
}

/// A ticket that both know at `version`: both set its priority, and a supervisor decides.
pub(crate) async fn decided(show: &mut Show, people: &People<'_>, ticket: &Item, version: i64) -> Result<()> {
    show.step(
        "The tenant chooses `manual`; both phones change the same field, and the conflict waits for a person",
    );
    people.set_policy(show, "manual").await?;
    let told = people
        .both_change(
            show,
            ticket,
            version,
            &[("priority", "LOW")],
            &[("priority", "MEDIUM")],
        )
        .await?;
    show.check("decided by", &told["resolution"], "manual")?;
    show.check("whose state stands", &told["winner"], "none")?;
    let id = told["conflict_id"].as_str().context("a conflict has an id")?;
    let open = people.supervisor.get("/api/v1/conflicts?status=open").await?;
    show.check("what waits", open.list("items").len(), 1)
        .with_context(|| open.whole())?;
    show.check("it is Asha's", &open.list("items")[0]["conflict_id"], id)?;
    tell(&format!(
        "nothing of Asha's is applied yet; conflict {id} waits, with both sides kept"
    ));

    show.step("A supervisor decides: the phone was right (POST /api/v1/conflicts/{id}/resolve)");
    let path = format!("/api/v1/conflicts/{id}/resolve");
    let decision = json!({"strategy": "client_wins"}).to_string();
    let resolved = people.supervisor.post_to(&path, &decision).await?;
    show.check("the decision is taken", resolved.status, 200)
        .with_context(|| resolved.whole())?;
    show.check("whose state stands", &resolved.json["winner"], "client")?;
    show.check("the version", &resolved.json["server_version"], version + 2)?;
    let again = people.supervisor.post_to(&path, &decision).await?;
    show.check("deciding twice is refused", again.status, 409)
        .with_context(|| again.whole())?;
    let record = people.record(show, people.boris, &ticket.id).await?;
    show.check("Boris sees Asha's priority", &record.json["priority"], "MEDIUM")?;
    tell(&format!(
        "version {} says {}; a second decision is told who made the first: {}",
        record.json["version"], record.json["priority"], again.json["detail"]
    ));
    Ok(())
}
