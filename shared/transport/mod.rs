//! Entry points: the local gRPC server and the AWS Lambda adapter. HTTP, TLS, CORS and gRPC-Web end here; RPCs are handled in
//! [`service`](crate::service).

#![warn(missing_docs)]

#[cfg(feature = "server")]
mod connection_slot;
#[cfg(feature = "lambda")]
pub mod lambda;
#[cfg(any(feature = "lambda", feature = "server"))]
mod request_filter;
#[cfg(feature = "server")]
pub mod server;
#[cfg(any(feature = "lambda", feature = "server"))]
mod services;
#[cfg(any(feature = "lambda", feature = "server"))]
mod status_layer;
#[cfg(any(feature = "lambda", feature = "server"))]
mod text_body;

#[cfg(feature = "server")]
pub use request_filter::RpcPaths;
#[cfg(any(feature = "lambda", feature = "server"))]
pub use services::{agent_service, conversation_service, memory_service};
