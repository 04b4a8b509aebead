//! The core of the agent service: streaming chat grounded in long-term memory, written once and served by every way in.
//!
//! Data walks one way: [`transport`] → [`service`] → [`chat`] → [`memory`], [`llm`], [`embedding`] → stores and providers.
//! Only `transport` and `service` know gRPC; the rooms below them do not name it.

pub mod chat;
pub mod config;
pub mod embedding;
pub mod error;
pub mod identity;
pub mod language;
pub mod llm;
pub mod memory;
pub mod postgres;
pub mod proto;
pub mod service;
pub mod telemetry;
pub mod transport;

mod http_client;
pub(crate) use http_client::http_client;
