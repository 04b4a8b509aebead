//! `agent.v1.AgentService`.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, future::OptionFuture};
use tokio::time::{Sleep, sleep_until};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Code, Request, Response, Status, metadata::MetadataValue};
use tracing::Instrument as _;

use super::{
    admission::{Admission, AdmittedCall},
    call::{ClaimedUser, RpcCall, RpcContext, RpcResult},
    caller_language::CallerLanguage,
    convert,
    drain::Drain,
    envelope::Envelope,
    frame::FrameBuilder,
    frame_source::FrameSource,
    header_authentication::HeaderAuthentication,
    heartbeat::{HalfClose, Heartbeat, StreamStart},
    open_streams::OpenStreamGuard,
    parse::{self, chat::IncomingChat},
    refusal,
    run::ReadError,
};
use crate::{
    chat::TurnFailure,
    config::ChatRefusals,
    identity::Principal,
    language::Language,
    memory::{MemoryEngine, RetrievalQuery, Retriever},
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

    #[must_use]
    pub fn header_authentication(&self) -> HeaderAuthentication {
        HeaderAuthentication::new(self.context.clone())
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
        let claimed = ClaimedUser {
            id: &request.user_id,
            is_pro: request.user_profile.as_ref().is_some_and(|profile| profile.is_pro),
        };
        let principal = self.context.admit_caller(&rpc, claimed, &metadata, &extensions).await;
        let (error, language) = match principal {
            Err(error) => (error, caller.resolve("")),
            Ok(principal) => {
                let user = principal.user.clone();
                let incoming = IncomingChat { principal, metadata: &metadata, language: caller.clone(), request };
                let admitting = self.admission.admit(&rpc, incoming, interrupted).instrument(rpc.span().clone());
                match admitting.await {
                    Ok(AdmittedCall { envelope, source, start, open_stream, token_end }) => {
                        let gives_way = open_stream.as_ref().and_then(|stream| stream.gives_way.clone());
                        let frames = ChatFrames {
                            source,
                            envelope,
                            rpc,
                            language: caller.resolve(""),
                            heartbeat: heartbeat(start),
                            token_end: token_end.map(|end| Box::pin(sleep_until(end))),
                            gives_way: gives_way.map(|gives_way| Box::pin(gives_way.cancelled_owned())),
                            has_ended: false,
                            _open_stream: open_stream,
                        };
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
        Ok(Response::new(ChatFrames {
            source,
            envelope,
            rpc,
            language,
            heartbeat,
            token_end: None,
            gives_way: None,
            has_ended: false,
            _open_stream: None,
        }))
    }

    async fn retrieve_memory(&self, request: Request<pb::MemoryQuery>) -> RpcResult<pb::MemoryResult> {
        let time_zone = request.metadata().get("x-timezone").and_then(|zone| zone.to_str().ok()).map(str::to_owned);
        let parse = |query| parse::memory::query(query, time_zone.as_deref());
        let retrieve = |caller: Principal, query: RetrievalQuery| async move {
            if query.needs_vector() {
                self.context.limits.take_query_bytes(&caller, query.text.len())?;
            }
            Box::pin(self.memory.retrieve(&caller.user, &query)).await
        };
        let result = self.context.unary_by_plan("RetrieveMemory", request, parse, retrieve).await?.into_inner();
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

/// The last frame has a `finish_reason`, even if the turn panics. A stream that cannot go on although its run does ends with an
/// error frame at a position that no frame of the run has.
pub struct ChatFrames {
    source: FrameSource,
    envelope: Envelope,
    rpc: RpcCall,
    language: Language,
    heartbeat: Heartbeat,
    /// The end of a stream that reads a run, which goes on for another reader.
    token_end: Option<Pin<Box<Sleep>>>,
    /// A later call of the same request takes the place of this stream.
    gives_way: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    has_ended: bool,
    _open_stream: Option<OpenStreamGuard>,
}

impl ChatFrames {
    fn end_with(&mut self, failure: &TurnFailure) -> ChatFrame {
        self.has_ended = true;
        let frame = FrameBuilder::new(self.language, false).failure(failure);
        self.rpc.record_frame(frame.kind);
        let position = self.heartbeat.next_repetition();
        self.envelope.wrap(position, frame.content)
    }
}

impl Stream for ChatFrames {
    type Item = Result<ChatFrame, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.has_ended {
            return Poll::Ready(None);
        }
        if let Some(token_end) = &mut this.token_end
            && token_end.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Some(Ok(this.end_with(&TurnFailure::TokenExpired))));
        }
        let (number, frame) = match this.source.poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(ended) => {
                let failure = match ended {
                    Some(Err(ReadError::ShuttingDown)) => TurnFailure::ShuttingDown,
                    Some(Err(ReadError::StoreUnavailable)) => TurnFailure::ReplayUnavailable,
                    _ => TurnFailure::Internal,
                };
                return Poll::Ready(Some(Ok(this.end_with(&failure))));
            }
            Poll::Pending => {
                if let Some(gives_way) = &mut this.gives_way
                    && gives_way.as_mut().poll(context).is_ready()
                {
                    return Poll::Ready(Some(Ok(this.end_with(&TurnFailure::ReaderReplaced))));
                }
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

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt as _, stream};
    use prost::Message as _;
    use tokio::time::{Duration, Instant};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        chat::TurnEvent,
        identity::{RequestId, SessionId, TraceId},
        service::frame,
    };

    /// A stream of a run, whose token ends in a minute.
    fn stream_of_run(
        frames: impl Stream<Item = Result<(u32, frame::EncodedFrame), ReadError>> + Send + 'static,
    ) -> ChatFrames {
        let trace = TraceId::from_call(None, None, "");
        ChatFrames {
            source: FrameSource::Replay(Box::pin(frames)),
            envelope: Envelope::new(SessionId::generate(), &RequestId::generate(), &trace),
            rpc: RpcCall::new("StreamChat", trace, &Drain::default()),
            language: Language::English,
            heartbeat: Heartbeat::new(None, None, StreamStart::default()),
            token_end: Some(Box::pin(sleep_until(Instant::now() + Duration::from_mins(1)))),
            gives_way: None,
            has_ended: false,
            _open_stream: None,
        }
    }

    fn delta() -> frame::EncodedFrame {
        FrameBuilder::new(Language::English, false).build(TurnEvent::Delta("one".to_owned())).unwrap()
    }

    async fn read_to_end(frames: ChatFrames) -> Vec<Result<pb::ChatResponse, Status>> {
        frames.map(|frame| frame.map(|frame| pb::ChatResponse::decode(&*frame.to_bytes()).unwrap())).collect().await
    }

    #[tokio::test(start_paused = true)]
    async fn stream_that_reads_a_run_ends_with_its_token_at_a_position_of_no_frame() {
        let waiting = stream::iter([Ok((1, delta())), Ok((2, delta()))]).chain(stream::pending());
        let fast = stream::iter((1..).map(|number| Ok((number, delta())))).then(|frame| async move {
            tokio::time::sleep(Duration::from_secs(7)).await;
            frame
        });
        for (source, received) in [(waiting.boxed(), 2), (fast.boxed(), 8)] {
            let frames = stream_of_run(source);
            let (envelope, started) = (frames.envelope.clone(), Instant::now());
            let frames: Vec<_> = read_to_end(frames).await.into_iter().map(Result::unwrap).collect();
            assert_eq!(started.elapsed().as_secs(), 60);
            assert_eq!(frames.len(), received + 1);
            let last = frames.last().unwrap();
            let Some(pb::chat_response::Content::Error(error)) = &last.content else { panic!("{last:?}") };
            assert_eq!((error.code.as_str(), error.retryable), ("TOKEN_EXPIRED", true));
            assert_eq!(error.error_code(), pb::ErrorCode::Unauthorized);
            assert_eq!(last.finish_reason(), pb::FinishReason::Error);
            assert!(frames.is_sorted_by(|one, other| one.response_id < other.response_id));
            // A client resumes behind the last frame of the run that it has.
            assert_eq!(envelope.position(&last.response_id).unwrap().number as usize, received);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn stream_that_cannot_go_on_ends_with_an_error_at_a_position_of_no_frame() {
        use pb::ErrorCode::{Conflict, Internal, Unavailable};
        let cut = |error| stream::iter([Ok((1, delta())), Err(error)]).boxed();
        let waiting = stream::iter([Ok((1, delta()))]).chain(stream::pending()).boxed();
        for (source, code, class, is_retryable) in [
            (cut(ReadError::ShuttingDown), "SERVER_SHUTTING_DOWN", Unavailable, true),
            (cut(ReadError::StoreUnavailable), "REPLAY_UNAVAILABLE", Unavailable, true),
            (stream::iter([Ok((1, delta()))]).boxed(), "INTERNAL", Internal, false),
            (waiting, "READER_REPLACED", Conflict, false),
        ] {
            let mut frames = stream_of_run(source);
            let (envelope, gives_way) = (frames.envelope.clone(), CancellationToken::new());
            gives_way.cancel();
            frames.gives_way = Some(Box::pin(gives_way.cancelled_owned()));
            let frames: Vec<_> = read_to_end(frames).await.into_iter().map(Result::unwrap).collect();
            let [_, last] = &frames[..] else { panic!("{code}: {frames:?}") };
            let Some(pb::chat_response::Content::Error(error)) = &last.content else { panic!("{last:?}") };
            assert_eq!((error.code.as_str(), error.error_code(), error.retryable), (code, class, is_retryable));
            assert_eq!(last.finish_reason(), pb::FinishReason::Error);
            assert!(frames[0].response_id < last.response_id);
            // A client resumes behind the last frame of the run that it has.
            assert_eq!(envelope.position(&last.response_id).unwrap().number, 1);
        }
    }
}
