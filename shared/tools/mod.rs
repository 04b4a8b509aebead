//! Tools that a model may call: tools of the operator, which the client runs, and memory tools, which the server runs.
//!
//! Selects tools and validates calls. Does not ask a model, and stores nothing.

mod definition;
mod failure;
mod memory;
mod saved_fact;

use std::{path::Path, sync::Arc};

use serde_json::{Value, value::RawValue};

pub use definition::ToolsFileError;
pub use failure::ToolFailure;
pub use memory::{ForgetArguments, MemoryTool, ToolContext};
pub use saved_fact::conversation_words;

use crate::llm::ToolCall;
use definition::ToolDefinition;

/// The server's tools, in the form of `TOOLS_FILE`.
const BUILT_IN: &str = include_str!("built_in.json");

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ToolSelection {
    #[default]
    None,
    All,
    /// Unknown names are ignored.
    Named(Vec<String>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolRunner {
    Client,
    Server(MemoryTool),
}

/// Conditions of a turn that decide which tools it can use.
#[derive(Debug, Clone, Copy)]
pub struct ToolAvailability {
    pub has_memory: bool,
    pub may_search: bool,
    /// Whether the turn can be persisted until a client tool has run.
    pub can_suspend: bool,
}

pub struct Toolbox(Vec<Arc<Tool>>);

struct Tool {
    definition: ToolDefinition,
    runner: ToolRunner,
}

impl Toolbox {
    pub fn load(file: Option<&Path>) -> Result<Self, ToolsFileError> {
        let built_in = ToolDefinition::parse(BUILT_IN)?.into_iter().filter_map(|definition| {
            let runner = ToolRunner::Server(MemoryTool::from_name(&definition.name)?);
            Some(Tool { definition, runner })
        });
        let mut tools: Vec<Tool> = built_in.collect();
        if let Some(file) = file {
            for definition in ToolDefinition::load(file)? {
                if tools.iter().any(|tool| tool.definition.name == definition.name) {
                    return Err(ToolsFileError::DuplicateName { name: definition.name });
                }
                tools.push(Tool { definition, runner: ToolRunner::Client });
            }
        }
        Ok(Self(tools.into_iter().map(Arc::new).collect()))
    }

    #[must_use]
    pub fn offer(&self, selection: &ToolSelection, availability: ToolAvailability) -> ToolOffer {
        let ToolAvailability { has_memory, may_search, can_suspend } = availability;
        let is_offered = |tool: &Tool| {
            let is_selected = match selection {
                ToolSelection::None => false,
                ToolSelection::All => true,
                ToolSelection::Named(names) => names.contains(&tool.definition.name),
            };
            let is_available = match tool.runner {
                ToolRunner::Client => can_suspend,
                ToolRunner::Server(MemoryTool::Search) => has_memory && may_search,
                ToolRunner::Server(_) => has_memory,
            };
            is_selected && is_available
        };
        let tools: Vec<_> = self.0.iter().filter(|tool| is_offered(tool)).cloned().collect();
        ToolOffer { json: tools.iter().map(|tool| tool.definition.json.clone()).collect(), tools }
    }
}

#[derive(Clone)]
pub struct ToolOffer {
    tools: Vec<Arc<Tool>>,
    json: Arc<[Box<RawValue>]>,
}

#[derive(Debug)]
pub struct ValidatedCall {
    pub runner: ToolRunner,
    /// They match the schema of the tool.
    pub arguments: Value,
}

impl ToolOffer {
    /// Entries of OpenAI's `tools`.
    #[must_use]
    pub fn json(&self) -> &Arc<[Box<RawValue>]> {
        &self.json
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tools.is_empty()
    }

    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.tools.iter().map(|tool| tool.definition.name.clone()).collect()
    }

    /// The error is one that the model can read and repair.
    pub fn validate(&self, call: &ToolCall) -> Result<ValidatedCall, String> {
        let Some(tool) = self.tools.iter().find(|tool| tool.definition.name == call.name) else {
            return Err(format!("there is no such tool; there are: {}", self.names().join(", ")));
        };
        let arguments = tool.definition.validate(&call.arguments)?;
        Ok(ValidatedCall { runner: tool.runner, arguments })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL_AVAILABLE: ToolAvailability = ToolAvailability { has_memory: true, may_search: true, can_suspend: true };

    fn call(name: &str, arguments: &str) -> ToolCall {
        ToolCall { id: "c".into(), name: name.into(), arguments: arguments.into() }
    }

    #[test]
    fn offer_has_selected_tools_that_are_available() {
        let toolbox = Toolbox::load(None).unwrap();
        let names = |selection: &ToolSelection, has_memory, may_search| {
            toolbox.offer(selection, ToolAvailability { has_memory, may_search, ..ALL_AVAILABLE }).names()
        };
        assert_eq!(names(&ToolSelection::All, true, true), ["search_memory", "save_memory", "forget_memory"]);
        assert_eq!(names(&ToolSelection::All, true, false), ["save_memory", "forget_memory"]);
        assert!(names(&ToolSelection::All, false, true).is_empty());
        assert!(names(&ToolSelection::None, true, true).is_empty());
        let selection = ToolSelection::Named(vec!["no_such_tool".into(), "save_memory".into()]);
        assert_eq!(names(&selection, true, true), ["save_memory"]);
    }

    #[test]
    fn call_is_validated_against_its_schema() {
        let offer = Toolbox::load(None).unwrap().offer(&ToolSelection::All, ALL_AVAILABLE);
        let validated = offer.validate(&call("search_memory", r#"{"query": "algebra"}"#)).unwrap();
        assert_eq!(validated.runner, ToolRunner::Server(MemoryTool::Search));
        for (name, arguments, expected) in [
            ("find_memory", "{}", "search_memory"),
            ("search_memory", "{\"query\": ", "not JSON"),
            ("search_memory", "{}", "query"),
            ("search_memory", r#"{"query": 1}"#, "/query"),
            ("search_memory", r#"{"query": "a", "limit": 1000}"#, "/limit"),
        ] {
            let problem = offer.validate(&call(name, arguments)).unwrap_err();
            assert!(problem.contains(expected), "{arguments}: {problem}");
        }
    }
}
