//! Ways in. Only this room and [`service`](crate::service) know gRPC.

pub mod codec;
#[cfg(feature = "lambda")]
pub mod lambda;
#[cfg(feature = "server")]
pub mod server;
