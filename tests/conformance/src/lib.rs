//! The service of the Connect conformance suite, for each entry point. A request defines its response; the response reports
//! what arrived of the request.
//!
//! Compiled with our codec and, for comparison, with tonic's.

#![forbid(unsafe_code)]

mod calls;
pub mod front;
mod responses;
mod trailers;

use agent_service::transport::lambda::GrpcService;
use tonic::{codec::CompressionEncoding, service::LayerExt as _};
use tower::util::MapResponseLayer;

/// Messages of the suite, and its service with our codec.
#[expect(
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated code"
)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/ours/connectrpc.conformance.v1.rs"));
}

/// The service with tonic's codec.
#[expect(
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated code"
)]
mod bare {
    include!(concat!(env!("OUT_DIR"), "/bare/connectrpc.conformance.v1.rs"));
}

pub const METHODS: &[&str] =
    &["Unary", "ServerStream", "ClientStream", "BidiStream", "Unimplemented", "IdempotentUnary"];

/// The service with our codec; a request may have messages of `max_message_bytes`.
pub fn service(max_message_bytes: usize) -> impl GrpcService {
    let service = proto::conformance_service_server::ConformanceServiceServer::new(calls::Conformance)
        .max_decoding_message_size(max_message_bytes)
        .accept_compressed(CompressionEncoding::Gzip);
    MapResponseLayer::new(trailers::append).named_layer(service)
}

/// The service with tonic's codec; a request may have messages of `max_message_bytes`.
pub fn bare_service(max_message_bytes: usize) -> impl GrpcService {
    let service = bare::conformance_service_server::ConformanceServiceServer::new(calls::Conformance)
        .max_decoding_message_size(max_message_bytes)
        .accept_compressed(CompressionEncoding::Gzip);
    MapResponseLayer::new(trailers::append).named_layer(service)
}
