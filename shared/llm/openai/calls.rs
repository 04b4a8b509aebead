//! Calls of tools, put together from their pieces.

use uuid::Uuid;

use super::{
    super::{ModelError, ModelErrorKind, ToolCall},
    chunk::CallDelta,
};

/// Most calls of one answer.
const MAX_CALLS: usize = 64;
/// Longest id that is kept; a longer one is replaced.
const MAX_ID_BYTES: usize = 256;

/// Calls as far as they have come.
#[derive(Default)]
pub(super) struct PartialCalls(Vec<PartialCall>);

struct PartialCall {
    /// What its pieces name it by.
    index: u32,
    id: String,
    name: String,
    arguments: String,
}

impl PartialCalls {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a piece and says how many bytes it brought. Pieces belong together by their index; servers that tell none send a
    /// call's pieces in a row, the first of which has the id.
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
        let place = match self.0.iter().position(|call| call.index == index) {
            Some(place) => place,
            None if self.0.len() >= MAX_CALLS => {
                return Err(ModelError::new(
                    ModelErrorKind::Malformed,
                    format!("more than {MAX_CALLS} calls of tools"),
                ));
            }
            None => {
                self.0.push(PartialCall { index, id: String::new(), name: String::new(), arguments: String::new() });
                self.0.len() - 1
            }
        };
        let call = &mut self.0[place];
        let function = delta.function.unwrap_or_default();
        // Empty is what some servers say for "as before".
        if call.id.is_empty() {
            call.id = id;
        }
        if call.name.is_empty() {
            call.name = function.name.unwrap_or_default();
        }
        call.arguments.push_str(&function.arguments);
        Ok(function.arguments.len())
    }

    /// The calls in the order of their indexes, each with an id of its own.
    pub(super) fn finish(mut self) -> Result<Vec<ToolCall>, ModelError> {
        self.0.sort_by_key(|call| call.index);
        let mut calls: Vec<ToolCall> = Vec::with_capacity(self.0.len());
        for PartialCall { id, name, arguments, .. } in self.0 {
            if name.is_empty() {
                return Err(ModelError::new(ModelErrorKind::Malformed, "a call of a tool has no name"));
            }
            let is_usable = !id.trim().is_empty()
                && id.len() <= MAX_ID_BYTES
                && !id.chars().any(char::is_control)
                && calls.iter().all(|call| call.id != id);
            let id = if is_usable { id } else { format!("call_{}", Uuid::new_v4().simple()) };
            // A tool without parameters may be called with nothing.
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
    fn pieces_of_parallel_calls_are_told_apart_by_their_index() {
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
    fn without_an_index_a_new_id_begins_a_new_call() {
        let deltas = [
            json!({"id": "a", "function": {"name": "f", "arguments": "{"}}),
            json!({"function": {"arguments": "}"}}),
            json!({"id": "b", "function": {"name": "g", "arguments": {"whole": true}}}),
        ];
        assert_eq!(calls(&deltas).unwrap(), [call("a", "f", "{}"), call("b", "g", "{\"whole\":true}")]);
    }

    #[test]
    fn ids_that_can_not_be_used_are_replaced_and_a_name_is_needed() {
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
