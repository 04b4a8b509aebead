//! Tools that a model may call: those that the operator defines, which the client runs, and a few that the server runs
//! itself, on the user's memory.
//!
//! The room offers tools and checks calls of them. It asks no model, and keeps nothing.

mod definition;
mod memory;

use std::{path::Path, sync::Arc};

use serde_json::{Value, value::RawValue};

pub use definition::ToolsFileError;
pub use memory::{MemoryTool, ToolContext, ToolFailure};

use crate::llm::ToolCall;
use definition::ToolDefinition;

/// Tools by the server itself, in the form of `TOOLS_FILE`.
const BUILT_IN: &str = include_str!("built_in.json");

/// Which tools a turn may use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ToolSelection {
    /// None.
    #[default]
    None,
    /// All that there are.
    All,
    /// Those of these names that there are.
    Named(Vec<String>),
}

/// Who runs a tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolRunner {
    /// The client.
    Client,
    /// The server.
    Server(MemoryTool),
}

/// Every tool that there is.
pub struct Toolbox(Vec<Arc<Tool>>);

struct Tool {
    definition: ToolDefinition,
    runner: ToolRunner,
}

impl Toolbox {
    /// The tools of the server, and those of a file that clients run.
    ///
    /// # Errors
    /// The file can not be read, or a tool in it can not be used.
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

    /// The tools for a turn. Those of the memory are there where the memory is, and search only where the turn may; those of
    /// clients only where the turn can be kept until they have run.
    #[must_use]
    pub fn offer(&self, wanted: &ToolSelection, has_memory: bool, may_search: bool, can_wait: bool) -> ToolOffer {
        let fits = |tool: &Tool| {
            let is_wanted = match wanted {
                ToolSelection::None => false,
                ToolSelection::All => true,
                ToolSelection::Named(names) => names.contains(&tool.definition.name),
            };
            is_wanted
                && match tool.runner {
                    ToolRunner::Client => can_wait,
                    ToolRunner::Server(MemoryTool::Search) => has_memory && may_search,
                    ToolRunner::Server(_) => has_memory,
                }
        };
        let tools: Vec<_> = self.0.iter().filter(|tool| fits(tool)).cloned().collect();
        ToolOffer { json: tools.iter().map(|tool| tool.definition.json.clone()).collect(), tools }
    }
}

/// The tools that a model is offered in one turn.
#[derive(Clone)]
pub struct ToolOffer {
    tools: Vec<Arc<Tool>>,
    json: Arc<[Box<RawValue>]>,
}

/// A call of a tool that can be made.
#[derive(Debug)]
pub struct ValidatedCall {
    /// Who makes it.
    pub runner: ToolRunner,
    /// Its arguments, as the schema of the tool wants them.
    pub arguments: Value,
}

impl ToolOffer {
    /// As OpenAI's `tools`.
    #[must_use]
    pub fn json(&self) -> &Arc<[Box<RawValue>]> {
        &self.json
    }

    /// The names of the tools.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.tools.iter().map(|tool| tool.definition.name.clone()).collect()
    }

    /// Checks a call.
    ///
    /// # Errors
    /// What is wrong with it, for the model to read.
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

    fn call(name: &str, arguments: &str) -> ToolCall {
        ToolCall { id: "c".into(), name: name.into(), arguments: arguments.into() }
    }

    #[test]
    fn a_turn_is_offered_what_it_wants_as_far_as_there_is_such_a_tool() {
        let toolbox = Toolbox::load(None).unwrap();
        let names = |wanted: &ToolSelection, has_memory, may_search| {
            toolbox.offer(wanted, has_memory, may_search, true).names()
        };
        assert_eq!(names(&ToolSelection::All, true, true), ["search_memory", "save_memory", "forget_memory"]);
        assert_eq!(names(&ToolSelection::All, true, false), ["save_memory", "forget_memory"]);
        assert!(names(&ToolSelection::All, false, true).is_empty());
        assert!(names(&ToolSelection::None, true, true).is_empty());
        let wanted = ToolSelection::Named(vec!["unheard_of".into(), "save_memory".into()]);
        assert_eq!(names(&wanted, true, true), ["save_memory"]);
    }

    #[test]
    fn a_call_is_checked_against_the_schema_of_its_tool() {
        let offer = Toolbox::load(None).unwrap().offer(&ToolSelection::All, true, true, true);
        let checked = offer.validate(&call("search_memory", r#"{"query": "algebra"}"#)).unwrap();
        assert_eq!(checked.runner, ToolRunner::Server(MemoryTool::Search));
        for (name, arguments, said) in [
            ("find_memory", "{}", "search_memory"),
            ("search_memory", "{\"query\": ", "not JSON"),
            ("search_memory", "{}", "query"),
            ("search_memory", r#"{"query": 1}"#, "/query"),
            ("search_memory", r#"{"query": "a", "limit": 1000}"#, "/limit"),
        ] {
            let problem = offer.validate(&call(name, arguments)).unwrap_err();
            assert!(problem.contains(said), "{arguments}: {problem}");
        }
    }
}
