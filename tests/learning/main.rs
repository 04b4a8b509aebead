//! Learning from turns, with the real memory, the real queue and Postgres. Of the model there is a double.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

mod figures;
mod forgetting;
#[path = "../postgres/mod.rs"]
mod postgres;
mod queue;
mod turns;
mod world;
