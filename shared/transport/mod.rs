//! Entry points: the local gRPC server and the AWS Lambda adapter. HTTP, TLS, CORS and gRPC-Web end here; RPCs are handled in
//! [`service`](crate::service).

#![warn(missing_docs)]

#[cfg(feature = "lambda")]
pub mod lambda;
#[cfg(any(feature = "lambda", feature = "server"))]
mod request_filter;
#[cfg(feature = "server")]
pub mod server;
#[cfg(any(feature = "lambda", feature = "server"))]
mod status_layer;
#[cfg(any(feature = "lambda", feature = "server"))]
mod text_body;

#[cfg(feature = "server")]
pub use request_filter::RpcPaths;

use tonic::codec::CompressionEncoding;

use crate::{
    proto::agent_v1::{
        agent_service_server::AgentServiceServer, conversation_service_server::ConversationServiceServer,
        memory_service_server::MemoryServiceServer,
    },
    service::{AgentApi, ConversationApi, MemoryApi},
};

/// Requests may use it. Responses are never compressed: a proxy or CDN can do that, and small frames gain nothing.
#[cfg(any(feature = "lambda", feature = "server"))]
const REQUEST_ENCODING: CompressionEncoding = CompressionEncoding::Gzip;
/// In either direction.
const MAX_MESSAGE_BYTES: usize = 50 * 1024 * 1024;

/// `agent.v1.AgentService` with our message size limit and encodings.
#[must_use]
pub fn agent_service(api: AgentApi) -> AgentServiceServer<AgentApi> {
    let service = AgentServiceServer::new(api);
    let service = service.max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES);
    service.accept_compressed(REQUEST_ENCODING)
}

/// `agent.v1.MemoryService` with our message size limit and encodings.
#[must_use]
pub fn memory_service(api: MemoryApi) -> MemoryServiceServer<MemoryApi> {
    let service = MemoryServiceServer::new(api);
    let service = service.max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES);
    service.accept_compressed(REQUEST_ENCODING)
}

/// `agent.v1.ConversationService` with our message size limit and encodings.
#[must_use]
pub fn conversation_service(api: ConversationApi) -> ConversationServiceServer<ConversationApi> {
    let service = ConversationServiceServer::new(api);
    let service = service.max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES);
    service.accept_compressed(REQUEST_ENCODING)
}
