//! What happens while Postgres or Kafka is away, and when both come back; and `tidelog dev`, which runs both. Apart from
//! the other tests because these servers are stopped, frozen and killed here.

#[path = "../support/mod.rs"]
mod support;

mod dev;
mod kafka_away;
mod postgres_away;
mod under_load;
