//! `agent.v1.AgentService`.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, future::OptionFuture};
use tokio::time::sleep_until;
use tonic::{Code, Request, Response, Status, metadata::MetadataValue};
use tracing::Instrument as _;

use super::{
    admission::{Admission, AdmittedCall},
    call::{RpcCall, RpcContext, RpcResult},
    caller_language::CallerLanguage,
    convert,
    drain::Drain,
    envelope::Envelope,
    frame::FrameBuilder,
    frame_source::FrameSource,
    heartbeat::{HalfClose, Heartbeat, StreamStart},
    parse::{self, chat::IncomingChat},
    refusal, status,
};
use crate::{
    chat::TurnFailure,
    config::ChatRefusals,
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
    refusals: ChatRefusals,
    /// After which a silent chat repeats its last status.
    status_interval: Option<Duration>,
}

impl AgentApi {
    pub(super) fn new(
        admission: Admission,
        memory: Arc<MemoryEngine>,
        context: RpcContext,
        refusals: ChatRefusals,
        status_interval: Option<Duration>,
    ) -> Self {
        Self { admission: Arc::new(admission), memory, context, refusals, status_interval }
    }
}

#[tonic::async_trait]
impl AgentService for AgentApi {
    type StreamChatStream = ChatFrames;

    async fn stream_chat(&self, request: Request<pb::ChatRequest>) -> RpcResult<ChatFrames> {
        let (metadata, extensions, request) = request.into_parts();
        let mut rpc = self.context.begin_call("StreamChat", &metadata, &request.request_id);
        let caller = CallerLanguage::of_chat(&metadata, &request);
        let (session_id, request_id) = (request.session_id.clone(), request.request_id.clone());
        let interrupted = interrupted(&self.context.drain, extensions.get::<Deadline>().copied());
        let half_close = extensions.get::<HalfClose>().cloned();
        let heartbeat = |start| Heartbeat::new(self.status_interval, half_close, start);
        let principal = self.context.admit_caller(&rpc, &request.user_id, &metadata).await;
        let (error, language) = match principal {
            Err(error) => (error, caller.resolve("")),
            Ok(principal) => {
                let user = principal.user.clone();
                let incoming = IncomingChat { principal, metadata: &metadata, language: caller.clone(), request };
                let admitting = self.admission.admit(&rpc, incoming, interrupted).instrument(rpc.span().clone());
                match admitting.await {
                    Ok(AdmittedCall { envelope, source, start }) => {
                        let (language, heartbeat) = (caller.resolve(""), heartbeat(start));
                        let frames = ChatFrames { source, envelope, rpc, language, heartbeat, has_ended: false };
                        return Ok(Response::new(frames));
                    }
                    Err(error) if error.spares_store() => (error, caller.resolve("")),
                    Err(error) => {
                        let language = Box::pin(caller.resolve_for(&user, self.context.profiles.as_ref())).await;
                        (error, language)
                    }
                }
            }
        };
        let status = rpc.reject(&error, language);
        if self.refusals == ChatRefusals::Status || status.code() == Code::Unauthenticated {
            return Err(status);
        }
        let frame = FrameBuilder::refusal(language, refusal::error(&error, &status), rpc.outcome());
        let envelope = Envelope::of_refusal(&session_id, &request_id, rpc.trace());
        let source = FrameSource::Refused(Some(frame));
        let heartbeat = heartbeat(StreamStart::default());
        Ok(Response::new(ChatFrames { source, envelope, rpc, language, heartbeat, has_ended: false }))
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
    language: Language,
    heartbeat: Heartbeat,
    has_ended: bool,
}

impl Stream for ChatFrames {
    type Item = Result<ChatFrame, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.has_ended {
            return Poll::Ready(None);
        }
        let (number, frame) = match this.source.poll_frame(context) {
            Poll::Ready(Some(frame)) => frame,
            Poll::Ready(None) => {
                this.has_ended = true;
                return Poll::Ready(Some(Err(status::answer_unreadable(this.language))));
            }
            Poll::Pending => {
                let repeated = this.heartbeat.poll(context);
                return repeated.map(|(position, status)| Some(Ok(this.envelope.wrap(position, status))));
            }
        };
        this.has_ended = frame.is_last();
        this.rpc.record_frame(frame.kind);
        let position = this.heartbeat.record(number, &frame);
        Poll::Ready(Some(Ok(this.envelope.wrap(position, frame.content))))
    }
}
