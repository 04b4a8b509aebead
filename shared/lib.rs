//! The core of the agent service: streaming chat grounded in long-term memory, written once and served by every way in.
//!
//! Data walks one way: [`transport`] → [`service`] → [`chat`] → [`memory`], [`llm`], [`tools`], [`conversation`],
//! [`embedding`] → stores and providers.
//! Only `transport` and `service` know gRPC; the rooms below them do not name it.

pub mod chat;
pub mod composition;
pub mod config;
pub mod conversation;
pub mod embedding;
pub mod erasure;
pub mod error;
pub mod identity;
pub mod language;
pub mod learning;
pub mod llm;
pub mod memory;
pub mod postgres;
pub mod proto;
pub mod provider;
pub mod service;
pub mod telemetry;
mod temporal;
pub mod tools;
pub mod transport;
mod turn_ledger;
