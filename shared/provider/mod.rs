//! What all calls to providers have in common, be it for answers, vectors or keys: the client, how long to wait before a
//! call is made again, and the breaker of those that are dead. It knows nothing of what is asked.

mod backoff;
mod breaker;
mod client;
mod error_response;

pub use backoff::backoff_delay;
pub use breaker::{BreakerSettings, CircuitBreaker, CircuitOpen, Permit};
pub(crate) use client::http_client;
pub(crate) use error_response::{ErrorReport, ErrorResponse, read_bounded_body, transport_problem};
