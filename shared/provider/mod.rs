//! Shared by all HTTP calls to providers (answers, embeddings, keys): client, backoff, circuit breaker and error responses.
//!
//! Knows nothing of the content of the calls.

mod backoff;
mod breaker;
mod client;
mod error_response;

pub use backoff::backoff_delay;
pub use breaker::{CallPermit, CircuitBreaker, CircuitOpen};
pub(crate) use client::http_client;
pub(crate) use error_response::{ErrorReport, ErrorResponse, read_bounded_body, transport_problem};
