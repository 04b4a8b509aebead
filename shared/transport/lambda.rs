//! AWS Lambda: services as functions whose responses stream as gRPC-Web, behind a Function URL or a REST API.
//!
//! Lambda does not report a client that disconnects, and nothing runs after a response has ended. So every call has a deadline:
//! the function's remaining time or the client's `grpc-timeout`, if that is shorter.

mod adapter;
mod event;
#[cfg(feature = "dynamodb")]
mod learn;
mod response_body;
mod runtime;
mod secrets;

pub use adapter::{Adapter, GrpcService};
#[cfg(feature = "dynamodb")]
pub use learn::learn;
pub use response_body::ResponseBody;
pub use runtime::serve;
