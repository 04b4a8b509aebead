//! Learning from turns with the real memory, queue and Postgres; only the model is a test double.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]
#![expect(clippy::large_futures, reason = "a test has few calls at a time")]

#[cfg(feature = "dynamodb")]
mod dynamodb;
mod erasure;
mod figures;
mod harness;
#[cfg(feature = "dynamodb")]
#[path = "../support/http_double.rs"]
#[expect(dead_code, reason = "not every crate uses all of it")]
mod http_double;
mod lock_order;
#[path = "../postgres/mod.rs"]
mod postgres;
mod queue;
mod turns;
