//! Events of a turn → frames of the contract.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use prost::Message as _;
use prost_types::{ListValue, Struct, Value as ProtoValue, value::Kind};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::wording;
use crate::{
    chat::{Prompts, RecalledMemory, Stage, ToolExecution, TurnEvent, TurnFailure, UsageReport},
    identity::{RequestId, SessionId, TraceId},
    language::Language,
    llm::{Finish, ModelError, ModelErrorKind, ToolCall},
    memory::ChunkLocation,
    proto::agent_v1::{self as pb, chat_response::Content},
};

/// Characters of a citation's excerpt.
const EXCERPT_CHARS: usize = 300;

/// What all frames of one stream have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Envelope {
    /// Of this stream; each frame adds its number to it.
    response_id: String,
    session: SessionId,
    request: RequestId,
    trace: TraceId,
}

impl Envelope {
    /// A new stream.
    pub(super) fn new(session: SessionId, request: RequestId, trace: TraceId) -> Self {
        Self { response_id: Uuid::now_v7().simple().to_string(), session, request, trace }
    }

    /// The conversation that it is of.
    pub(super) fn session(&self) -> &SessionId {
        &self.session
    }

    /// The same stream again, from what [`Envelope::to_bytes`] gave.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let head = pb::ChatResponse::decode(bytes).ok()?;
        let trace = TraceId::from_call(None, Some(&head.trace_id), "");
        Some(Self {
            response_id: head.response_id,
            session: SessionId::parse("session_id", &head.session_id).ok()?,
            request: RequestId::parse("request_id", &head.request_id).ok()?,
            trace,
        })
    }

    /// Something from which the stream's frames can be put into their envelope again.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let (session_id, request_id) = (self.session.as_str().to_owned(), self.request.as_str().to_owned());
        let (response_id, trace_id) = (self.response_id.clone(), self.trace.as_str().to_owned());
        pb::ChatResponse { response_id, session_id, request_id, trace_id, ..Default::default() }.encode_to_vec()
    }

    /// A frame as it is sent. That of the first is number 1.
    pub(super) fn frame(&self, number: u32, content: pb::ChatResponse) -> pb::ChatResponse {
        pb::ChatResponse {
            response_id: self.response_id(number),
            request_id: self.request.as_str().to_owned(),
            session_id: self.session.as_str().to_owned(),
            trace_id: self.trace.as_str().to_owned(),
            ..content
        }
    }

    /// Fixed width and ascending within the stream, so that a client can name the last frame that it saw.
    fn response_id(&self, number: u32) -> String {
        let mut id = String::with_capacity(self.response_id.len() + 9);
        id.push_str(&self.response_id);
        id.push('-');
        let digits = (0..8).rev().map(|place| (number >> (4 * place)) & 0xf);
        id.extend(digits.filter_map(|digit| char::from_digit(digit, 16)));
        id
    }

    /// The number of the frame that has this id; `None` = it is none of this stream.
    pub(super) fn number_of(&self, response_id: &str) -> Option<u32> {
        let number = response_id.strip_prefix(self.response_id.as_str())?.strip_prefix('-')?;
        (number.len() == 8).then(|| u32::from_str_radix(number, 16).ok()).flatten()
    }
}

/// Makes the frames of one stream, without their envelope.
pub(super) struct FrameBuilder {
    language: Language,
    whole_citations: bool,
    recall_failed: bool,
    /// What is said is not kept, although it should be.
    not_kept: bool,
}

impl FrameBuilder {
    pub(super) fn new(language: Language, whole_citations: bool) -> Self {
        Self { language, whole_citations, recall_failed: false, not_kept: false }
    }

    /// Tells the client that the conversation is not kept.
    pub(super) fn not_kept(self, not_kept: bool) -> Self {
        Self { not_kept, ..self }
    }

    /// The frame of an event; `None` = it is not for the client.
    pub(super) fn build(&mut self, event: TurnEvent) -> Option<pb::ChatResponse> {
        let mut frame = self.blank();
        match event {
            TurnEvent::Delta(delta) => frame.content = Some(Content::Delta(delta)),
            TurnEvent::StageEntered(stage) => {
                if matches!(stage, Stage::Generating { recall_failed: true }) {
                    self.recall_failed = true;
                    frame.metadata.insert("recall".to_owned(), "failed".to_owned());
                }
                if self.not_kept && stage == Stage::Thinking {
                    frame.metadata.insert("conversation".to_owned(), "not-kept".to_owned());
                }
                frame.content = Some(Content::StatusUpdate(status(self.language, stage)));
            }
            TurnEvent::Recalled(recalled) => {
                let citations = recalled.into_iter().map(|recalled| citation(recalled, self.whole_citations)).collect();
                frame.content = Some(Content::Citations(pb::CitationBlock { citations }));
            }
            TurnEvent::ToolExecuted(ran) => frame.content = Some(Content::ToolResult(tool_result(ran))),
            TurnEvent::ToolCalled(ToolCall { id, name, arguments }) => {
                frame.content = Some(Content::ToolCall(pb::ToolCall { id, name, arguments }));
            }
            TurnEvent::AwaitsTools => frame.set_finish_reason(pb::FinishReason::ToolCalls),
            TurnEvent::AwaitsMoreResults => frame.set_finish_reason(pb::FinishReason::Continue),
            TurnEvent::Usage(spent) => {
                frame.metadata = spent_metadata(&spent);
                frame.content = Some(Content::Usage(usage(&spent)));
            }
            TurnEvent::Answered { text, finish } => {
                frame.content = Some(Content::FullText(text));
                frame.set_finish_reason(match finish {
                    Finish::Stop => pb::FinishReason::Stop,
                    Finish::Length => pb::FinishReason::Length,
                    Finish::ContentFilter => pb::FinishReason::ContentFilter,
                });
                if self.recall_failed {
                    frame.metadata.insert("recall".to_owned(), "failed".to_owned());
                }
                if self.not_kept {
                    frame.metadata.insert("conversation".to_owned(), "not-kept".to_owned());
                }
            }
            TurnEvent::Failed(failure) => {
                frame.content = Some(Content::Error(error(self.language, &failure)));
                frame.set_finish_reason(pb::FinishReason::Error);
            }
            TurnEvent::Closing(_) => return None,
        }
        Some(frame)
    }

    /// A frame without content, made now.
    fn blank(&self) -> pb::ChatResponse {
        // A clock before 1970 is the only error, and then 1970 is as good as anything.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        pb::ChatResponse {
            created_at: seconds,
            prompt_version: Prompts::version(self.language).to_owned(),
            event_time: Some(prost_types::Timestamp { seconds, nanos: now.subsec_nanos().cast_signed() }),
            ..Default::default()
        }
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

fn citation(RecalledMemory { memory, score }: RecalledMemory, whole: bool) -> pb::Citation {
    let told = |name: &str| memory.metadata.get(name).cloned().unwrap_or_default();
    let number = |name: &str| told(name).parse::<u32>().unwrap_or_default();
    let int = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    let page_number = number("page_number");
    // A memory that is no chunk may tell by its metadata where it comes from.
    let place = memory.location.clone().unwrap_or_else(|| ChunkLocation {
        document_id: String::new(),
        title: told("title"),
        url: told("url"),
        section: told("section_title"),
        chunk_index: number("chunk_index"),
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
        file_id: place.document_id,
        page_number: int(page_number),
        chunk_index: int(place.chunk_index),
        section_title: place.section,
    }
}

fn usage(spent: &UsageReport) -> pb::Usage {
    let int = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    pb::Usage {
        prompt_tokens: int(spent.usage.prompt),
        completion_tokens: int(spent.usage.completion),
        total_tokens: int(spent.usage.prompt.saturating_add(spent.usage.completion)),
        cost_micro_usd: spent.cost_micro_usd.unwrap_or_default(),
    }
}

fn spent_metadata(spent: &UsageReport) -> BTreeMap<String, String> {
    let mut metadata = BTreeMap::new();
    let mut tell = |name: &str, value: String| metadata.insert(name.to_owned(), value);
    tell("usage_source", if spent.is_estimated { "estimated" } else { "provider" }.to_owned());
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
fn tool_result(ToolExecution { call_id, name, outcome }: ToolExecution) -> pb::ToolResultPayload {
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
fn code(failure: &TurnFailure) -> (&'static str, pb::ErrorCode) {
    use pb::ErrorCode;
    match failure {
        TurnFailure::ShuttingDown => ("SERVER_SHUTTING_DOWN", ErrorCode::Unavailable),
        TurnFailure::DeadlineExceeded => ("DEADLINE_EXCEEDED", ErrorCode::Timeout),
        TurnFailure::InvalidToolCall => ("TOOL_CALL_INVALID", ErrorCode::Unavailable),
        TurnFailure::ToolRoundsExceeded => ("TOOL_ROUNDS_EXCEEDED", ErrorCode::Internal),
        TurnFailure::NotPersisted => ("TURN_NOT_KEPT", ErrorCode::Unavailable),
        TurnFailure::Cancelled => ("CANCELLED", ErrorCode::Unknown),
        TurnFailure::Abandoned => ("ABANDONED", ErrorCode::Unavailable),
        TurnFailure::Internal => ("INTERNAL", ErrorCode::Internal),
        TurnFailure::Model(error) => match error.kind {
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
            ModelErrorKind::Truncated => ("PROVIDER_STREAM_CUT", ErrorCode::Unavailable),
            ModelErrorKind::Malformed => ("PROVIDER_MALFORMED", ErrorCode::Unavailable),
            ModelErrorKind::EmptyAnswer => ("PROVIDER_EMPTY_ANSWER", ErrorCode::Unavailable),
            ModelErrorKind::OnlyReasoning => ("PROVIDER_ONLY_REASONING", ErrorCode::Unavailable),
        },
    }
}

/// How a failed turn is logged: the class of its failure.
pub(super) fn outcome(code: &str) -> &'static str {
    match code {
        "SERVER_SHUTTING_DOWN" => "shut_down",
        "DEADLINE_EXCEEDED" => "deadline_exceeded",
        "TOOL_CALL_INVALID" | "TOOL_ROUNDS_EXCEEDED" => "tools_failed",
        "TURN_NOT_KEPT" => "not_kept",
        "CANCELLED" => "cancelled",
        "ABANDONED" => "abandoned",
        code if code.starts_with("PROVIDER_") => "provider_failed",
        _ => "internal",
    }
}

fn error(language: Language, failure: &TurnFailure) -> pb::Error {
    let (code, class) = code(failure);
    let details = match failure {
        TurnFailure::Model(error) => details(error),
        _ => BTreeMap::new(),
    };
    let retryable = failure.is_retryable();
    let message = wording::failure(language, failure).to_owned();
    pb::Error { code: code.to_owned(), message, retryable, details, error_code: class.into() }
}

/// What helps whoever runs the service, without secrets.
fn details(error: &ModelError) -> BTreeMap<String, String> {
    let mut details = BTreeMap::new();
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
        tell("check", Some(origin.variables_to_check.join(", ")));
        tell("address", origin.address_hint.map(str::to_owned));
    }
    details
}
