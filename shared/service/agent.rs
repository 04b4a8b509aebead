//! `agent.v1.AgentService`.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::Stream;
use tokio::time::sleep_until;
use tonic::{Request, Response, Status, metadata::MetadataValue};

use super::{
    Deadline,
    call::{Call, Gate, trace_of, unary},
    frames::FrameMaker,
    memory::item,
    parse::{
        self,
        chat::{ChatCommand, ChatInput},
    },
    status,
};
use crate::{
    chat::{Assistant, Event, Failure, ResumedTurn, Taken, TurnRequest},
    conversation::StoreError,
    error::{InvalidArgument, Problem},
    identity::{Refusal, RequestId, SessionId},
    language::Language,
    memory::{Leg, MemoryEngine},
    proto::agent_v1::{self as pb, agent_service_server::AgentService},
};

/// Answers `agent.v1.AgentService`.
#[derive(Clone)]
pub struct AgentApi {
    assistant: Arc<Assistant>,
    memory: Arc<MemoryEngine>,
    gate: Gate,
}

impl AgentApi {
    pub(super) fn new(assistant: Arc<Assistant>, memory: Arc<MemoryEngine>, gate: Gate) -> Self {
        Self { assistant, memory, gate }
    }

    /// Admission: everything that can refuse a turn before its first frame. A result of a tool costs a visit to the store,
    /// which knows whether a turn waits for it.
    async fn admit(
        &self,
        call: &Call,
        metadata: &tonic::metadata::MetadataMap,
        request: pb::ChatRequest,
    ) -> Result<Admitted, NotAdmitted> {
        let user = self.gate.user(&request.user_id, metadata).await?;
        call.is_of(&user);
        let ChatCommand { session, request, whole_citations, language_tag, input } = parse::chat::parse(user, request)?;
        let (model, work) = match input {
            ChatInput::Message(turn) => {
                if let Some(model) = &turn.model
                    && !self.assistant.model.allows(model)
                {
                    return Err(InvalidArgument::new("config.model", Problem::Unknown { what: "allowed model" }).into());
                }
                (turn.model.clone(), Work::Turn(turn))
            }
            ChatInput::ToolResult(user, result) => match self.assistant.accept(&user, &session, result).await? {
                Taken::Waiting => (None, Work::Wait),
                Taken::Resumed(turn) => (turn.model().map(str::to_owned), Work::Resume(turn)),
                Taken::Unknown => return Err(unknown_call("pending tool call of this session").into()),
                Taken::Duplicate => return Err(unknown_call("tool call that still waits for a result").into()),
            },
        };
        // A result need not repeat the profile that its turn began with.
        let language_tag = match &work {
            Work::Resume(turn) if language_tag.is_empty() => turn.language_tag().to_owned(),
            _ => language_tag,
        };
        let model = self.assistant.model.name(model.as_deref()).to_owned();
        let language = Language::from_tag(&language_tag);
        Ok(Admitted { session, request, model, language, whole_citations, work })
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
        let mut call = Call::begin("StreamChat", &trace, &self.gate.drain);
        let admitted = match self.admit(&call, &metadata, request).await {
            Ok(admitted) => admitted,
            Err(NotAdmitted::Refused(refusal)) => return Err(call.refused(&refusal, language)),
            Err(NotAdmitted::Store(error)) => {
                let status = call.span().in_scope(|| status::store_failure(&error, language));
                return Err(call.failed(status));
            }
        };
        let Admitted { session, request, model, language, whole_citations, work } = admitted;
        call.is_for(&session, &request, &model);

        let maker = FrameMaker::new(session, request, trace, language, whole_citations);
        let over = self.gate.drain.over();
        let deadline = extensions.get::<Deadline>().copied();
        let interrupted = async move {
            let out_of_time = async {
                match deadline {
                    Some(Deadline(deadline)) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = over => Failure::ShuttingDown,
                () = out_of_time => Failure::OutOfTime,
            }
        };
        let assistant = self.assistant.clone();
        let events: Events = call.span().in_scope(|| match work {
            Work::Turn(turn) => Box::pin(assistant.turn(*turn, interrupted)) as Events,
            Work::Resume(turn) => Box::pin(assistant.resume(*turn, interrupted)),
            Work::Wait => Box::pin(Assistant::wait()),
        });
        Ok(Response::new(ChatFrames { events, maker, call, ended: false }))
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
        let only = found.only;
        let mut response = Response::new(pb::MemoryResult {
            items: found.hits.into_iter().map(|(memory, score)| item(memory, score)).collect(),
            total_found: i32::try_from(found.total).unwrap_or(i32::MAX),
        });
        if let Some(leg) = only {
            // The message has no place for it: the answer is right, but not as good as it could be.
            let told = match leg {
                Leg::Keywords => "keywords-only",
                Leg::Vectors => "vectors-only",
            };
            response.metadata_mut().insert("x-retrieval", MetadataValue::from_static(told));
        }
        Ok(response)
    }
}

/// The events of one call.
type Events = Pin<Box<dyn Stream<Item = Event> + Send>>;

/// What a call that was let in is about.
struct Admitted {
    session: SessionId,
    request: RequestId,
    model: String,
    language: Language,
    whole_citations: bool,
    work: Work,
}

/// What there is to do.
enum Work {
    Turn(Box<TurnRequest>),
    Resume(Box<ResumedTurn>),
    /// Other results are still missing.
    Wait,
}

/// Why a call was not let in.
enum NotAdmitted {
    Refused(Refusal),
    Store(StoreError),
}

impl<R: Into<Refusal>> From<R> for NotAdmitted {
    fn from(refusal: R) -> Self {
        Self::Refused(refusal.into())
    }
}

impl From<StoreError> for NotAdmitted {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

fn unknown_call(what: &'static str) -> InvalidArgument {
    InvalidArgument::new("tool_result.tool_call_id", Problem::Unknown { what })
}

/// The frames of one turn. It always ends with a frame that bears a `finish_reason`, even where the turn panics.
pub struct ChatFrames {
    events: Events,
    maker: FrameMaker,
    call: Call,
    ended: bool,
}

impl ChatFrames {
    /// The next event, where a defect counts as a failure of the turn.
    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        // After a panic the turn is never polled again, so that no broken state can be seen.
        match catch_unwind(AssertUnwindSafe(|| self.events.as_mut().poll_next(context))) {
            Ok(Poll::Ready(Some(event))) => Poll::Ready(event),
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(None)) | Err(_) => Poll::Ready(Event::Failed(Failure::Internal)),
        }
    }
}

impl Stream for ChatFrames {
    type Item = Result<pb::ChatResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        this.poll_event(context).map(|event| {
            this.ended = event.is_last();
            this.call.saw(&event);
            Some(Ok(this.maker.frame(event)))
        })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt as _, stream};

    use super::*;
    use crate::service::Drain;
    use crate::{
        chat::Stage,
        identity::{RequestId, SessionId, TraceId},
    };

    fn frames(events: impl Stream<Item = Event> + Send + 'static) -> ChatFrames {
        let trace = TraceId::of_call(None, None, "");
        let (session, request) = (SessionId::generate(), RequestId::generate());
        let call = Call::begin("StreamChat", &trace, &Drain::default());
        let maker = FrameMaker::new(session, request, trace, Language::English, false);
        ChatFrames { events: Box::pin(events), maker, call, ended: false }
    }

    #[tokio::test]
    async fn a_turn_that_panics_or_falls_silent_still_ends_with_an_error_frame() {
        let thinking = || stream::once(async { Event::Entered(Stage::Thinking) });
        let panics = thinking().chain(stream::once(async { panic!("a defect") }));
        let falls_silent = thinking();
        for stream in [frames(panics), frames(falls_silent)] {
            let frames: Vec<_> = stream.map(Result::unwrap).collect().await;
            assert_eq!(frames.len(), 2);
            assert_eq!(frames[1].finish_reason(), pb::FinishReason::Error);
            let Some(pb::chat_response::Content::Error(error)) = &frames[1].content else { panic!("{frames:?}") };
            assert_eq!((error.code.as_str(), error.retryable), ("INTERNAL", false));
        }
    }
}
