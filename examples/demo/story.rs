//! What happens, step by step. Each step says what it does, does it as a client would, and checks what came back.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::analyst;
use crate::conflicts::{self, People};
use crate::phone::{Answer, Phone};
use crate::service::Service;
use crate::show::{Show, millis, rate, tell};
use crate::tickets::{self, Item};

const TOPIC: &str = "sync.helpdesk.v1";
const CHANGES: usize = 5;

/// An event that the analyst should find.
struct Sent {
    item: Item,
    by: (&'static str, &'static str),
    operation: &'static str,
    base: i64,
    /// `<batch id>/<index>`.
    batch: String,
}

/// Plays all of it.
pub(crate) async fn play(show: &mut Show, service: &mut Service) -> Result<()> {
    show.step("Everything starts: Kafka, Postgres, gateway and projectors (`tidelog dev`)");
    service.ready().await?;
    let url = service.env("TIDELOG_URL")?.to_owned();
    let before = service.status().await?;
    let applied_before = before["applied"].as_i64().context("status has no `applied`")?;
    // A new tenant each time: what earlier runs left stays, unseen.
    let tenant = format!("demo-{}", &Uuid::new_v4().simple().to_string()[..8]);
    let earlier = match applied_before {
        0 => "a log that is empty yet".to_owned(),
        records => format!("a log that keeps {records} records of earlier runs"),
    };
    tell(&format!("ready on {url}, with {earlier}"));
    let asha = Phone::new(
        "asha",
        "phone-a",
        &url,
        service.token(&tenant, "asha", "phone-a").await?,
    );
    let boris = Phone::new(
        "boris",
        "phone-b",
        &url,
        service.token(&tenant, "boris", "phone-b").await?,
    );
    tell(&format!(
        "phone A is Asha's, phone B is Boris's, both of tenant {tenant}"
    ));

    let tickets = tickets::hundred(asha.user);
    let first = post_hundred(show, &asha, &tickets).await?;
    let good = post_mixed(show, &asha).await?;
    let all: Vec<&Item> = tickets.iter().chain(&good).collect();
    let cursor = pull_all(show, &asha, &boris, &all).await?;

    let chosen: Vec<&Item> = tickets
        .iter()
        .filter(|t| t.member("priority") == "HIGH")
        .take(CHANGES)
        .collect();
    let (changes, second) = change_five(show, &boris, &chosen).await?;
    let stale = tickets::change(
        &chosen[0].id,
        1,
        &[
            ("priority", "LOW"),
            ("status", "NEW"),
            ("comments", "Asha: this can wait until Monday"),
        ],
    );
    let (third, conflict_id) = conflict(show, &asha, &stale).await?;
    attempt_is_kept(show, service, &conflict_id, &stale).await?;
    catch_up(show, &asha, &cursor, &changes, &stale).await?;

    let index = tickets
        .iter()
        .position(|ticket| ticket.id == stale.id)
        .unwrap_or_default();
    let sent = |item: &Item, by: &Phone, operation, base, answer: &Answer, index: usize| Sent {
        item: item.clone(),
        by: (by.user, by.device),
        operation,
        base,
        batch: format!("{}/{index}", answer.text("batch_id")),
    };
    let events = [
        sent(&tickets[index], &asha, "create", 0, &first, index),
        sent(&changes[0], &boris, "update", 1, &second, 0),
        sent(&stale, &asha, "update", 1, &third, 0),
    ];
    let posted = all.len() + changes.len() + 1;
    analyse(
        show,
        service.env("TIDELOG_KAFKA_BROKERS")?,
        &tenant,
        &events,
        posted,
    )
    .await?;
    let desk = async |user, role| {
        let token = service.token_as(&tenant, user, role).await?;
        anyhow::Ok(Phone::new(user, "desk", &url, token))
    };
    let people = People {
        asha: &asha,
        boris: &boris,
        operator: desk("olga", "operator").await?,
        supervisor: desk("sue", "supervisor").await?,
    };
    let mut untouched = tickets
        .iter()
        .filter(|t| t.member("priority") == "HIGH")
        .skip(CHANGES);
    let (one, other) = untouched
        .next()
        .zip(untouched.next())
        .context("more urgent tickets")?;
    conflicts::merged(show, &people, one, 1).await?;
    conflicts::decided(show, &people, other, 1).await?;
    no_lag(show, service, applied_before, posted + conflicts::EVENTS).await?;

    show.step("Everything stops; the data stays for the next run");
    service.stop().await
}

async fn post_hundred(show: &mut Show, phone: &Phone, items: &[Item]) -> Result<Answer> {
    show.step("Phone A comes online and posts the 100 tickets that it made offline");
    let key = format!("demo-{}", Uuid::new_v4());
    let answer = phone.post(&key, items).await?;
    succeeded(show, &answer, 200)?;
    show.check("the first time is no replay", answer.replayed.as_deref(), None)?;
    all_synced(show, &answer, items, "created", 1)?;
    tell(&format!(
        "200 in {} ({}): 100 created, each with version 1",
        millis(answer.took),
        rate(100, answer.took)
    ));

    show.step("The answer got lost: phone A posts the same batch again, under the same key");
    let again = phone.post(&key, items).await?;
    succeeded(show, &again, 200)?;
    show.check(
        "the header Idempotent-Replayed",
        again.replayed.as_deref(),
        Some("true"),
    )?;
    show.check("the same answer, byte for byte", &again.body, &answer.body)?;
    tell(&format!(
        "200 in {}: the first answer again, all {} bytes, with Idempotent-Replayed: true",
        millis(again.took),
        again.body.len()
    ));
    Ok(answer)
}

/// Answers the items that went through.
async fn post_mixed(show: &mut Show, phone: &Phone) -> Result<Vec<Item>> {
    show.step("Phone A posts 100 more, three of them bad");
    let (items, bad) = tickets::hundred_with_three_bad(phone.user);
    let answer = phone.post(&format!("demo-{}", Uuid::new_v4()), &items).await?;
    succeeded(show, &answer, 200)?;
    let good = items.iter().enumerate().filter(|(index, _)| !bad.contains(index));
    let good: Vec<Item> = good.map(|(_, item)| item.clone()).collect();
    all_synced(show, &answer, &good, "created", 1)?;
    let names = ["index", "mobile_id", "error_code", "field", "rule"];
    let errors: Vec<String> = answer
        .list("errors")
        .iter()
        .map(|error| members(error, &names))
        .collect();
    let expected = [
        format!("10 {} VALIDATION_ERROR ticketdesc min_length", items[10].id),
        format!("42 {} VALIDATION_ERROR priority enum", items[42].id),
        format!("77 {} VALIDATION_ERROR mobile_id uuid", items[77].id),
    ];
    show.check(
        "the errors: index, mobile_id, error_code, field, rule",
        &errors[..],
        &expected[..],
    )?;
    tell(&format!(
        "200 in {}: 97 created, and each bad item told by itself:",
        millis(answer.took)
    ));
    for error in answer.list("errors") {
        tell(&format!(
            "  item {}: {}",
            error["index"],
            error["error_message"].as_str().unwrap_or_default()
        ));
    }
    Ok(good)
}

/// Both phones get a copy of everything; answers phone A's cursor.
async fn pull_all(show: &mut Show, a: &Phone, b: &Phone, all: &[&Item]) -> Result<String> {
    show.step("Both phones pull a copy of everything, B in pages of 50");
    let expected: BTreeSet<String> = all
        .iter()
        .map(|item| format!("{} {} 1 NEW", item.id, text_of(&item.member("ticketdesc"))))
        .collect();
    let names = ["mobile_id", "ticketdesc", "version", "status"];
    let mut cursor = String::new();
    for (phone, limit) in [(a, 1000), (b, 50)] {
        let pulled = follow(show, phone, &format!("limit={limit}"), limit).await?;
        let came: BTreeSet<String> = pulled.items.iter().map(|doc| members(doc, &names)).collect();
        show.check("each record once", pulled.items.len(), expected.len())?;
        show.check(
            "every ticket, new and at version 1, and nothing else",
            &came,
            &expected,
        )?;
        tell(&match pulled.pages {
            1 => format!(
                "{}: {} tickets, one page, {}",
                phone.device,
                pulled.items.len(),
                millis(pulled.slowest)
            ),
            pages => format!(
                "{}: {} tickets, {pages} pages, each {} at most",
                phone.device,
                pulled.items.len(),
                millis(pulled.slowest)
            ),
        });
        if phone.device == a.device {
            cursor = pulled.cursor;
        }
    }
    Ok(cursor)
}

async fn change_five(show: &mut Show, phone: &Phone, chosen: &[&Item]) -> Result<(Vec<Item>, Answer)> {
    show.step("Phone B takes on five tickets: it posts changes that build on version 1");
    let change = |ticket: &&Item| {
        tickets::change(
            &ticket.id,
            1,
            &[("status", "OPEN"), ("comments", "Boris: I am on my way")],
        )
    };
    let changes: Vec<Item> = chosen.iter().map(change).collect();
    let answer = phone.post(&format!("demo-{}", Uuid::new_v4()), &changes).await?;
    succeeded(show, &answer, 200)?;
    all_synced(show, &answer, &changes, "updated", 2)?;
    tell(&format!(
        "200 in {}: 5 updated, each with version 2 now",
        millis(answer.took)
    ));
    Ok((changes, answer))
}

/// Answers the conflict's id too.
async fn conflict(show: &mut Show, phone: &Phone, stale: &Item) -> Result<(Answer, String)> {
    show.step(
        "Phone A, which has not heard of that, changes one of the five, still on version 1 and with the status of then",
    );
    let answer = phone
        .post(&format!("demo-{}", Uuid::new_v4()), std::slice::from_ref(stale))
        .await?;
    succeeded(show, &answer, 200)?;
    show.check(
        "nothing else came of it",
        answer.list("synced_items").len() + answer.list("errors").len(),
        0,
    )?;
    show.check("one conflict", answer.list("conflicts").len(), 1)?;
    let told = &answer.list("conflicts")[0];
    let names = [
        "mobile_id",
        "status",
        "server_version",
        "client_version",
        "resolution",
        "winner",
    ];
    show.check(
        &names.join(", "),
        members(told, &names),
        format!("{} conflict 3 1 preserve_escalation merged", stale.id),
    )?;
    let conflict_id = told["conflict_id"].as_str().unwrap_or_default().to_owned();
    show.check(
        "conflict_id is a UUID",
        Uuid::try_parse(&conflict_id).is_ok(),
        true,
    )?;
    tell(&format!(
        "200 in {}: a conflict (server at version 2, phone at 1), decided by the tickets' policy: Asha's words are",
        millis(answer.took)
    ));
    tell("applied as version 3, but the status, like any escalation, stays as Boris set it;");
    tell(&format!("both sides are kept as conflict {conflict_id}"));
    Ok((answer, conflict_id))
}

/// What was tried is in the table, both sides.
async fn attempt_is_kept(show: &mut Show, service: &Service, conflict_id: &str, stale: &Item) -> Result<()> {
    let (client, connection) =
        tokio_postgres::connect(service.env("TIDELOG_DATABASE_URL")?, tokio_postgres::NoTls).await?;
    let connection = tokio::spawn(connection);
    let question = "SELECT client_doc, server_doc, kept FROM tidelog.conflicts WHERE conflict_id = $1";
    let row = client
        .query_one(question, &[&Uuid::try_parse(conflict_id)?])
        .await?;
    drop(client);
    connection.await??;
    let (tried, met, kept): (Value, Value, Value) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    show.check(
        "what Asha wrote is kept",
        &tried["comments"],
        &stale.member("comments"),
    )?;
    show.check("what it met is kept", &met["comments"], "Boris: I am on my way")?;
    show.check(
        "whose comments, priority and status stand",
        members(&kept, &["comments", "priority", "status"]),
        "client client server",
    )
}

/// Phone A sees exactly what B changed, and what became of its own stale change.
async fn catch_up(
    show: &mut Show,
    phone: &Phone,
    cursor: &str,
    changes: &[Item],
    stale: &Item,
) -> Result<()> {
    show.step("Phone A pulls what has changed since its cursor");
    let pulled = follow(show, phone, &format!("cursor={cursor}"), 100).await?;
    let names = ["mobile_id", "version", "status", "priority", "comments"];
    let came: BTreeSet<String> = pulled.items.iter().map(|doc| members(doc, &names)).collect();
    let expected: BTreeSet<String> = changes
        .iter()
        .map(|change| match change.id == stale.id {
            true => format!("{} 3 OPEN LOW Asha: this can wait until Monday", change.id),
            false => format!("{} 2 OPEN HIGH Boris: I am on my way", change.id),
        })
        .collect();
    show.check("each record once", pulled.items.len(), changes.len())?;
    show.check("the five: version, status, priority, comments", &came, &expected)?;
    tell(&format!(
        "{} tickets in {}: the five, four as Boris left them and one with Asha's words too, and nothing else",
        CHANGES,
        millis(pulled.slowest)
    ));
    let again = phone.pull(&format!("cursor={}", pulled.cursor)).await?;
    succeeded(show, &again, 200)?;
    show.check("after that there is nothing new", again.list("items").len(), 0)
}

async fn analyse(
    show: &mut Show,
    brokers: &str,
    tenant: &str,
    sent: &[Sent; 3],
    posted: usize,
) -> Result<()> {
    show.step("The analyst reads the topic with a Kafka client that knows nothing of Tidelog");
    let (records, how) = analyst::read(brokers, TOPIC).await?;
    tell(&how);
    let source = format!("/tenants/{tenant}/");
    let ours = records
        .iter()
        .filter(|record| record.header("ce_source").starts_with(&source))
        .count();
    show.check("an event for each item that was taken, and no more", ours, posted)?;
    let subject = &sent[0].item.id;
    let mut events: Vec<_> = records
        .iter()
        .filter(|record| record.header("ce_subject") == subject)
        .collect();
    events.sort_by_key(|record| record.offset);
    tell(&format!("{ours} events of {tenant}; those of ticket {subject}:"));
    show.check("the ticket's events", events.len(), sent.len())?;
    for (event, sent) in events.iter().zip(sent) {
        tell(&format!(
            "\npartition {}, offset {}, key {}",
            event.partition, event.offset, event.key
        ));
        event
            .headers
            .iter()
            .for_each(|(name, value)| tell(&format!("  {name}: {value}")));
        tell(&format!("  {}", event.value));
        show.check("all in one partition", event.partition, events[0].partition)?;
        show.check("the key", event.key.as_str(), format!("{tenant}/{subject}"))?;
        let names: Vec<&str> = event.headers.iter().map(|(name, _)| name.as_str()).collect();
        let headers = [
            ("ce_specversion", "1.0".to_owned()),
            ("ce_id", event.header("ce_id").to_owned()),
            ("ce_type", format!("tidelog.helpdesk.{}", sent.operation)),
            (
                "ce_source",
                format!("/tenants/{tenant}/users/{}/devices/{}", sent.by.0, sent.by.1),
            ),
            ("ce_subject", subject.clone()),
            ("ce_time", event.header("ce_time").to_owned()),
            ("ce_batch", sent.batch.clone()),
            ("ce_baseversion", sent.base.to_string()),
            ("ce_policy", "preserve_escalation".to_owned()),
            ("content-type", "application/json".to_owned()),
        ];
        show.check(
            "the headers there are",
            names,
            headers.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
        )?;
        for (name, value) in &headers {
            show.check(name, event.header(name), value)?;
        }
        show.check(
            "ce_id is a UUID",
            Uuid::try_parse(event.header("ce_id")).is_ok(),
            true,
        )?;
        let time = chrono::DateTime::parse_from_rfc3339(event.header("ce_time"));
        show.check("ce_time is a time", time.is_ok(), true)?;
        show.check(
            "the value is what the phone sent, byte for byte",
            &event.value,
            &sent.item.text,
        )?;
    }
    let ids: BTreeSet<&str> = events.iter().map(|event| event.header("ce_id")).collect();
    show.check("each event has an id of its own", ids.len(), sent.len())
}

async fn no_lag(show: &mut Show, service: &Service, applied_before: i64, posted: usize) -> Result<()> {
    show.step("The operator asks how far the projection is behind the log (`tidelog status`)");
    let status = service.status().await?;
    show.check("lag", &status["lag"], 0)?;
    show.check("dead letters", &status["dead_letters"], 0)?;
    show.check("missing topics", &status["missing_topics"], &json!([]))?;
    show.check(
        "records applied",
        &status["applied"],
        applied_before + i64::try_from(posted)?,
    )?;
    tell(&service.run(&["status"]).await?);
    Ok(())
}

/// What a phone that follows the cursor to the end has seen.
struct Pulled {
    items: Vec<Value>,
    pages: usize,
    slowest: Duration,
    cursor: String,
}

async fn follow(show: &mut Show, phone: &Phone, query: &str, limit: usize) -> Result<Pulled> {
    let mut pulled = Pulled {
        items: Vec::new(),
        pages: 0,
        slowest: Duration::ZERO,
        cursor: String::new(),
    };
    let mut query = query.to_owned();
    loop {
        let page = phone.pull(&query).await?;
        succeeded(show, &page, 200)?;
        show.check(
            "a page is no larger than asked for",
            page.list("items").len() <= limit,
            true,
        )?;
        pulled.items.extend_from_slice(page.list("items"));
        pulled.pages += 1;
        pulled.slowest = pulled.slowest.max(page.took);
        page.text("cursor").clone_into(&mut pulled.cursor);
        if page.json["has_more"] != true {
            return Ok(pulled);
        }
        query = format!("limit={limit}&cursor={}", pulled.cursor);
    }
}

fn succeeded(show: &mut Show, answer: &Answer, status: u16) -> Result<()> {
    show.check("the answer's status", answer.status, status)
        .with_context(|| answer.whole())
}

/// Every item is in `synced_items`, in order, with that status and version, and there is no conflict.
fn all_synced(show: &mut Show, answer: &Answer, items: &[Item], status: &str, version: i64) -> Result<()> {
    let names = ["mobile_id", "status", "server_version"];
    let came: Vec<String> = answer
        .list("synced_items")
        .iter()
        .map(|entry| members(entry, &names))
        .collect();
    let expected: Vec<String> = items
        .iter()
        .map(|item| format!("{} {status} {version}", item.id))
        .collect();
    show.check("synced_items: mobile_id, status, server_version", came, expected)
        .and_then(|()| show.check("conflicts", answer.list("conflicts").len(), 0))
        .with_context(|| answer.whole())
}

/// Some members of an object in one line.
fn members(object: &Value, names: &[&str]) -> String {
    names
        .iter()
        .map(|name| text_of(&object[*name]))
        .collect::<Vec<_>>()
        .join(" ")
}

/// A string without its quotes, anything else as JSON.
fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
