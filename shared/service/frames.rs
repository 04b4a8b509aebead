//! Events of a turn → frames of the contract.

use std::{
    collections::HashMap,
    time::{SystemTime, UNIX_EPOCH},
};

use prost_types::{ListValue, Struct, Value as ProtoValue, value::Kind};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::wording;
use crate::{
    chat::{Event, Failure, Prompts, Ran, Recalled, Spent, Stage},
    identity::{RequestId, SessionId, TraceId},
    language::Language,
    llm::{Finish, ModelError, ModelErrorKind, ToolCall},
    memory::Place,
    proto::agent_v1::{self as pb, chat_response::Content},
};

/// Characters of a citation's excerpt.
const EXCERPT_CHARS: usize = 300;

/// Makes the frames of one stream.
pub(super) struct FrameMaker {
    /// Of this stream; each frame adds its number to it.
    response_id: String,
    frames: u32,
    session: SessionId,
    request: RequestId,
    trace: TraceId,
    language: Language,
    whole_citations: bool,
    recall_failed: bool,
}

impl FrameMaker {
    pub(super) fn new(
        session: SessionId,
        request: RequestId,
        trace: TraceId,
        language: Language,
        whole_citations: bool,
    ) -> Self {
        let response_id = Uuid::now_v7().simple().to_string();
        Self { response_id, frames: 0, session, request, trace, language, whole_citations, recall_failed: false }
    }

    /// The frame of an event.
    pub(super) fn frame(&mut self, event: Event) -> pb::ChatResponse {
        let mut frame = self.envelope();
        match event {
            Event::Delta(delta) => frame.content = Some(Content::Delta(delta)),
            Event::Entered(stage) => {
                if matches!(stage, Stage::Generating { recall_failed: true }) {
                    self.recall_failed = true;
                    frame.metadata.insert("recall".to_owned(), "failed".to_owned());
                }
                frame.content = Some(Content::StatusUpdate(status(self.language, stage)));
            }
            Event::Recalled(recalled) => {
                let citations = recalled.into_iter().map(|recalled| citation(recalled, self.whole_citations)).collect();
                frame.content = Some(Content::Citations(pb::CitationBlock { citations }));
            }
            Event::Ran(ran) => frame.content = Some(Content::ToolResult(tool_result(ran))),
            Event::Called(ToolCall { id, name, arguments }) => {
                frame.content = Some(Content::ToolCall(pb::ToolCall { id, name, arguments }));
            }
            Event::AwaitsTools => frame.set_finish_reason(pb::FinishReason::ToolCalls),
            Event::AwaitsMoreResults => frame.set_finish_reason(pb::FinishReason::Continue),
            Event::Spent(spent) => {
                frame.metadata = spent_metadata(&spent);
                frame.content = Some(Content::Usage(usage(&spent)));
            }
            Event::Answered { text, finish } => {
                frame.content = Some(Content::FullText(text));
                frame.set_finish_reason(match finish {
                    Finish::Stop => pb::FinishReason::Stop,
                    Finish::Length => pb::FinishReason::Length,
                    Finish::ContentFilter => pb::FinishReason::ContentFilter,
                });
                if self.recall_failed {
                    frame.metadata.insert("recall".to_owned(), "failed".to_owned());
                }
            }
            Event::Failed(failure) => {
                frame.content = Some(Content::Error(error(self.language, &failure)));
                frame.set_finish_reason(pb::FinishReason::Error);
            }
        }
        frame
    }

    /// A frame without content: everything that all frames of the stream have.
    fn envelope(&mut self) -> pb::ChatResponse {
        self.frames += 1;
        // A clock before 1970 is the only error, and then 1970 is as good as anything.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        pb::ChatResponse {
            response_id: self.next_response_id(),
            created_at: seconds,
            request_id: self.request.as_str().to_owned(),
            trace_id: self.trace.as_str().to_owned(),
            prompt_version: Prompts::version(self.language).to_owned(),
            event_time: Some(prost_types::Timestamp { seconds, nanos: now.subsec_nanos().cast_signed() }),
            session_id: self.session.as_str().to_owned(),
            ..Default::default()
        }
    }

    /// Fixed width and ascending within the stream, so that a client can name the last frame that it saw.
    fn next_response_id(&self) -> String {
        let mut id = String::with_capacity(self.response_id.len() + 9);
        id.push_str(&self.response_id);
        id.push('-');
        let digits = (0..8).rev().map(|place| (self.frames >> (4 * place)) & 0xf);
        id.extend(digits.filter_map(|digit| char::from_digit(digit, 16)));
        id
    }
}

fn status(language: Language, stage: Stage) -> pb::AgentStatus {
    let state = match stage {
        Stage::Thinking => pb::agent_status::State::Thinking,
        Stage::Searching => pb::agent_status::State::Searching,
        Stage::Generating { .. } => pb::agent_status::State::Generating,
        Stage::ExecutingTools => pb::agent_status::State::ExecutingTool,
    };
    let details = wording::stage(language, stage).to_owned();
    pb::AgentStatus { state: state.into(), details, ..Default::default() }
}

fn citation(Recalled { memory, score }: Recalled, whole: bool) -> pb::Citation {
    let told = |name: &str| memory.metadata.get(name).cloned().unwrap_or_default();
    let number = |name: &str| told(name).parse::<u32>().unwrap_or_default();
    let int = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    let page_number = number("page_number");
    // A memory that is no chunk may tell by its metadata where it comes from.
    let place = memory.place.clone().unwrap_or_else(|| Place {
        document: String::new(),
        title: told("title"),
        url: told("url"),
        section: told("section_title"),
        chunk: number("chunk_index"),
    });
    let mut content = memory.content;
    if !whole && let Some((end, _)) = content.char_indices().nth(EXCERPT_CHARS) {
        content.truncate(end);
    }
    pb::Citation {
        id: memory.id,
        title: place.title,
        content,
        source_type: memory.source_type,
        url: place.url,
        score,
        file_id: place.document,
        page_number: int(page_number),
        chunk_index: int(place.chunk),
        section_title: place.section,
    }
}

fn usage(spent: &Spent) -> pb::Usage {
    let int = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    pb::Usage {
        prompt_tokens: int(spent.usage.prompt),
        completion_tokens: int(spent.usage.completion),
        total_tokens: int(spent.usage.prompt.saturating_add(spent.usage.completion)),
        cost_micro_usd: spent.cost_micro_usd.unwrap_or_default(),
    }
}

fn spent_metadata(spent: &Spent) -> HashMap<String, String> {
    let mut metadata = HashMap::new();
    let mut tell = |name: &str, value: String| metadata.insert(name.to_owned(), value);
    tell("usage_source", if spent.estimated { "estimated" } else { "provider" }.to_owned());
    tell("model", spent.model.clone());
    if spent.cost_micro_usd.is_none() {
        // Zero is a price, and this is none.
        tell("cost", "unknown".to_owned());
    }
    for (name, tokens) in [("cached_tokens", spent.usage.cached), ("reasoning_tokens", spent.usage.reasoning)] {
        if tokens > 0 {
            tell(name, tokens.to_string());
        }
    }
    if spent.by_model.len() > 1 {
        let by_model = spent.by_model.iter().map(|(model, tokens)| {
            let counts = json!({"prompt_tokens": tokens.prompt, "completion_tokens": tokens.completion});
            (model.clone(), counts)
        });
        tell("usage_by_model", Value::Object(by_model.collect()).to_string());
    }
    metadata
}

/// What came of a tool that the server ran.
fn tool_result(Ran { call_id, name, outcome }: Ran) -> pb::ToolResultPayload {
    let mut payload = pb::ToolResultPayload { tool_name: name, tool_call_id: call_id, ..Default::default() };
    match outcome {
        Ok(Value::Object(fields)) => {
            payload.success = true;
            payload.data = Some(proto_struct(fields));
        }
        Ok(_) => payload.success = true,
        Err(failure) => {
            payload.error_message = failure.message.to_owned();
            payload.suggestion = failure.suggestion.to_owned();
        }
    }
    payload
}

fn proto_struct(fields: Map<String, Value>) -> Struct {
    Struct { fields: fields.into_iter().map(|(name, value)| (name, proto_value(value))).collect() }
}

fn proto_value(value: Value) -> ProtoValue {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(value),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(values) => Kind::ListValue(ListValue { values: values.into_iter().map(proto_value).collect() }),
        Value::Object(fields) => Kind::StructValue(proto_struct(fields)),
    };
    ProtoValue { kind: Some(kind) }
}

/// The stable code of a failure and its class.
fn code(failure: &Failure) -> (&'static str, pb::ErrorCode) {
    use pb::ErrorCode;
    match failure {
        Failure::ShuttingDown => ("SERVER_SHUTTING_DOWN", ErrorCode::Unavailable),
        Failure::OutOfTime => ("DEADLINE_EXCEEDED", ErrorCode::Timeout),
        Failure::WrongToolCall => ("TOOL_CALL_INVALID", ErrorCode::Unavailable),
        Failure::TooManyToolRounds => ("TOOL_ROUNDS_EXCEEDED", ErrorCode::Internal),
        Failure::NotKept => ("TURN_NOT_KEPT", ErrorCode::Unavailable),
        Failure::Internal => ("INTERNAL", ErrorCode::Internal),
        Failure::Model(error) => match error.kind {
            ModelErrorKind::Unauthorized => ("PROVIDER_UNAUTHORIZED", ErrorCode::Unauthorized),
            ModelErrorKind::QuotaExhausted => ("PROVIDER_QUOTA_EXHAUSTED", ErrorCode::RateLimited),
            ModelErrorKind::RateLimited => ("PROVIDER_RATE_LIMITED", ErrorCode::RateLimited),
            ModelErrorKind::ModelNotFound => ("PROVIDER_MODEL_NOT_FOUND", ErrorCode::NotFound),
            ModelErrorKind::AddressNotFound => ("PROVIDER_ADDRESS_NOT_FOUND", ErrorCode::NotFound),
            ModelErrorKind::ContextLength => ("PROVIDER_CONTEXT_LENGTH", ErrorCode::InvalidArgument),
            ModelErrorKind::ContentFilter => ("PROVIDER_CONTENT_FILTER", ErrorCode::InvalidArgument),
            ModelErrorKind::Rejected => ("PROVIDER_REJECTED", ErrorCode::InvalidArgument),
            ModelErrorKind::Unavailable => ("PROVIDER_UNAVAILABLE", ErrorCode::Unavailable),
            ModelErrorKind::Timeout => ("PROVIDER_TIMEOUT", ErrorCode::Timeout),
            ModelErrorKind::Cut => ("PROVIDER_STREAM_CUT", ErrorCode::Unavailable),
            ModelErrorKind::Malformed => ("PROVIDER_MALFORMED", ErrorCode::Unavailable),
            ModelErrorKind::Empty => ("PROVIDER_EMPTY_ANSWER", ErrorCode::Unavailable),
            ModelErrorKind::OnlyReasoning => ("PROVIDER_ONLY_REASONING", ErrorCode::Unavailable),
        },
    }
}

/// How a failed turn is logged: the class of its failure.
pub(super) fn outcome(failure: &Failure) -> &'static str {
    match failure {
        Failure::Model(_) => "provider_failed",
        Failure::WrongToolCall | Failure::TooManyToolRounds => "tools_failed",
        Failure::NotKept => "not_kept",
        Failure::ShuttingDown => "shut_down",
        Failure::OutOfTime => "deadline_exceeded",
        Failure::Internal => "internal",
    }
}

fn error(language: Language, failure: &Failure) -> pb::Error {
    let (code, class) = code(failure);
    let details = match failure {
        Failure::Model(error) => details(error),
        _ => HashMap::new(),
    };
    let retryable = failure.is_retryable();
    let message = wording::failure(language, failure).to_owned();
    pb::Error { code: code.to_owned(), message, retryable, details, error_code: class.into() }
}

/// What helps whoever runs the service, without secrets.
fn details(error: &ModelError) -> HashMap<String, String> {
    let mut details = HashMap::new();
    let mut tell = |name: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            details.insert(name.to_owned(), value);
        }
    };
    tell("provider_status", error.status.map(|status| status.to_string()));
    tell("provider_code", error.provider_code.clone());
    tell("problem", error.problem.map(str::to_owned));
    tell("retry_after_ms", error.retry_after.map(|wait| wait.as_millis().to_string()));
    if let Some(origin) = &error.origin {
        tell("provider", Some(origin.provider.clone()));
        tell("model", Some(origin.model.clone()));
        tell("check", Some(origin.check.join(", ")));
        tell("address", origin.address_hint.map(str::to_owned));
    }
    details
}
