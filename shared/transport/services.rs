//! The services as entry points serve them: a call is authenticated by its headers before its message is read, and the size of
//! the message is bounded by the method.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response};
use tonic::{body::Body, codec::CompressionEncoding, server::NamedService};
use tower::Service;

#[cfg(feature = "server")]
use super::connection_slot::ConnectionSlot;
use crate::{
    proto::agent_v1::{
        agent_service_server::AgentServiceServer, conversation_service_server::ConversationServiceServer,
        memory_service_server::MemoryServiceServer,
    },
    service::{AgentApi, ConversationApi, HeaderAuthentication, MemoryApi},
};

/// Requests may use it. Responses are never compressed: a proxy or CDN can do that, and small frames gain nothing.
pub(super) const REQUEST_ENCODING: CompressionEncoding = CompressionEncoding::Gzip;

const MIB: usize = 1024 * 1024;
/// Of any message in either direction.
pub(super) const MAX_MESSAGE_BYTES: usize = 50 * MIB;
/// Of a request that [`METHODS`] gives no other limit.
pub(super) const MAX_SMALL_MESSAGE_BYTES: usize = MIB;

/// The methods of our services, and the largest message of each after decompression.
const METHODS: [(&str, usize); 13] = [
    // A history and attachments.
    ("/agent.v1.AgentService/StreamChat", 32 * MIB),
    ("/agent.v1.AgentService/RetrieveMemory", MAX_SMALL_MESSAGE_BYTES),
    ("/agent.v1.MemoryService/AddMemories", MAX_MESSAGE_BYTES),
    ("/agent.v1.MemoryService/IngestDocument", MAX_MESSAGE_BYTES),
    ("/agent.v1.MemoryService/ListMemories", MAX_SMALL_MESSAGE_BYTES),
    ("/agent.v1.MemoryService/UpdateMemory", MAX_SMALL_MESSAGE_BYTES),
    ("/agent.v1.MemoryService/DeleteMemories", MAX_SMALL_MESSAGE_BYTES),
    ("/agent.v1.MemoryService/ExportMemories", MAX_SMALL_MESSAGE_BYTES),
    ("/agent.v1.ConversationService/ListSessions", MAX_SMALL_MESSAGE_BYTES),
    ("/agent.v1.ConversationService/GetSession", MAX_SMALL_MESSAGE_BYTES),
    ("/agent.v1.ConversationService/RenameSession", MAX_SMALL_MESSAGE_BYTES),
    ("/agent.v1.ConversationService/DeleteSessions", MAX_SMALL_MESSAGE_BYTES),
    ("/agent.v1.ConversationService/CancelTurn", MAX_SMALL_MESSAGE_BYTES),
];

/// A server as tonic generates it.
pub trait GeneratedServer:
    Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>
    + NamedService
    + Clone
    + Send
    + 'static
{
    /// Sets the limit of a request's message. tonic also applies it to what a compressed message expands to.
    #[must_use]
    fn with_message_limit(self, bytes: usize) -> Self;
}

/// A service whose methods only authenticated callers reach.
#[derive(Clone)]
pub struct GuardedService<S> {
    server: S,
    authentication: HeaderAuthentication,
}

macro_rules! guarded_services {
    ($($(#[$doc:meta])* $function:ident: $server:ident<$api:ident>,)+) => {
        $(
            impl GeneratedServer for $server<$api> {
                fn with_message_limit(self, bytes: usize) -> Self {
                    self.max_decoding_message_size(bytes)
                }
            }

            $(#[$doc])*
            #[must_use]
            pub fn $function(api: $api) -> GuardedService<$server<$api>> {
                let authentication = api.header_authentication();
                let server = $server::new(api).max_encoding_message_size(MAX_MESSAGE_BYTES);
                GuardedService { server: server.accept_compressed(REQUEST_ENCODING), authentication }
            }
        )+
    };
}

guarded_services! {
    /// `agent.v1.AgentService` with authentication, message limits and encodings.
    agent_service: AgentServiceServer<AgentApi>,
    /// `agent.v1.MemoryService` with authentication, message limits and encodings.
    memory_service: MemoryServiceServer<MemoryApi>,
    /// `agent.v1.ConversationService` with authentication, message limits and encodings.
    conversation_service: ConversationServiceServer<ConversationApi>,
}

impl<S: NamedService> NamedService for GuardedService<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: GeneratedServer> Service<Request<Body>> for GuardedService<S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.server.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let Some((path, limit)) = METHODS.into_iter().find(|(path, _)| *path == request.uri().path()) else {
            // The generated server answers UNIMPLEMENTED and reads nothing.
            return Box::pin(self.server.call(request));
        };
        let Self { server, authentication } = self.clone();
        Box::pin(async move {
            let method = path.rsplit('/').next().unwrap_or_default();
            let limit = match authentication.check(method, request.headers()).await {
                Ok(caller) => {
                    let limit = if caller.is_authenticated() { limit } else { MAX_SMALL_MESSAGE_BYTES };
                    #[cfg(feature = "server")]
                    if caller.is_authenticated()
                        && let Some(slot) = request.extensions().get::<ConnectionSlot>()
                    {
                        slot.set_authenticated();
                    }
                    request.extensions_mut().insert(caller);
                    limit
                }
                // Dropping the request ends its body.
                Err(status) => return Ok(status.into_http()),
            };
            server.with_message_limit(limit).call(request).await
        })
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::proto::DESCRIPTOR;

    #[test]
    fn every_method_has_a_limit() {
        let mut paths = Vec::new();
        for file in prost_types::FileDescriptorSet::decode(DESCRIPTOR).unwrap().file {
            for service in &file.service {
                let path = |method: &str| format!("/{}.{}/{method}", file.package(), service.name());
                paths.extend(service.method.iter().map(|method| path(method.name())));
            }
        }
        let mut known: Vec<_> = METHODS.iter().map(|(path, _)| (*path).to_owned()).collect();
        paths.sort();
        known.sort();
        assert_eq!(paths, known);
    }
}
