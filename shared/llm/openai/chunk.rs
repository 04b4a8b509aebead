//! The JSON of one streamed chunk. Every field is optional, because providers leave out or null what they like.

use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use super::super::{ModelError, ModelErrorKind, TokenUsage};

/// A chunk, <https://platform.openai.com/docs/api-reference/chat-streaming>.
#[derive(Debug, Deserialize)]
pub(super) struct Chunk {
    pub(super) choices: Option<Vec<Choice>>,
    pub(super) usage: Option<Usage>,
    pub(super) error: Option<ProviderError>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Choice {
    pub(super) delta: Option<Delta>,
    pub(super) finish_reason: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Delta {
    pub(super) content: Option<String>,
    /// Thought of a reasoning model: not shown, but a sign of life.
    reasoning_content: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Usage {
    prompt_tokens: Option<u32>,
    completion_tokens: Option<u32>,
}

impl Usage {
    /// The counts, unless both are missing.
    pub(super) fn known(self) -> Option<TokenUsage> {
        (self.prompt_tokens.is_some() || self.completion_tokens.is_some()).then(|| TokenUsage {
            prompt: self.prompt_tokens.unwrap_or(0),
            completion: self.completion_tokens.unwrap_or(0),
        })
    }
}

/// The body of an answer with an error status.
#[derive(Debug, Deserialize)]
pub(super) struct ErrorBody {
    pub(super) error: Option<ProviderError>,
}

/// A provider's error: an object, or with some servers a bare string.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum ProviderError {
    Object {
        /// Text or number.
        code: Option<Value>,
        #[serde(rename = "type")]
        kind: Option<String>,
    },
    Other(IgnoredAny),
}

impl ProviderError {
    /// Keeps code and type. The message is left out, because some providers repeat the question in it.
    pub(super) fn into_model_error(self, status: Option<u16>) -> ModelError {
        let (code, kind) = match self {
            Self::Object { code, kind } => (code, kind),
            Self::Other(_) => (None, None),
        };
        let code_as_status = code.as_ref().and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok());
        let code = code.as_ref().and_then(Value::as_str);
        ModelError::reported(status.or(code_as_status), code, kind.as_deref())
    }
}

impl Chunk {
    pub(super) fn parse(json: &str) -> Result<Self, ModelError> {
        serde_json::from_str(json).map_err(|error| {
            // The error's own text could repeat what the model said.
            let place = format!("a chunk is not the expected JSON (column {})", error.column());
            ModelError::new(ModelErrorKind::Malformed, place)
        })
    }

    /// Whether the chunk shows that the model is at work.
    pub(super) fn carries_something(&self) -> bool {
        let has = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        self.usage.is_some()
            || self.choices.iter().flatten().any(|choice| {
                has(&choice.finish_reason)
                    || choice.delta.as_ref().is_some_and(|d| has(&d.content) || has(&d.reasoning_content))
            })
    }
}
