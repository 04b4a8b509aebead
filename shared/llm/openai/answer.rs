//! What has come of an answer so far, and what it comes to.

use super::{
    super::{Finish, ModelError, ModelErrorKind, TokenUsage, ToolCall},
    calls::PartialCalls,
    chunk::{Chunk, ChunkUsage},
};
use crate::provider::ErrorReport;

/// How an answer ended.
#[derive(Debug, PartialEq)]
pub(super) enum AnswerOutcome {
    Finished(Finish),
    ToolsCalled { calls: Vec<ToolCall>, reasoning: Option<String> },
}

/// An answer as far as it has come.
pub(super) struct PartialAnswer {
    finish: Option<ProviderFinish>,
    usage: Option<TokenUsage>,
    has_text: bool,
    reasoning: String,
    calls: PartialCalls,
    /// Of text, thought and calls together, and how many there may be.
    bytes: usize,
    limit: usize,
}

/// What the provider said of the end.
#[derive(Clone, Copy, PartialEq)]
enum ProviderFinish {
    Finish(Finish),
    /// It gave up.
    Failed,
}

impl ProviderFinish {
    /// The meaning of a `finish_reason`. The calls that have come say more than `stop` or `tool_calls` does.
    fn from_reason(reason: &str) -> Self {
        match reason {
            "length" | "max_tokens" => Self::Finish(Finish::Length),
            "content_filter" | "sensitive" => Self::Finish(Finish::ContentFilter),
            // DeepSeek's word for a model that was taken away, and those of others.
            "insufficient_system_resource" | "error" | "abort" | "network_error" => Self::Failed,
            _ => Self::Finish(Finish::Stop),
        }
    }
}

impl PartialAnswer {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            finish: None,
            usage: None,
            has_text: false,
            reasoning: String::new(),
            calls: PartialCalls::default(),
            bytes: 0,
            limit,
        }
    }

    /// Takes a chunk and gives the text in it.
    pub(super) fn push(&mut self, chunk: Chunk) -> Result<Option<String>, ModelError> {
        if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
            return Err(ModelError::from_report(None, &ErrorReport::from_error(&error)));
        }
        if let Some(usage) = chunk.usage.and_then(ChunkUsage::token_usage) {
            self.usage = Some(usage);
        }
        // One answer was asked for, so there is at most one choice.
        let Some(choice) = chunk.choices.into_iter().flatten().next() else { return Ok(None) };
        if let Some(reason) = choice.finish_reason.as_deref().filter(|reason| !reason.is_empty()) {
            self.finish = Some(ProviderFinish::from_reason(reason));
        }
        let Some(delta) = choice.delta else { return Ok(None) };
        if let Some(thought) = delta.reasoning_text() {
            self.bytes += thought.len();
            self.reasoning.push_str(thought);
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

    /// Whether no more is taken.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= self.limit
    }

    /// Whether the provider said that it has ended.
    pub(super) fn has_finished(&self) -> bool {
        self.finish.is_some()
    }

    /// Whether nothing that matters can come any more. The usage follows the finish reason, but some servers repeat it.
    pub(super) fn is_complete(&self) -> bool {
        self.finish.is_some() && self.usage.is_some()
    }

    /// What it comes to, where `done` is whether the stream said that it is whole. A cut answer is never called complete.
    pub(super) fn finish(self, done: bool) -> Result<AnswerOutcome, ModelError> {
        let fail = |kind, detail: &str| Err(ModelError::new(kind, detail));
        let finish = match self.finish {
            _ if self.is_full() => Finish::Length,
            Some(ProviderFinish::Finish(finish)) => finish,
            Some(ProviderFinish::Failed) => {
                return fail(ModelErrorKind::Truncated, "the provider gave up in the middle of the answer");
            }
            // Some servers send `[DONE]` without a reason.
            None if done => Finish::Stop,
            None => return fail(ModelErrorKind::Truncated, "the stream ended before the answer was complete"),
        };
        // Calls that were cut off can not be made.
        if finish != Finish::Stop || self.calls.is_empty() {
            return match (finish, self.has_text) {
                (Finish::Stop, false) if !self.reasoning.is_empty() => {
                    fail(ModelErrorKind::OnlyReasoning, "the model thought and said nothing")
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

    fn ended(choices: &[Value], done: bool) -> Result<AnswerOutcome, ModelErrorKind> {
        let mut answer = PartialAnswer::new(1_000);
        for choice in choices {
            let chunk = json!({"choices": [choice]}).to_string();
            answer.push(Chunk::parse(chunk.as_bytes()).unwrap()).unwrap();
        }
        answer.finish(done).map_err(|error| error.kind)
    }

    fn text(text: &str) -> Value {
        json!({"delta": {"content": text}})
    }

    fn finish(reason: &str) -> Value {
        json!({"delta": {}, "finish_reason": reason})
    }

    #[test]
    fn calls_decide_whatever_the_finish_reason_says_unless_they_were_cut() {
        let call =
            json!({"delta": {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]}});
        for reason in ["tool_calls", "stop", "function_call", "unheard_of"] {
            let ended = ended(&[call.clone(), finish(reason)], false);
            assert!(matches!(ended, Ok(AnswerOutcome::ToolsCalled { .. })), "{reason}: {ended:?}");
        }
        assert_eq!(ended(&[call.clone(), finish("length")], true), Ok(AnswerOutcome::Finished(Finish::Length)));
        assert_eq!(ended(&[call.clone(), finish("")], false), Err(ModelErrorKind::Truncated));
        assert!(matches!(ended(&[call, finish("")], true), Ok(AnswerOutcome::ToolsCalled { .. })));
    }

    #[test]
    fn an_end_without_a_reason_is_a_cut_unless_the_stream_said_that_it_is_whole() {
        assert_eq!(ended(&[text("half")], false), Err(ModelErrorKind::Truncated));
        assert_eq!(ended(&[text("half"), json!({"finish_reason": null})], false), Err(ModelErrorKind::Truncated));
        assert_eq!(ended(&[text("whole")], true), Ok(AnswerOutcome::Finished(Finish::Stop)));
        assert_eq!(
            ended(&[text("half"), finish("insufficient_system_resource")], true),
            Err(ModelErrorKind::Truncated)
        );
    }

    #[test]
    fn nothing_and_thought_alone_are_told_apart() {
        assert_eq!(ended(&[finish("stop")], true), Err(ModelErrorKind::EmptyAnswer));
        for name in ["reasoning_content", "reasoning"] {
            let thought = json!({"delta": {name: "hm", "content": null}});
            assert_eq!(ended(&[thought.clone(), finish("stop")], true), Err(ModelErrorKind::OnlyReasoning));
            assert_eq!(ended(&[thought, finish("length")], true), Ok(AnswerOutcome::Finished(Finish::Length)));
        }
    }

    #[test]
    fn an_answer_that_does_not_end_is_cut_at_its_limit_and_says_so() {
        let many: Vec<_> = (0..200).map(|_| text("ten bytes.")).collect();
        assert_eq!(ended(&many, false), Ok(AnswerOutcome::Finished(Finish::Length)));
    }
}
