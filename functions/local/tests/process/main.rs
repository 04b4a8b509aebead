//! What somebody who starts the program sees: its process, what it prints, its signals and its files. Every test runs the
//! real binary in places of its own.

#![cfg(unix)]
#![expect(clippy::unwrap_used, clippy::panic, reason = "what the tests share fails them by a panic")]

mod absent_database;
mod commands;
mod configuration;
mod conflict;
mod database;
mod durability;
mod embedded;
mod import;
mod isolation;
mod killed;
mod learning;
mod logs;
mod reembed;
mod relay;
mod server;
mod start;
mod stopping;
mod tls;
