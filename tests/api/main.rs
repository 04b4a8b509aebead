//! What a user would try, over real sockets and against real Postgres.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

mod callers;
mod chat;
mod conversations;
mod corrections;
mod cuts;
mod database;
mod docs;
mod documents;
#[cfg(feature = "dynamodb")]
mod dynamodb;
mod embeddings;
mod fake_provider;
mod faults;
mod grounding;
mod harness;
mod indexing;
mod intruders;
mod isolation;
mod keywords;
mod memories;
mod page;
#[path = "../postgres/mod.rs"]
mod postgres;
mod providers;
mod refusals;
mod tools;
mod transport;
mod vectors;
