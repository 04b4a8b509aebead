//! The tools that the server runs, on the user's own memory.
//!
//! A model that calls them may have read a stranger's document. So it saves nothing but what the user said, as
//! [`saved_fact`](super::saved_fact) checks, and its caller decides what it may forget.

use std::{sync::Arc, time::Duration};

use jiff::tz::TimeZone;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::{failure::ToolFailure, saved_fact};
use crate::{
    identity::{SessionId, UserId},
    memory::{
        DEFAULT_ALPHA, Filter, MemoryEngine, MemoryError, Metadata, NewMemory, RetrievalQuery, Selection, select_hits,
    },
};

/// The user waits for the model, and the model for the tool.
const TOOL_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_SEARCH_LIMIT: usize = 8;
const FACT_SOURCE_TYPE: &str = "fact";
/// Metadata of a memory that a model saved by itself.
const SAVED_BY: (&str, &str) = ("saved_by", "model");
/// As facts that are learned from a turn have it.
const SOURCE_SESSION: &str = "source_session_id";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryTool {
    Search,
    Save,
    Forget,
}

#[derive(Debug, Clone)]
pub struct ToolContext {
    pub user: UserId,
    pub time_zone: TimeZone,
    pub filter: Filter,
    /// `None`: the conversation is not stored.
    pub session: Option<SessionId>,
    /// The user's own words in this conversation, for a tool that saves.
    pub own_words: Arc<str>,
}

#[derive(Deserialize)]
struct SearchArguments {
    query: String,
    limit: Option<usize>,
}

#[derive(Deserialize)]
struct SaveArguments {
    content: String,
    #[serde(default)]
    tags: Vec<String>,
}

/// Of `forget_memory`.
#[derive(Deserialize)]
pub struct ForgetArguments {
    pub ids: Vec<String>,
}

impl MemoryTool {
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "search_memory" => Self::Search,
            "save_memory" => Self::Save,
            "forget_memory" => Self::Forget,
            _ => return None,
        })
    }

    /// The arguments must match the tool's schema.
    pub async fn run(
        self,
        memory: &MemoryEngine,
        context: &ToolContext,
        arguments: Value,
    ) -> Result<Value, ToolFailure> {
        let run = async {
            match self {
                Self::Search => search(memory, context, parse_arguments(arguments)?).await,
                Self::Save => save(memory, context, parse_arguments(arguments)?).await,
                Self::Forget => forget(memory, context, parse_arguments(arguments)?).await,
            }
        };
        match timeout(TOOL_TIMEOUT, run).await {
            Ok(outcome) => outcome,
            Err(_) => Err(ToolFailure::TimedOut),
        }
    }
}

/// Checks what the schema cannot express: text must not be blank, and must not hold a NUL, which Postgres rejects.
fn parse_arguments<T: for<'de> Deserialize<'de>>(arguments: Value) -> Result<T, ToolFailure> {
    if !is_usable(&arguments) {
        return Err(ToolFailure::InvalidArgument);
    }
    serde_json::from_value(arguments).map_err(|_| ToolFailure::InvalidArgument)
}

fn is_usable(arguments: &Value) -> bool {
    match arguments {
        Value::String(text) => !text.trim().is_empty() && !text.contains('\0'),
        Value::Array(values) => values.iter().all(is_usable),
        Value::Object(fields) => fields.values().all(is_usable),
        _ => true,
    }
}

async fn search(
    memory: &MemoryEngine,
    context: &ToolContext,
    arguments: SearchArguments,
) -> Result<Value, ToolFailure> {
    let query = RetrievalQuery {
        text: arguments.query,
        limit: arguments.limit.unwrap_or(DEFAULT_SEARCH_LIMIT),
        min_score: 0.0,
        filter: context.filter.clone(),
        alpha: DEFAULT_ALPHA,
        time_zone: context.time_zone.clone(),
        counts_matches: false,
    };
    let deadline = Instant::now() + TOOL_TIMEOUT;
    let hits = Box::pin(memory.recall(&context.user, &query, deadline, |_| true)).await.map_err(tool_failure)?;
    let memories: Vec<_> = select_hits(hits, query.limit)
        .into_iter()
        .map(|(memory, score)| {
            let date = memory.created_at.to_zoned(context.time_zone.clone()).strftime("%Y-%m-%d").to_string();
            let title = memory.location.map(|location| location.title).unwrap_or_default();
            let score = (f64::from(score) * 1e3).round() / 1e3;
            json!({"id": memory.id, "date": date, "source": memory.source_type, "title": title, "content": memory.content, "score": score})
        })
        .collect();
    Ok(json!({ "memories": memories }))
}

async fn save(memory: &MemoryEngine, context: &ToolContext, arguments: SaveArguments) -> Result<Value, ToolFailure> {
    saved_fact::check(&arguments.content, &arguments.tags, &context.own_words)?;
    let session = context.session.as_ref().map(|session| (SOURCE_SESSION, session.as_str()));
    let metadata = [SAVED_BY].into_iter().chain(session).map(|(key, value)| (key.to_owned(), value.to_owned()));
    let new = NewMemory {
        id: None,
        content: arguments.content,
        source_type: FACT_SOURCE_TYPE.to_owned(),
        tags: arguments.tags,
        created_at: None,
        metadata: metadata.collect::<Metadata>(),
        supersedes: Vec::new(),
    };
    let added = Box::pin(memory.add(&context.user, vec![new])).await.map_err(tool_failure)?;
    Ok(json!({"id": added.ids.first(), "was_known": added.added == 0}))
}

async fn forget(
    memory: &MemoryEngine,
    context: &ToolContext,
    arguments: ForgetArguments,
) -> Result<Value, ToolFailure> {
    let selection = Selection::Ids(arguments.ids);
    let forgotten = Box::pin(memory.delete(&context.user, &selection)).await.map_err(tool_failure)?;
    Ok(json!({ "forgotten": forgotten }))
}

fn tool_failure(error: MemoryError) -> ToolFailure {
    tracing::warn!(%error, "a memory tool failed");
    if error.is_transient() { ToolFailure::Unavailable } else { ToolFailure::Failed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_arguments_rejects_blank_text_and_nul() {
        for arguments in [json!({"ids": ["a", " "]}), json!({"ids": ["a\0"]}), json!({"ids": "a"})] {
            assert!(parse_arguments::<ForgetArguments>(arguments).is_err());
        }
        assert_eq!(parse_arguments::<ForgetArguments>(json!({"ids": ["a"]})).unwrap().ids, ["a"]);
    }
}
