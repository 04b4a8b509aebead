//! Turn events as encoded frames, without the envelope of their stream.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use prost::{
    Message as _,
    encoding::{
        WireType, decode_key, encode_key, encode_varint, encoded_len_varint, int64, key_len, message, skip_field,
    },
};
use prost_types::Timestamp;
use serde_json::{Value, json};

use super::{convert, failure, wording};
use crate::{
    chat::{
        ApprovalRequest, Prompts, RecalledMemory, RecordedCitation, RecordedUsage, Stage, ToolExecution, TurnEvent,
        TurnFailure, UsageReport,
    },
    language::Language,
    llm::{Finish, ToolCall},
    proto::agent_v1::{self as pb, chat_response::Content},
};

/// A `ChatResponse` without its envelope. It is encoded once; logs, stores and transports pass the bytes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EncodedFrame {
    pub(super) content: Bytes,
    pub(super) kind: FrameKind,
}

/// The part of a frame that delivery depends on, known without decoding it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FrameKind {
    Delta,
    Last {
        /// For the log line of the call.
        outcome: &'static str,
    },
    Other,
}

impl EncodedFrame {
    fn encode(message: &pb::ChatResponse) -> Self {
        Self { content: message.encode_to_vec().into(), kind: FrameKind::of_message(message) }
    }

    /// As [`Self::encode`] of a message with these fields, without building it: nearly all frames are deltas.
    fn encode_delta(time: Timestamp, prompt_version: &str, delta: &str) -> Self {
        const CREATED_AT: u32 = 2;
        const DELTA: u32 = 3;
        const PROMPT_VERSION: u32 = 17;
        const EVENT_TIME: u32 = 19;
        let strings = [(DELTA, delta), (PROMPT_VERSION, prompt_version)];
        let string_len = |(tag, text): (u32, &str)| key_len(tag) + encoded_len_varint(text.len() as u64) + text.len();
        let length = int64::encoded_len(CREATED_AT, &time.seconds)
            + strings.map(string_len).iter().sum::<usize>()
            + message::encoded_len(EVENT_TIME, &time);
        let mut bytes = Vec::with_capacity(length);
        int64::encode(CREATED_AT, &time.seconds, &mut bytes);
        for (tag, text) in strings {
            encode_key(tag, WireType::LengthDelimited, &mut bytes);
            encode_varint(text.len() as u64, &mut bytes);
            bytes.extend_from_slice(text.as_bytes());
        }
        message::encode(EVENT_TIME, &time, &mut bytes);
        Self { content: bytes.into(), kind: FrameKind::Delta }
    }

    /// A frame from a store, which holds only the bytes: they are decoded once for the kind, and passed on.
    pub(super) fn from_stored(content: Bytes) -> Option<Self> {
        let mut message = pb::ChatResponse::decode(content.as_ref()).ok()?;
        let kind = FrameKind::of_message(&message);
        let is_changed = convert::remove_unsafe_links(&mut message);
        Some(Self { content: if is_changed { message.encode_to_vec().into() } else { content }, kind })
    }

    pub(super) fn is_last(&self) -> bool {
        matches!(self.kind, FrameKind::Last { .. })
    }
}

impl FrameKind {
    fn of_message(message: &pb::ChatResponse) -> Self {
        let outcome = match message.finish_reason() {
            pb::FinishReason::Null if matches!(message.content, Some(Content::Delta(_))) => return Self::Delta,
            pb::FinishReason::Null => return Self::Other,
            pb::FinishReason::Stop => "stop",
            pb::FinishReason::Length => "length",
            pb::FinishReason::ToolCalls => "tool_calls",
            pb::FinishReason::ContentFilter => "content_filter",
            pb::FinishReason::Continue => "continue",
            pb::FinishReason::Error => match &message.content {
                Some(Content::Error(error)) => failure::outcome(&error.code),
                _ => "internal",
            },
        };
        Self::Last { outcome }
    }
}

pub(super) struct FrameBuilder {
    language: Language,
    full_citations: bool,
    recall_failed: bool,
    is_degraded: bool,
}

impl FrameBuilder {
    pub(super) fn new(language: Language, full_citations: bool) -> Self {
        Self { language, full_citations, recall_failed: false, is_degraded: false }
    }

    /// Reports to the client that the conversation is not persisted because its store is unreachable.
    pub(super) fn degraded(self, is_degraded: bool) -> Self {
        Self { is_degraded, ..self }
    }

    /// Of a stream that waits for the process that runs it.
    pub(super) fn waiting_status(&self, stage: Stage) -> EncodedFrame {
        let mut frame = self.blank();
        let details = wording::waiting_for_process(self.language).to_owned();
        frame.content = Some(Content::StatusUpdate(pb::AgentStatus { details, ..status(self.language, stage) }));
        EncodedFrame::encode(&frame)
    }

    /// `None` for an event that is not sent.
    pub(super) fn build(&mut self, event: TurnEvent) -> Option<EncodedFrame> {
        if let TurnEvent::Delta(delta) = event {
            return Some(EncodedFrame::encode_delta(now(), Prompts::version(self.language), &delta));
        }
        let mut frame = self.blank();
        match event {
            TurnEvent::Delta(delta) => frame.content = Some(Content::Delta(delta)),
            TurnEvent::StageEntered(stage) => {
                if matches!(stage, Stage::Generating { recall_failed: true }) {
                    self.recall_failed = true;
                    frame.metadata.insert("recall".to_owned(), "failed".to_owned());
                }
                if self.is_degraded && stage == Stage::Thinking {
                    frame.metadata.insert("conversation".to_owned(), "not-kept".to_owned());
                }
                frame.content = Some(Content::StatusUpdate(status(self.language, stage)));
            }
            TurnEvent::Recalled(memories) => {
                let citations = memories.into_iter().map(|memory| citation(memory, self.full_citations)).collect();
                frame.content = Some(Content::Citations(pb::CitationBlock { citations }));
            }
            TurnEvent::ToolExecuted(execution) => {
                frame.content = Some(Content::ToolResult(tool_result(self.language, execution)));
            }
            TurnEvent::ToolCalled(ToolCall { id, name, arguments }) => {
                frame.content = Some(Content::ToolCall(pb::ToolCall { id, name, arguments }));
            }
            TurnEvent::ApprovalRequested(ApprovalRequest { call: ToolCall { id, name, arguments }, memories }) => {
                frame.metadata.insert("needs_approval".to_owned(), "true".to_owned());
                frame.metadata.insert("approval_details".to_owned(), json!(memories).to_string());
                frame.content = Some(Content::ToolCall(pb::ToolCall { id, name, arguments }));
            }
            TurnEvent::AwaitsTools => frame.set_finish_reason(pb::FinishReason::ToolCalls),
            TurnEvent::AwaitsMoreResults => frame.set_finish_reason(pb::FinishReason::Continue),
            TurnEvent::Usage(report) => {
                frame.metadata = usage_metadata(&report);
                frame.content = Some(Content::Usage(convert::usage(RecordedUsage::from(&report))));
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
                if self.is_degraded {
                    frame.metadata.insert("conversation".to_owned(), "not-kept".to_owned());
                }
            }
            TurnEvent::Failed(failure) => return Some(self.failure(&failure)),
            TurnEvent::Closing(_) => return None,
        }
        Some(EncodedFrame::encode(&frame))
    }

    pub(super) fn failure(&self, failure: &TurnFailure) -> EncodedFrame {
        let mut frame = self.blank();
        frame.content = Some(Content::Error(failure::error(self.language, failure)));
        frame.set_finish_reason(pb::FinishReason::Error);
        EncodedFrame::encode(&frame)
    }

    /// The only frame of a call that is refused.
    pub(super) fn refusal(language: Language, error: pb::Error, outcome: &'static str) -> EncodedFrame {
        let mut frame = Self::new(language, false).blank();
        frame.content = Some(Content::Error(error));
        frame.set_finish_reason(pb::FinishReason::Error);
        EncodedFrame { content: frame.encode_to_vec().into(), kind: FrameKind::Last { outcome } }
    }

    fn blank(&self) -> pb::ChatResponse {
        let time = now();
        pb::ChatResponse {
            created_at: time.seconds,
            prompt_version: Prompts::version(self.language).to_owned(),
            event_time: Some(time),
            ..Default::default()
        }
    }
}

/// Whether an encoded frame is a status, without decoding it.
pub(super) fn is_status(mut content: &[u8]) -> bool {
    const STATUS_UPDATE: u32 = 5;
    while let Ok((tag, wire_type)) = decode_key(&mut content) {
        if tag == STATUS_UPDATE {
            return true;
        }
        if skip_field(wire_type, tag, &mut content, Default::default()).is_err() {
            return false;
        }
    }
    false
}

/// An encoded frame again, as sent now.
pub(super) fn with_current_time(content: &Bytes) -> Bytes {
    let Ok(mut frame) = pb::ChatResponse::decode(content.as_ref()) else { return content.clone() };
    let time = now();
    frame.created_at = time.seconds;
    frame.event_time = Some(time);
    frame.encode_to_vec().into()
}

fn now() -> Timestamp {
    // A clock before 1970 reads as 1970.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp { seconds: i64::try_from(now.as_secs()).unwrap_or(i64::MAX), nanos: now.subsec_nanos().cast_signed() }
}

fn status(language: Language, stage: Stage) -> pb::AgentStatus {
    let state = match stage {
        Stage::Thinking => pb::agent_status::State::Thinking,
        Stage::Searching => pb::agent_status::State::Searching,
        Stage::Generating { .. } => pb::agent_status::State::Generating,
        Stage::ExecutingTools => pb::agent_status::State::ExecutingTool,
    };
    let agent = match stage {
        Stage::Searching => pb::AgentType::Knowledge,
        Stage::Thinking | Stage::Generating { .. } | Stage::ExecutingTools => pb::AgentType::Orchestrator,
    };
    pb::AgentStatus {
        state: state.into(),
        details: wording::stage(language, stage).to_owned(),
        current_agent_name: agent.as_str_name().to_owned(),
        active_agent: agent.into(),
    }
}

fn citation(recalled: RecalledMemory, full: bool) -> pb::Citation {
    let citation = convert::citation(RecordedCitation::from(&recalled));
    if full { pb::Citation { content: recalled.memory.content, ..citation } } else { citation }
}

fn usage_metadata(report: &UsageReport) -> BTreeMap<String, String> {
    let mut metadata = BTreeMap::new();
    let mut insert = |name: &str, value: String| metadata.insert(name.to_owned(), value);
    insert("usage_source", if report.is_estimated { "estimated" } else { "provider" }.to_owned());
    insert("model", report.model.clone());
    if report.cost_micro_usd.is_none() {
        // Zero would read as a price.
        insert("cost", "unknown".to_owned());
    }
    for (name, tokens) in [("cached_tokens", report.usage.cached), ("reasoning_tokens", report.usage.reasoning)] {
        if tokens > 0 {
            insert(name, tokens.to_string());
        }
    }
    if report.by_model.len() > 1 {
        let by_model = report.by_model.iter().map(|(model, tokens)| {
            let counts = json!({"prompt_tokens": tokens.prompt, "completion_tokens": tokens.completion});
            (model.clone(), counts)
        });
        insert("usage_by_model", Value::Object(by_model.collect()).to_string());
    }
    metadata
}

fn tool_result(language: Language, ToolExecution { call_id, name, outcome }: ToolExecution) -> pb::ToolResultPayload {
    let mut payload = pb::ToolResultPayload { tool_name: name, tool_call_id: call_id, ..Default::default() };
    match outcome {
        Ok(Value::Object(fields)) => {
            payload.success = true;
            payload.data = Some(convert::proto_struct(fields));
        }
        Ok(_) => payload.success = true,
        Err(failure) => {
            let (message, suggestion) = wording::tool_failure(language, failure);
            payload.error_message = message.to_owned();
            payload.suggestion = suggestion.to_owned();
        }
    }
    payload
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_frame_loses_links_that_a_client_must_not_open() {
        let citations = |urls: [&str; 2]| {
            let citation = |url: &str| pb::Citation { url: url.to_owned(), title: "t".into(), ..Default::default() };
            let block = pb::CitationBlock { citations: urls.map(citation).into() };
            pb::ChatResponse { content: Some(Content::Citations(block)), ..Default::default() }
        };
        let replayed = |urls| EncodedFrame::from_stored(citations(urls).encode_to_vec().into()).unwrap();
        let safe = ["https://example.com", ""];
        assert_eq!(replayed(safe), EncodedFrame::encode(&citations(safe)));
        let unsafe_one = replayed(["https://example.com", "java\tscript:alert(1)"]);
        assert_eq!(unsafe_one, EncodedFrame::encode(&citations(safe)));
    }

    #[test]
    fn delta_is_encoded_as_its_message() {
        let time = Timestamp { seconds: 1_795_000_000, nanos: 123_456_789 };
        for delta in ["a".to_owned(), "线性代数 🎓".repeat(40)] {
            let message = pb::ChatResponse {
                created_at: time.seconds,
                prompt_version: "2026-11-2.en".to_owned(),
                event_time: Some(time),
                content: Some(Content::Delta(delta.clone())),
                ..Default::default()
            };
            let frame = EncodedFrame::encode_delta(time, "2026-11-2.en", &delta);
            assert_eq!(frame, EncodedFrame::encode(&message));
            assert_eq!(EncodedFrame::from_stored(frame.content.clone()), Some(frame));
        }
    }
}
