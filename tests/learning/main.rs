//! Learning from turns with the real memory, queue and Postgres; only the model is a test double.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]
#![expect(clippy::large_futures, reason = "a test has few calls at a time")]

mod erasure;
mod figures;
mod harness;
#[path = "../postgres/mod.rs"]
mod postgres;
mod queue;
mod turns;
