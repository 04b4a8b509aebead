//! `agent.v1.AgentService`.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::{Stream, future::OptionFuture};
use tokio::time::sleep_until;
use tonic::{Request, Response, Status, metadata::MetadataValue};
use tracing::Instrument as _;

use super::{
    admission::{Admission, AdmittedCall},
    call::{RpcCall, RpcContext, RpcResult},
    convert,
    drain::Drain,
    envelope::Envelope,
    frame_source::FrameSource,
    parse,
};
use crate::{
    chat::TurnFailure,
    language::Language,
    memory::{MemoryEngine, Retriever},
    proto::{
        agent_v1::{self as pb, agent_service_server::AgentService},
        chat_frame::ChatFrame,
    },
};

/// The end of a call's time, put into the extensions of its request by an entry point with a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(pub tokio::time::Instant);

#[derive(Clone)]
pub struct AgentApi {
    admission: Arc<Admission>,
    memory: Arc<MemoryEngine>,
    context: RpcContext,
}

impl AgentApi {
    pub(super) fn new(admission: Admission, memory: Arc<MemoryEngine>, context: RpcContext) -> Self {
        Self { admission: Arc::new(admission), memory, context }
    }
}

#[tonic::async_trait]
impl AgentService for AgentApi {
    type StreamChatStream = ChatFrames;

    async fn stream_chat(&self, request: Request<pb::ChatRequest>) -> RpcResult<ChatFrames> {
        let (metadata, extensions, request) = request.into_parts();
        let language =
            request.user_profile.as_ref().map_or(Language::default(), |profile| Language::from_tag(&profile.language));
        let mut rpc = self.context.begin_call("StreamChat", &metadata, &request.request_id);
        let interrupted = interrupted(&self.context.drain, extensions.get::<Deadline>().copied());
        let admitting = self.admission.admit(&rpc, &metadata, request, interrupted).instrument(rpc.span().clone());
        match admitting.await {
            Ok(AdmittedCall { envelope, source }) => {
                Ok(Response::new(ChatFrames { source, envelope, rpc, has_ended: false }))
            }
            Err(error) => Err(rpc.reject(&error, language)),
        }
    }

    async fn retrieve_memory(&self, request: Request<pb::MemoryQuery>) -> RpcResult<pb::MemoryResult> {
        let time_zone = request.metadata().get("x-timezone").and_then(|zone| zone.to_str().ok()).map(str::to_owned);
        let parse = |query| parse::memory::query(query, time_zone.as_deref());
        let retrieve = |user, query| async move { Box::pin(self.memory.retrieve(&user, &query)).await };
        let result = self.context.unary("RetrieveMemory", request, parse, retrieve).await?.into_inner();
        let degraded_to = result.degraded_to;
        let mut response = Response::new(pb::MemoryResult {
            items: result.hits.into_iter().map(|(memory, score)| convert::memory_item(memory, score)).collect(),
            total_found: convert::int(result.total),
        });
        if let Some(retriever) = degraded_to {
            // The contract's message has no field for a partial retrieval.
            let value = match retriever {
                Retriever::Lexical => "keywords-only",
                Retriever::Vector => "vectors-only",
            };
            response.metadata_mut().insert("x-retrieval", MetadataValue::from_static(value));
        }
        Ok(response)
    }
}

fn interrupted(drain: &Drain, deadline: Option<Deadline>) -> impl Future<Output = TurnFailure> + Send + 'static {
    let shutdown = drain.cancelled();
    let deadline = OptionFuture::from(deadline.map(|Deadline(deadline)| sleep_until(deadline)));
    async move {
        tokio::select! {
            () = shutdown => TurnFailure::ShuttingDown,
            Some(()) = deadline => TurnFailure::DeadlineExceeded,
        }
    }
}

/// The last frame has a `finish_reason`, even if the turn panics.
pub struct ChatFrames {
    source: FrameSource,
    envelope: Envelope,
    rpc: RpcCall,
    has_ended: bool,
}

impl Stream for ChatFrames {
    type Item = Result<ChatFrame, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.has_ended {
            return Poll::Ready(None);
        }
        let Some((number, frame)) = ready!(this.source.poll_frame(context)) else {
            this.has_ended = true;
            return Poll::Ready(Some(Err(Status::internal("the answer cannot be read"))));
        };
        this.has_ended = frame.is_last();
        this.rpc.record_frame(frame.kind);
        Poll::Ready(Some(Ok(this.envelope.wrap(number, frame.content))))
    }
}
