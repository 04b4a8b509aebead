//! `agent.v1.AgentService`.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::Stream;
use tokio::time::sleep_until;
use tonic::{Request, Response, Status, metadata::MetadataValue};
use tracing::Instrument as _;

use super::{
    Deadline, Drain,
    admission::{Admission, AdmittedCall, FrameSource},
    call::{RpcCall, RpcContext, trace_of, unary},
    frames::Envelope,
    memory::item,
    parse,
};
use crate::{
    chat::TurnFailure,
    language::Language,
    memory::{MemoryEngine, Retriever},
    proto::agent_v1::{self as pb, agent_service_server::AgentService},
};

/// Answers `agent.v1.AgentService`.
#[derive(Clone)]
pub struct AgentApi {
    door: Arc<Admission>,
    memory: Arc<MemoryEngine>,
    gate: RpcContext,
}

impl AgentApi {
    pub(super) fn new(door: Admission, memory: Arc<MemoryEngine>, gate: RpcContext) -> Self {
        Self { door: Arc::new(door), memory, gate }
    }
}

#[tonic::async_trait]
impl AgentService for AgentApi {
    type StreamChatStream = ChatFrames;

    async fn stream_chat(&self, request: Request<pb::ChatRequest>) -> Result<Response<ChatFrames>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let trace = trace_of(&metadata, &request.request_id);
        let language =
            request.user_profile.as_ref().map_or(Language::default(), |profile| Language::from_tag(&profile.language));
        let mut call = RpcCall::begin("StreamChat", &trace, &self.gate.drain);
        let over = interrupted(&self.gate.drain, extensions.get::<Deadline>().copied());
        let admitting = self.door.admit(&call, &metadata, trace, request, over).instrument(call.span().clone());
        let admitted = match admitting.await {
            Ok(admitted) => admitted,
            Err(refused) => return Err(call.turned_away(&refused, language)),
        };
        let AdmittedCall { envelope, source } = admitted;
        Ok(Response::new(ChatFrames { way: source, envelope, call, ended: false }))
    }

    async fn retrieve_memory(&self, request: Request<pb::MemoryQuery>) -> Result<Response<pb::MemoryResult>, Status> {
        let (metadata, _, mut request) = request.into_parts();
        let user_id = std::mem::take(&mut request.user_id);
        let zone = metadata.get("x-timezone").and_then(|zone| zone.to_str().ok());
        let query = parse::memory::query(request, zone);
        let found = unary("RetrieveMemory", &self.gate, &metadata, &user_id, query, |user, query| async move {
            self.memory.retrieve(&user, &query).await
        })
        .await?
        .into_inner();
        let only = found.degraded_to;
        let mut response = Response::new(pb::MemoryResult {
            items: found.hits.into_iter().map(|(memory, score)| item(memory, score)).collect(),
            total_found: i32::try_from(found.total).unwrap_or(i32::MAX),
        });
        if let Some(leg) = only {
            // The message has no place for it: the answer is right, but not as good as it could be.
            let told = match leg {
                Retriever::Lexical => "keywords-only",
                Retriever::Vector => "vectors-only",
            };
            response.metadata_mut().insert("x-retrieval", MetadataValue::from_static(told));
        }
        Ok(response)
    }
}

/// What ends a turn from outside: the server stops, or the way in has no more time.
fn interrupted(drain: &Drain, deadline: Option<Deadline>) -> impl Future<Output = TurnFailure> + Send + 'static {
    let over = drain.cancelled();
    async move {
        let out_of_time = async {
            match deadline {
                Some(Deadline(deadline)) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => TurnFailure::ShuttingDown,
            () = out_of_time => TurnFailure::DeadlineExceeded,
        }
    }
}

/// The frames of one call. They always end with one that bears a `finish_reason`, even where the turn panics.
pub struct ChatFrames {
    way: FrameSource,
    envelope: Envelope,
    call: RpcCall,
    ended: bool,
}

impl Stream for ChatFrames {
    type Item = Result<pb::ChatResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let Some((number, frame)) = ready!(this.way.poll_frame(context)) else {
            // Nothing ends without a last frame but a log that can not be read.
            this.ended = true;
            return Poll::Ready(Some(Err(Status::internal("the answer can not be read"))));
        };
        this.ended = frame.finish_reason() != pb::FinishReason::Null;
        this.call.saw(&frame);
        Poll::Ready(Some(Ok(this.envelope.frame(number, frame))))
    }
}
