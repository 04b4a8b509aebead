//! The program as a process: its output, signals, files and command line. Every test runs the real binary in directories of its
//! own.

#![cfg(unix)]
#![expect(clippy::unwrap_used, clippy::panic, reason = "shared test code fails by a panic")]
#![expect(clippy::large_futures, reason = "a test has few calls at a time")]

mod aws_credentials;
mod commands;
mod configuration;
mod conflict;
mod connections;
mod crash_recovery;
mod durability;
mod embedded;
mod external_database;
#[path = "../../../../tests/support/http_double.rs"]
mod http_double;
mod import;
mod isolation;
mod learning;
mod logs;
mod process;
mod reembed;
mod relay;
mod server;
mod shutdown;
mod startup;
mod tls;
mod unavailable_database;
