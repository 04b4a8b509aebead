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

use crate::{
    proto::agent_v1::{
        agent_service_server::AgentServiceServer, conversation_service_server::ConversationServiceServer,
        memory_service_server::MemoryServiceServer,
    },
    service::{AgentApi, ConversationApi, MemoryApi},
};

/// In either direction.
const MAX_MESSAGE_BYTES: usize = 50 * 1024 * 1024;

/// `agent.v1.AgentService` with our message size limit.
#[must_use]
pub fn agent_service(api: AgentApi) -> AgentServiceServer<AgentApi> {
    let service = AgentServiceServer::new(api);
    service.max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// `agent.v1.MemoryService` with our message size limit.
#[must_use]
pub fn memory_service(api: MemoryApi) -> MemoryServiceServer<MemoryApi> {
    let service = MemoryServiceServer::new(api);
    service.max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// `agent.v1.ConversationService` with our message size limit.
#[must_use]
pub fn conversation_service(api: ConversationApi) -> ConversationServiceServer<ConversationApi> {
    let service = ConversationServiceServer::new(api);
    service.max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES)
}
