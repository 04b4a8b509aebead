//! Assembles an answer from chunks, and decides its outcome. A truncated answer is never reported as complete.

use super::{
    super::{
        error::{ModelError, ModelErrorKind},
        model::{Finish, ToolCall},
        tokens::TokenUsage,
    },
    calls::PartialCalls,
    chunk::{Chunk, ChunkUsage},
};
use crate::provider::ErrorReport;

#[derive(Debug, PartialEq)]
pub(super) enum AnswerOutcome {
    Finished(Finish),
    ToolsCalled { calls: Vec<ToolCall>, reasoning: Option<String> },
}

pub(super) struct PartialAnswer {
    finish: Option<ProviderFinish>,
    usage: Option<TokenUsage>,
    has_text: bool,
    reasoning: String,
    calls: PartialCalls,
    /// Of text, reasoning and calls together.
    bytes: usize,
    byte_limit: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum ProviderFinish {
    Finish(Finish),
    Failed,
}

impl ProviderFinish {
    /// `stop` and `tool_calls` are treated alike: the received calls are more reliable than the reason.
    fn from_reason(reason: &str) -> Self {
        match reason {
            "length" | "max_tokens" => Self::Finish(Finish::Length),
            "content_filter" | "sensitive" => Self::Finish(Finish::ContentFilter),
            // The first one is DeepSeek's, for an overloaded model.
            "insufficient_system_resource" | "error" | "abort" | "network_error" => Self::Failed,
            _ => Self::Finish(Finish::Stop),
        }
    }
}

impl PartialAnswer {
    pub(super) fn new(byte_limit: usize) -> Self {
        Self {
            finish: None,
            usage: None,
            has_text: false,
            reasoning: String::new(),
            calls: PartialCalls::default(),
            bytes: 0,
            byte_limit,
        }
    }

    pub(super) fn push(&mut self, chunk: Chunk) -> Result<Option<String>, ModelError> {
        if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
            return Err(ModelError::from_report(None, &ErrorReport::from_error(&error)));
        }
        if let Some(usage) = chunk.usage.and_then(ChunkUsage::token_usage) {
            self.usage = Some(usage);
        }
        // One answer is requested, so there is at most one choice.
        let Some(choice) = chunk.choices.into_iter().flatten().next() else { return Ok(None) };
        if let Some(reason) = choice.finish_reason.as_deref().filter(|reason| !reason.is_empty()) {
            self.finish = Some(ProviderFinish::from_reason(reason));
        }
        let Some(delta) = choice.delta else { return Ok(None) };
        if let Some(reasoning) = delta.reasoning_text() {
            self.bytes += reasoning.len();
            self.reasoning.push_str(reasoning);
        }
        for call in delta.tool_calls.into_iter().flatten() {
            self.bytes += self.calls.push(call)?;
        }
        let text = delta.content.filter(|content| !content.is_empty());
        self.has_text |= text.is_some();
        self.bytes += text.as_ref().map_or(0, String::len);
        Ok(text)
    }

    pub(super) fn usage(&self) -> Option<TokenUsage> {
        self.usage
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes >= self.byte_limit
    }

    pub(super) fn has_finished(&self) -> bool {
        self.finish.is_some()
    }

    /// Whether nothing of use can follow: the usage comes after the finish reason, and some servers repeat it.
    pub(super) fn is_complete(&self) -> bool {
        self.finish.is_some() && self.usage.is_some()
    }

    /// `is_done`: the stream ended with `[DONE]`.
    pub(super) fn finish(self, is_done: bool) -> Result<AnswerOutcome, ModelError> {
        let fail = |kind, detail: &str| Err(ModelError::new(kind, detail));
        let finish = match self.finish {
            _ if self.is_full() => Finish::Length,
            Some(ProviderFinish::Finish(finish)) => finish,
            Some(ProviderFinish::Failed) => {
                return fail(ModelErrorKind::Truncated, "the provider aborted the answer");
            }
            // Some servers send `[DONE]` without a finish reason.
            None if is_done => Finish::Stop,
            None => return fail(ModelErrorKind::Truncated, "the stream ended before the answer was complete"),
        };
        // Truncated calls cannot be run.
        if finish != Finish::Stop || self.calls.is_empty() {
            return match (finish, self.has_text) {
                (Finish::Stop, false) if !self.reasoning.is_empty() => {
                    fail(ModelErrorKind::OnlyReasoning, "the model sent reasoning and no answer")
                }
                (Finish::Stop, false) => fail(ModelErrorKind::EmptyAnswer, "the answer has no text"),
                _ => Ok(AnswerOutcome::Finished(finish)),
            };
        }
        let reasoning = Some(self.reasoning).filter(|reasoning| !reasoning.is_empty());
        Ok(AnswerOutcome::ToolsCalled { calls: self.calls.finish()?, reasoning })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn outcome(choices: &[Value], is_done: bool) -> Result<AnswerOutcome, ModelErrorKind> {
        let mut answer = PartialAnswer::new(1_000);
        for choice in choices {
            let chunk = json!({"choices": [choice]}).to_string();
            answer.push(Chunk::parse(chunk.as_bytes()).unwrap()).unwrap();
        }
        answer.finish(is_done).map_err(|error| error.kind)
    }

    fn text(text: &str) -> Value {
        json!({"delta": {"content": text}})
    }

    fn finish(reason: &str) -> Value {
        json!({"delta": {}, "finish_reason": reason})
    }

    #[test]
    fn tool_calls_override_finish_reason_unless_truncated() {
        let call =
            json!({"delta": {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]}});
        for reason in ["tool_calls", "stop", "function_call", "unknown_reason"] {
            let outcome = outcome(&[call.clone(), finish(reason)], false);
            assert!(matches!(outcome, Ok(AnswerOutcome::ToolsCalled { .. })), "{reason}: {outcome:?}");
        }
        assert_eq!(outcome(&[call.clone(), finish("length")], true), Ok(AnswerOutcome::Finished(Finish::Length)));
        assert_eq!(outcome(&[call.clone(), finish("")], false), Err(ModelErrorKind::Truncated));
        assert!(matches!(outcome(&[call, finish("")], true), Ok(AnswerOutcome::ToolsCalled { .. })));
    }

    #[test]
    fn answer_without_finish_reason_needs_done_marker() {
        assert_eq!(outcome(&[text("half")], false), Err(ModelErrorKind::Truncated));
        assert_eq!(outcome(&[text("half"), json!({"finish_reason": null})], false), Err(ModelErrorKind::Truncated));
        assert_eq!(outcome(&[text("whole")], true), Ok(AnswerOutcome::Finished(Finish::Stop)));
        assert_eq!(
            outcome(&[text("half"), finish("insufficient_system_resource")], true),
            Err(ModelErrorKind::Truncated)
        );
    }

    #[test]
    fn empty_answer_differs_from_reasoning_only() {
        assert_eq!(outcome(&[finish("stop")], true), Err(ModelErrorKind::EmptyAnswer));
        for name in ["reasoning_content", "reasoning"] {
            let thought = json!({"delta": {name: "hm", "content": null}});
            assert_eq!(outcome(&[thought.clone(), finish("stop")], true), Err(ModelErrorKind::OnlyReasoning));
            assert_eq!(outcome(&[thought, finish("length")], true), Ok(AnswerOutcome::Finished(Finish::Length)));
        }
    }

    #[test]
    fn endless_answer_ends_with_length_at_byte_limit() {
        let many: Vec<_> = (0..200).map(|_| text("ten bytes.")).collect();
        assert_eq!(outcome(&many, false), Ok(AnswerOutcome::Finished(Finish::Length)));
    }
}
