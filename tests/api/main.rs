//! The API over real sockets and a real Postgres.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]
#![expect(clippy::large_futures, reason = "a test has few calls at a time")]

mod authentication;
mod budgets;
mod chat;
mod connection_cuts;
mod conversations;
mod database;
mod deadlines;
mod docs;
mod documents;
#[cfg(feature = "dynamodb")]
mod dynamodb;
mod embeddings;
#[path = "../support/fake_provider.rs"]
mod fake_provider;
mod fallbacks;
mod faults;
mod faulty_clients;
mod grounding;
mod grpc_web;
mod half_vectors;
mod harness;
mod heartbeats;
mod indexing;
mod isolation;
#[path = "../support/jwt.rs"]
#[expect(dead_code, reason = "not every crate uses all of it")]
mod jwt;
mod languages;
mod lexical;
mod limits;
mod links;
mod lost_clients;
mod memories;
mod memory_tools;
mod pending_turns;
#[path = "../postgres/mod.rs"]
mod postgres;
mod providers;
mod ranking;
mod reembedding;
mod refusals;
mod request_limits;
mod resume;
mod shutdown;
mod supersede;
mod tools;
mod transport;
mod turn_index;
mod unread_streams;
mod updates;
mod validation;
mod vector_index;
mod web_page;
mod wire;
