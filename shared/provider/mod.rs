//! What all calls to providers have in common, be it for answers, vectors or keys: the client, how long to wait before a
//! call is made again, and the breaker of those that are dead. It knows nothing of what is asked.

mod breaker;
mod client;
mod refusal;
mod retry;

pub use breaker::{Breaker, BreakerSettings, Open, Permit};
pub(crate) use client::http_client;
pub(crate) use refusal::{Refusal, Report, bounded_body, transport_problem};
pub use retry::wait_after;
