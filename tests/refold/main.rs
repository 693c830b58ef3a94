//! The log folded again while the service is up: tables made anew and swapped in, kill -9 on the way; damage by hand found and
//! mended, by whoever looks again and again too; a definition rolled out and back. Apart from other tests, since it keeps a machine busy. `TIDELOG_REFOLD_EVENTS` makes
//! it long.

#[path = "../support/mod.rs"]
mod support;

mod bounded;
mod columns;
mod crew;
mod damage;
mod follow;
mod rebuild;
mod some;
