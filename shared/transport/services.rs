//! The services as entry points serve them: message size and encodings.

use tonic::codec::CompressionEncoding;

use crate::{
    proto::agent_v1::{
        agent_service_server::AgentServiceServer, conversation_service_server::ConversationServiceServer,
        memory_service_server::MemoryServiceServer,
    },
    service::{AgentApi, ConversationApi, MemoryApi},
};

/// Requests may use it. Responses are never compressed: a proxy or CDN can do that, and small frames gain nothing.
pub(super) const REQUEST_ENCODING: CompressionEncoding = CompressionEncoding::Gzip;
/// In either direction.
pub(super) const MAX_MESSAGE_BYTES: usize = 50 * 1024 * 1024;

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
