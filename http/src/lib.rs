//! What both HTTP sides share, and nothing of what either is for: no Kafka, no Postgres, no domain.
//!
//! - [`serve`]: the accept loop around a warp filter, with limits and a shutdown that ends (`server`; `places`
//!   and `door` for who gets in, `connection` and `meter` for one connection, `request` for one request and `gzip` for
//!   its body)
//! - [`problem`]: every answer that is not a success, and warp's rejections turned into such
//! - [`auth`]: who calls
//! - [`body`]: a JSON body, bounded in bytes and in time
//! - [`turns`] and [`Shares`]: who is worked for, who waits and who is refused when there is too much; fair shares
//! - [`idempotency_key`] and [`prefer`]: two request headers, parsed
//!
//! A route is read top down: path and method, then [`auth::Auth::caller`], then headers, and
//! [`body::json_body`] last. warp tries the next route after a rejection, so what comes first decides what a
//! wrong request is told.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that cannot go on fails"))]

pub mod auth;
pub mod body;
mod connection;
mod door;
mod gzip;
pub mod idempotency_key;
mod line;
mod meter;
mod places;
pub mod prefer;
pub mod problem;
mod request;
mod server;
mod shares;
pub mod turns;

pub use problem::Problem;
pub use request::REQUEST_ID;
pub use server::{Limits, ServeReport, serve};
pub use shares::{Share, Shares};
