//! The context of a turn. A pending turn is persisted as its JSON, so serde names must not change.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    record::{RecordedCitation, RecordedUsage, TurnFinish, TurnRecord},
    usage::UsageReport,
};
use crate::{
    identity::UserId,
    llm::{Message, ModelRequest, ToolCall},
    memory::Filter,
    tools::{MemoryTool, ToolOffer, conversation_words},
};

const MAX_TOOL_ROUNDS: u32 = 8;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct TurnContext {
    /// Shared with the model request; copied only if that is still alive when a message is added.
    pub(super) messages: Arc<Vec<Message>>,
    /// Index of the user's message of this turn.
    pub(super) begin: usize,
    pub(super) citations: Vec<RecordedCitation>,
    pub(super) model: Option<String>,
    pub(super) temperature: Option<f32>,
    pub(super) max_tokens: Option<u32>,
    pub(super) tools: Vec<String>,
    pub(super) rounds: u32,
    pub(super) language_tag: String,
    pub(super) timezone: String,
    /// Limit of the memory search; empty: no limit; `None`: no retrieval.
    pub(super) documents: Option<Vec<String>>,
    /// Memories that the model deleted without approval.
    #[serde(default)]
    pub(super) forgotten: usize,
    #[serde(default)]
    pub(super) saved: usize,
    /// Of the user in this conversation; `None` until a call needs them.
    #[serde(skip)]
    pub(super) own_words: Option<Arc<str>>,
    /// Tokens of the messages that were released. A pending turn has released none.
    #[serde(skip)]
    pub(super) released_tokens: Option<u32>,
}

impl TurnContext {
    pub(super) fn model_request(&self, user: &UserId, offer: &ToolOffer, deadline: Instant) -> ModelRequest {
        ModelRequest {
            user: Some(user.clone()),
            model: self.model.clone(),
            messages: self.messages.clone(),
            temperature: self.temperature,
            max_tokens: self.max_tokens,
            tools: offer.json().clone(),
            must_answer: self.must_answer(),
            deadline,
        }
    }

    /// Drops the messages before this turn. Its record needs the others.
    pub(super) fn release_prompt(&mut self) {
        self.released_tokens = Some(estimate_tokens(&self.messages[..self.begin]));
        self.messages = Arc::new(self.messages[self.begin..].to_vec());
        self.begin = 0;
    }

    pub(super) fn has_released_prompt(&self) -> bool {
        self.released_tokens.is_some()
    }

    pub(super) fn must_answer(&self) -> bool {
        self.rounds >= MAX_TOOL_ROUNDS
    }

    /// A turn adds no message of the user, so they are extracted once.
    pub(super) fn own_words(&mut self) -> Arc<str> {
        let messages = self.messages.iter().rev().filter_map(|message| match message {
            Message::User(text) => Some(text.as_str()),
            _ => None,
        });
        self.own_words.get_or_insert_with(|| conversation_words(messages).into()).clone()
    }

    pub(super) fn push(&mut self, message: Message) {
        Arc::make_mut(&mut self.messages).push(message);
    }

    /// In the order of the calls in the model's last message. Returns the results of calls that are the server's: the client was
    /// asked to approve them.
    pub(super) fn push_tool_results(&mut self, mut results: Vec<(String, String)>) -> Vec<ApprovalAnswer> {
        let calls = self.messages.iter().rev().find_map(|message| match message {
            Message::Assistant { calls, .. } => Some(calls.clone()),
            _ => None,
        });
        let calls = calls.unwrap_or_default();
        results.sort_by_key(|(call_id, _)| calls.iter().position(|call| call.id == *call_id));
        let mut answers = Vec::new();
        for (call_id, content) in results {
            match calls.iter().find(|call| call.id == call_id && MemoryTool::from_name(&call.name).is_some()) {
                Some(call) => answers.push(ApprovalAnswer { call: call.clone(), is_approved: is_approval(&content) }),
                None => self.push(Message::Tool { call_id, content }),
            }
        }
        answers
    }

    /// Drops messages from the first call without a result on: providers reject an unanswered call.
    pub(super) fn to_record(
        &self,
        text: &str,
        model: &str,
        usage: Option<&UsageReport>,
        finish: TurnFinish,
    ) -> TurnRecord {
        let mut messages = self.messages.get(self.begin..).unwrap_or_default().to_vec();
        let is_answered = |call: &ToolCall, after: &[Message]| {
            after.iter().any(|message| matches!(message, Message::Tool { call_id, .. } if *call_id == call.id))
        };
        let unanswered = messages.iter().position(|message| match message {
            Message::Assistant { calls, .. } => !calls.iter().all(|call| is_answered(call, &messages)),
            _ => false,
        });
        messages.truncate(unanswered.unwrap_or(messages.len()));
        if !text.is_empty() {
            messages.push(Message::Assistant { content: text.to_owned(), reasoning: None, calls: Vec::new() });
        }
        let mut record = TurnRecord::new(messages, model.to_owned(), finish);
        record.citations.clone_from(&self.citations);
        record.usage = usage.map(RecordedUsage::from);
        record.language_tag.clone_from(&self.language_tag);
        record.timezone.clone_from(&self.timezone);
        record
    }

    pub(super) fn estimate_tokens(&self) -> u32 {
        self.released_tokens.unwrap_or_default().saturating_add(estimate_tokens(&self.messages))
    }

    pub(super) fn memory_filter(&self) -> Filter {
        Filter { document_ids: self.documents.clone().unwrap_or_default(), ..Filter::default() }
    }
}

/// The client's answer to a call of a server tool.
#[derive(Debug)]
pub(super) struct ApprovalAnswer {
    pub(super) call: ToolCall,
    pub(super) is_approved: bool,
}

/// Nothing but `{"approved": true}` is one.
fn is_approval(result: &str) -> bool {
    let answer = serde_json::from_str::<serde_json::Value>(result);
    answer.is_ok_and(|answer| answer.get("approved") == Some(&true.into()))
}

fn estimate_tokens(messages: &[Message]) -> u32 {
    messages.iter().fold(0, |sum, message| sum.saturating_add(message.estimate_tokens()))
}

pub(super) fn error_content(message: &str) -> String {
    serde_json::json!({ "error": message }).to_string()
}

pub(super) fn repair_messages(calls: &[ToolCall], problems: &[Option<String>]) -> impl Iterator<Item = Message> {
    calls.iter().zip(problems).map(|(call, problem)| Message::Tool {
        call_id: call.id.clone(),
        content: match problem {
            Some(problem) => error_content(&format!("the call was not made: {problem}")),
            None => error_content("the call was right but not made, because another one was wrong; repeat it"),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> TurnContext {
        let call = |id: &str| ToolCall { id: id.into(), name: "f".into(), arguments: "{}".into() };
        let assistant = Message::Assistant { content: "\0".into(), reasoning: None, calls: vec![call("a"), call("b")] };
        TurnContext {
            messages: Arc::new(vec![Message::User("?".into()), assistant]),
            begin: 0,
            citations: Vec::new(),
            model: None,
            temperature: Some(0.3),
            max_tokens: None,
            tools: vec!["f".into()],
            rounds: 1,
            language_tag: "zh".into(),
            timezone: "Asia/Shanghai".into(),
            documents: None,
            forgotten: 0,
            saved: 0,
            own_words: None,
            released_tokens: None,
        }
    }

    #[test]
    fn result_of_a_server_tool_is_the_answer_to_a_request_for_approval() {
        for (result, is_approved) in [
            (r#"{"approved": true}"#, true),
            (r#"{"approved": false}"#, false),
            (r#"{"approved": "true"}"#, false),
            (r#"{"error": "no"}"#, false),
            ("true", false),
            ("approved", false),
        ] {
            let mut context = context();
            let call = ToolCall { id: "d".into(), name: "forget_memory".into(), arguments: "{}".into() };
            context.push(Message::Assistant { content: String::new(), reasoning: None, calls: vec![call.clone()] });
            let answers = context.push_tool_results(vec![("d".into(), result.into())]);
            assert_eq!((&answers[0].call, answers[0].is_approved), (&call, is_approved), "{result}");
            assert!(!context.messages.iter().any(|message| matches!(message, Message::Tool { .. })));
        }
    }

    #[test]
    fn context_survives_serialization() {
        let json = serde_json::to_vec(&context()).unwrap();
        let again: TurnContext = serde_json::from_slice(&json).unwrap();
        assert_eq!((again.messages, again.temperature), (context().messages, Some(0.3)));
        let earlier = String::from_utf8(json).unwrap().replace(r#","forgotten":0,"saved":0"#, "");
        assert!(serde_json::from_str::<TurnContext>(&earlier).is_ok(), "{earlier}");
    }

    #[test]
    fn released_prompt_keeps_estimate_and_record_of_the_turn() {
        let mut context = context();
        let system = Message::System("You are a patient teacher.".repeat(100));
        context.messages = Arc::new(vec![system, Message::User("?".into())]);
        context.begin = 1;
        let record = |context: &TurnContext| context.to_record("!", "m", None, TurnFinish::Failed).messages;
        let (tokens, recorded) = (context.estimate_tokens(), record(&context));
        context.release_prompt();
        assert_eq!((context.estimate_tokens(), record(&context)), (tokens, recorded));
        assert_eq!(*context.messages, [Message::User("?".into())]);
    }

    #[test]
    fn tool_results_follow_the_order_of_the_calls() {
        let mut context = context();
        assert!(context.push_tool_results(vec![("b".into(), "2".into()), ("a".into(), "1".into())]).is_empty());
        let last: Vec<_> = context.messages[2..].iter().collect();
        let tool = |call_id: &str, content: &str| Message::Tool { call_id: call_id.into(), content: content.into() };
        assert_eq!(last, [&tool("a", "1"), &tool("b", "2")]);
    }
}
