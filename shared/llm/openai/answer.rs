//! What has come of an answer so far, and what it comes to.

use super::{
    super::{Finish, ModelError, ModelErrorKind, TokenUsage, ToolCall},
    calls::Calls,
    chunk::{Chunk, Usage},
};
use crate::provider::Report;

/// How an answer ended.
#[derive(Debug, PartialEq)]
pub(super) enum Ended {
    Finished(Finish),
    Called { calls: Vec<ToolCall>, reasoning: Option<String> },
}

/// An answer as far as it has come.
pub(super) struct Answer {
    finish: Option<Told>,
    usage: Option<TokenUsage>,
    has_text: bool,
    reasoning: String,
    calls: Calls,
    /// Of text, thought and calls together, and how many there may be.
    bytes: usize,
    limit: usize,
}

/// What the provider said of the end.
#[derive(Clone, Copy, PartialEq)]
enum Told {
    Finish(Finish),
    /// It gave up.
    Failed,
}

impl Told {
    /// The meaning of a `finish_reason`. The calls that have come say more than `stop` or `tool_calls` does.
    fn of(reason: &str) -> Self {
        match reason {
            "length" | "max_tokens" => Self::Finish(Finish::Length),
            "content_filter" | "sensitive" => Self::Finish(Finish::ContentFilter),
            // DeepSeek's word for a model that was taken away, and those of others.
            "insufficient_system_resource" | "error" | "abort" | "network_error" => Self::Failed,
            _ => Self::Finish(Finish::Stop),
        }
    }
}

impl Answer {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            finish: None,
            usage: None,
            has_text: false,
            reasoning: String::new(),
            calls: Calls::default(),
            bytes: 0,
            limit,
        }
    }

    /// Takes a chunk and gives the text in it.
    pub(super) fn take(&mut self, chunk: Chunk) -> Result<Option<String>, ModelError> {
        if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
            return Err(ModelError::reported(None, &Report::of_error(&error)));
        }
        if let Some(usage) = chunk.usage.and_then(Usage::known) {
            self.usage = Some(usage);
        }
        // One answer was asked for, so there is at most one choice.
        let Some(choice) = chunk.choices.into_iter().flatten().next() else { return Ok(None) };
        if let Some(reason) = choice.finish_reason.as_deref().filter(|reason| !reason.is_empty()) {
            self.finish = Some(Told::of(reason));
        }
        let Some(delta) = choice.delta else { return Ok(None) };
        if let Some(thought) = delta.thought() {
            self.bytes += thought.len();
            self.reasoning.push_str(thought);
        }
        for call in delta.tool_calls.into_iter().flatten() {
            self.bytes += self.calls.take(call)?;
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
    pub(super) fn end(self, done: bool) -> Result<Ended, ModelError> {
        let fail = |kind, detail: &str| Err(ModelError::new(kind, detail));
        let finish = match self.finish {
            _ if self.is_full() => Finish::Length,
            Some(Told::Finish(finish)) => finish,
            Some(Told::Failed) => return fail(ModelErrorKind::Cut, "the provider gave up in the middle of the answer"),
            // Some servers send `[DONE]` without a reason.
            None if done => Finish::Stop,
            None => return fail(ModelErrorKind::Cut, "the stream ended before the answer was complete"),
        };
        // Calls that were cut off can not be made.
        if finish != Finish::Stop || self.calls.is_empty() {
            return match (finish, self.has_text) {
                (Finish::Stop, false) if !self.reasoning.is_empty() => {
                    fail(ModelErrorKind::OnlyReasoning, "the model thought and said nothing")
                }
                (Finish::Stop, false) => fail(ModelErrorKind::Empty, "the answer has no text"),
                _ => Ok(Ended::Finished(finish)),
            };
        }
        let reasoning = Some(self.reasoning).filter(|reasoning| !reasoning.is_empty());
        Ok(Ended::Called { calls: self.calls.complete()?, reasoning })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn ended(choices: &[Value], done: bool) -> Result<Ended, ModelErrorKind> {
        let mut answer = Answer::new(1_000);
        for choice in choices {
            let chunk = json!({"choices": [choice]}).to_string();
            answer.take(Chunk::parse(chunk.as_bytes()).unwrap()).unwrap();
        }
        answer.end(done).map_err(|error| error.kind)
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
            assert!(matches!(ended, Ok(Ended::Called { .. })), "{reason}: {ended:?}");
        }
        assert_eq!(ended(&[call.clone(), finish("length")], true), Ok(Ended::Finished(Finish::Length)));
        assert_eq!(ended(&[call.clone(), finish("")], false), Err(ModelErrorKind::Cut));
        assert!(matches!(ended(&[call, finish("")], true), Ok(Ended::Called { .. })));
    }

    #[test]
    fn an_end_without_a_reason_is_a_cut_unless_the_stream_said_that_it_is_whole() {
        assert_eq!(ended(&[text("half")], false), Err(ModelErrorKind::Cut));
        assert_eq!(ended(&[text("half"), json!({"finish_reason": null})], false), Err(ModelErrorKind::Cut));
        assert_eq!(ended(&[text("whole")], true), Ok(Ended::Finished(Finish::Stop)));
        assert_eq!(ended(&[text("half"), finish("insufficient_system_resource")], true), Err(ModelErrorKind::Cut));
    }

    #[test]
    fn nothing_and_thought_alone_are_told_apart() {
        assert_eq!(ended(&[finish("stop")], true), Err(ModelErrorKind::Empty));
        for name in ["reasoning_content", "reasoning"] {
            let thought = json!({"delta": {name: "hm", "content": null}});
            assert_eq!(ended(&[thought.clone(), finish("stop")], true), Err(ModelErrorKind::OnlyReasoning));
            assert_eq!(ended(&[thought, finish("length")], true), Ok(Ended::Finished(Finish::Length)));
        }
    }

    #[test]
    fn an_answer_that_does_not_end_is_cut_at_its_limit_and_says_so() {
        let many: Vec<_> = (0..200).map(|_| text("ten bytes.")).collect();
        assert_eq!(ended(&many, false), Ok(Ended::Finished(Finish::Length)));
    }
}
