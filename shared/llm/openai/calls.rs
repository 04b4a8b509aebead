//! Assembles tool calls from their deltas.

use uuid::Uuid;

use super::{
    super::{
        error::{ModelError, ModelErrorKind},
        model::ToolCall,
    },
    chunk::CallDelta,
};

/// Per answer.
const MAX_CALLS: usize = 64;
/// A longer id is replaced.
const MAX_ID_BYTES: usize = 256;

#[derive(Default)]
pub(super) struct PartialCalls(Vec<PartialCall>);

struct PartialCall {
    index: u32,
    id: String,
    name: String,
    arguments: String,
}

impl PartialCalls {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the bytes of the delta. Servers that send no index send the deltas of a call in a row, the first with the id.
    pub(super) fn push(&mut self, delta: CallDelta) -> Result<usize, ModelError> {
        let id = delta.id.unwrap_or_default();
        let index = match delta.index {
            Some(index) => index,
            None => {
                let known = self.0.iter().find(|call| !id.is_empty() && call.id == id);
                let last = self.0.last().filter(|_| id.is_empty());
                let next = self.0.iter().map(|call| call.index.saturating_add(1)).max().unwrap_or_default();
                known.or(last).map_or(next, |call| call.index)
            }
        };
        let position = match self.0.iter().position(|call| call.index == index) {
            Some(position) => position,
            None if self.0.len() >= MAX_CALLS => {
                return Err(ModelError::new(ModelErrorKind::Malformed, format!("more than {MAX_CALLS} tool calls")));
            }
            None => {
                self.0.push(PartialCall { index, id: String::new(), name: String::new(), arguments: String::new() });
                self.0.len() - 1
            }
        };
        let call = &mut self.0[position];
        let function = delta.function.unwrap_or_default();
        // In later deltas some servers send an empty id or name for "unchanged".
        if call.id.is_empty() {
            call.id = id;
        }
        if call.name.is_empty() {
            call.name = function.name.unwrap_or_default();
        }
        call.arguments.push_str(&function.arguments);
        Ok(function.arguments.len())
    }

    /// Unusable and repeated ids are replaced.
    pub(super) fn finish(mut self) -> Result<Vec<ToolCall>, ModelError> {
        self.0.sort_by_key(|call| call.index);
        let mut calls: Vec<ToolCall> = Vec::with_capacity(self.0.len());
        for PartialCall { id, name, arguments, .. } in self.0 {
            if name.is_empty() {
                return Err(ModelError::new(ModelErrorKind::Malformed, "a tool call has no name"));
            }
            let is_usable = !id.trim().is_empty()
                && id.len() <= MAX_ID_BYTES
                && !id.chars().any(char::is_control)
                && calls.iter().all(|call| call.id != id);
            let id = if is_usable { id } else { format!("call_{}", Uuid::new_v4().simple()) };
            // Some models send nothing for a tool without parameters.
            let arguments = if arguments.trim().is_empty() { "{}".to_owned() } else { arguments };
            calls.push(ToolCall { id, name, arguments });
        }
        Ok(calls)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn calls(deltas: &[Value]) -> Result<Vec<ToolCall>, ModelError> {
        let mut calls = PartialCalls::default();
        for delta in deltas {
            calls.push(serde_json::from_value(delta.clone()).unwrap())?;
        }
        calls.finish()
    }

    fn call(id: &str, name: &str, arguments: &str) -> ToolCall {
        ToolCall { id: id.into(), name: name.into(), arguments: arguments.into() }
    }

    #[test]
    fn deltas_of_parallel_calls_are_grouped_by_index() {
        let deltas = [
            json!({"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": ""}}),
            json!({"index": 0, "id": "a", "function": {"name": "f", "arguments": "{\"x\""}}),
            json!({"index": 1, "id": "", "function": {"name": "", "arguments": "{}"}}),
            json!({"index": 0, "id": null, "function": {"name": null, "arguments": ": 1}"}}),
            json!({"index": 0}),
        ];
        assert_eq!(calls(&deltas).unwrap(), [call("a", "f", "{\"x\": 1}"), call("b", "g", "{}")]);
    }

    #[test]
    fn new_id_without_index_starts_a_call() {
        let deltas = [
            json!({"id": "a", "function": {"name": "f", "arguments": "{"}}),
            json!({"function": {"arguments": "}"}}),
            json!({"id": "b", "function": {"name": "g", "arguments": {"whole": true}}}),
        ];
        assert_eq!(calls(&deltas).unwrap(), [call("a", "f", "{}"), call("b", "g", "{\"whole\":true}")]);
    }

    #[test]
    fn unusable_ids_are_replaced_and_a_name_is_required() {
        let long = "x".repeat(MAX_ID_BYTES + 1);
        let named = |index: u32, id: &str| json!({"index": index, "id": id, "function": {"name": "f"}});
        let calls_made =
            calls(&[named(0, ""), named(1, "a"), named(2, "a"), named(3, &long), named(4, "b\n")]).unwrap();
        let ids: std::collections::HashSet<_> = calls_made.iter().map(|call| call.id.as_str()).collect();
        assert_eq!(ids.len(), 5);
        assert!(ids.contains("a") && !ids.contains(long.as_str()) && !ids.contains("b\n"));
        assert!(calls_made.iter().all(|call| call.arguments == "{}"));
        assert!(calls(&[json!({"index": 0, "id": "a"})]).is_err());
        let many: Vec<_> = (0..=u32::try_from(MAX_CALLS).unwrap()).map(|index| named(index, "")).collect();
        assert!(calls(&many).is_err());
    }
}
