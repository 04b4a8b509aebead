//! The core of the agent service: streaming chat grounded in long-term memory, served by gRPC, gRPC-Web and AWS Lambda.
//!
//! Data flows one way: [`transport`] → [`service`] → [`chat`] → [`memory`], [`llm`], [`tools`], [`conversation`],
//! [`embedding`] → stores and providers. Modules import each other only along that direction, without cycles
//! (`tests/style`). Only `transport`, `service` and `proto` know gRPC. [`composition`] builds everything from [`config`].

pub mod chat;
pub mod composition;
pub mod config;
pub mod conversation;
pub mod embedding;
pub mod erasure;
pub mod error;
mod facts;
pub mod identity;
pub mod language;
pub mod learning;
pub mod link;
pub mod llm;
pub mod memory;
pub mod postgres;
pub mod proto;
pub mod provider;
pub mod retention;
pub mod service;
pub mod telemetry;
mod temporal;
pub mod tools;
pub mod transport;
mod turn_ledger;
