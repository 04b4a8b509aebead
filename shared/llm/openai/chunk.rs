//! The JSON of one streamed chunk. Every field is optional: providers omit fields or send null.

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::super::{
    error::{ModelError, ModelErrorKind},
    tokens::TokenUsage,
};

/// A chunk, <https://platform.openai.com/docs/api-reference/chat-streaming>, or the whole answer of a server that does not
/// stream.
#[derive(Debug, Deserialize)]
pub(super) struct Chunk {
    pub(super) choices: Option<Vec<Choice>>,
    pub(super) usage: Option<ChunkUsage>,
    pub(super) error: Option<Value>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Choice {
    /// `message` in an answer that is not streamed.
    #[serde(alias = "message")]
    pub(super) delta: Option<Delta>,
    pub(super) finish_reason: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Delta {
    pub(super) content: Option<String>,
    /// Not shown, but it proves progress, and some providers want it back with tool results.
    #[serde(default, deserialize_with = "text")]
    reasoning_content: Option<String>,
    /// The newer name of `reasoning_content`.
    #[serde(default, deserialize_with = "text")]
    reasoning: Option<String>,
    pub(super) tool_calls: Option<Vec<CallDelta>>,
}

impl Delta {
    pub(super) fn reasoning_text<'a>(&'a self) -> Option<&'a str> {
        let non_empty = |text: &'a Option<String>| text.as_deref().filter(|text| !text.is_empty());
        non_empty(&self.reasoning_content).or_else(|| non_empty(&self.reasoning))
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct CallDelta {
    pub(super) index: Option<u32>,
    pub(super) id: Option<String>,
    pub(super) function: Option<FunctionDelta>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct FunctionDelta {
    pub(super) name: Option<String>,
    #[serde(default, deserialize_with = "json_text")]
    pub(super) arguments: String,
}

fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::String(text) => Some(text),
        _ => None,
    })
}

/// Some servers send an object instead of text.
fn json_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::String(text) => text,
        Value::Null => String::new(),
        value => value.to_string(),
    })
}

#[derive(Debug, Deserialize)]
pub(super) struct ChunkUsage {
    prompt_tokens: Option<u32>,
    completion_tokens: Option<u32>,
    prompt_tokens_details: Option<PromptDetails>,
    completion_tokens_details: Option<CompletionDetails>,
    /// DeepSeek's name for cached tokens.
    prompt_cache_hit_tokens: Option<u32>,
}

#[derive(Debug, Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u32>,
}

#[derive(Debug, Deserialize)]
struct CompletionDetails {
    reasoning_tokens: Option<u32>,
}

impl ChunkUsage {
    pub(super) fn token_usage(self) -> Option<TokenUsage> {
        let cached = self.prompt_tokens_details.and_then(|details| details.cached_tokens);
        let reasoning = self.completion_tokens_details.and_then(|details| details.reasoning_tokens);
        (self.prompt_tokens.is_some() || self.completion_tokens.is_some()).then(|| TokenUsage {
            prompt: self.prompt_tokens.unwrap_or(0),
            cached: cached.or(self.prompt_cache_hit_tokens).unwrap_or(0),
            completion: self.completion_tokens.unwrap_or(0),
            reasoning: reasoning.unwrap_or(0),
        })
    }
}

impl Chunk {
    pub(super) fn parse(json: &[u8]) -> Result<Self, ModelError> {
        serde_json::from_slice(json).map_err(|error| {
            // The message of the error could quote the answer.
            let detail = format!("a chunk is not the expected JSON (column {})", error.column());
            ModelError::new(ModelErrorKind::Malformed, detail)
        })
    }

    /// Resets the idle timeout.
    pub(super) fn shows_progress(&self) -> bool {
        let has = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        self.usage.is_some()
            || self.choices.iter().flatten().any(|choice| {
                has(&choice.finish_reason)
                    || choice.delta.as_ref().is_some_and(|delta| {
                        has(&delta.content)
                            || delta.reasoning_text().is_some()
                            || delta.tool_calls.as_ref().is_some_and(|calls| !calls.is_empty())
                    })
            })
    }
}
