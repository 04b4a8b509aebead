//! Tool definitions in the form of OpenAI's `tools`: <https://platform.openai.com/docs/guides/function-calling>.

use std::{collections::HashSet, fs, path::Path};

use jsonschema::Validator;
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// The limit of providers.
const MAX_TOOLS: usize = 128;
/// OpenAI's limit.
const MAX_NAME_BYTES: usize = 64;
/// Bounds of an error that the model reads.
const MAX_PROBLEMS: usize = 5;
const MAX_PROBLEM_CHARS: usize = 300;

#[derive(Debug, thiserror::Error)]
pub enum ToolsFileError {
    #[error("TOOLS_FILE cannot be read: {0}")]
    Read(#[from] std::io::Error),
    #[error("TOOLS_FILE is larger than 1 MiB")]
    TooLarge,
    #[error(
        "TOOLS_FILE is not a JSON array of entries like \
         {{\"type\": \"function\", \"function\": {{\"name\": …, \"description\": …, \"parameters\": …}}}}: {0}"
    )]
    Malformed(#[from] serde_json::Error),
    #[error("TOOLS_FILE has more than {MAX_TOOLS} tools")]
    TooMany,
    #[error("TOOLS_FILE: the type of {name:?} must be \"function\"")]
    NotAFunction { name: String },
    #[error("TOOLS_FILE: the name {name:?} must be 1 to 64 letters, digits, _ and -")]
    InvalidName { name: String },
    #[error("TOOLS_FILE: two tools have the name {name:?}; the service's own tools count too")]
    DuplicateName { name: String },
    #[error("TOOLS_FILE: the parameters of {name:?} are not the JSON schema of an object: {problem}")]
    InvalidSchema { name: String, problem: String },
}

pub(super) struct ToolDefinition {
    pub(super) name: String,
    /// The entry as written: unknown fields reach the provider.
    pub(super) json: Box<RawValue>,
    argument_schema: Validator,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    function: Function,
}

#[derive(Deserialize)]
struct Function {
    name: String,
    parameters: Option<Value>,
}

impl ToolDefinition {
    pub(super) fn load(path: &Path) -> Result<Vec<Self>, ToolsFileError> {
        if fs::metadata(path)?.len() > MAX_FILE_BYTES {
            return Err(ToolsFileError::TooLarge);
        }
        Self::parse(&fs::read_to_string(path)?)
    }

    pub(super) fn parse(json: &str) -> Result<Vec<Self>, ToolsFileError> {
        let entries: Vec<Box<RawValue>> = serde_json::from_str(json)?;
        if entries.len() > MAX_TOOLS {
            return Err(ToolsFileError::TooMany);
        }
        let definitions = entries.into_iter().map(Self::new).collect::<Result<Vec<_>, _>>()?;
        let mut seen = HashSet::new();
        match definitions.iter().find(|definition| !seen.insert(definition.name.as_str())) {
            Some(duplicate) => Err(ToolsFileError::DuplicateName { name: duplicate.name.clone() }),
            None => Ok(definitions),
        }
    }

    fn new(json: Box<RawValue>) -> Result<Self, ToolsFileError> {
        let Entry { kind, function: Function { name, parameters } } = serde_json::from_str(json.get())?;
        if kind != "function" {
            return Err(ToolsFileError::NotAFunction { name });
        }
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if !(1..=MAX_NAME_BYTES).contains(&name.len()) || !name.bytes().all(is_allowed) {
            return Err(ToolsFileError::InvalidName { name });
        }
        // Without parameters any object is valid.
        let schema = parameters.unwrap_or_else(|| json!({"type": "object"}));
        if schema["type"] != "object" {
            return Err(ToolsFileError::InvalidSchema { name, problem: "the type is not \"object\"".to_owned() });
        }
        if let Some(reference) = dangling_reference(&schema, &schema) {
            return Err(ToolsFileError::InvalidSchema {
                name,
                problem: format!("{reference:?} does not refer to a part of the schema"),
            });
        }
        match jsonschema::validator_for(&schema) {
            Ok(arguments) => Ok(Self { name, json, argument_schema: arguments }),
            Err(error) => Err(ToolsFileError::InvalidSchema { name, problem: error.to_string() }),
        }
    }

    /// Arguments are text that a model wrote; it can read the error and repair them.
    pub(super) fn validate(&self, arguments: &str) -> Result<Value, String> {
        let value: Value =
            serde_json::from_str(arguments).map_err(|error| format!("the arguments are not JSON: {error}"))?;
        let problems =
            self.argument_schema.validate(&value).err().into_iter().flatten().take(MAX_PROBLEMS).map(|error| {
                let problem = format!("{}: {error}", error.instance_path);
                problem.chars().take(MAX_PROBLEM_CHARS).collect::<String>()
            });
        let problems: Vec<_> = problems.collect();
        if problems.is_empty() { Ok(value) } else { Err(problems.join("; ")) }
    }
}

/// Finds a `$ref` that does not resolve within the schema: nothing is fetched from elsewhere. The library would report it only
/// when a model calls the tool.
fn dangling_reference<'a>(part: &'a Value, whole: &Value) -> Option<&'a str> {
    match part {
        Value::Object(fields) => fields.iter().find_map(|(name, value)| match value {
            Value::String(reference) if name == "$ref" => {
                let resolves = reference.strip_prefix('#').is_some_and(|pointer| whole.pointer(pointer).is_some());
                (!resolves).then_some(reference.as_str())
            }
            _ => dangling_reference(value, whole),
        }),
        Value::Array(values) => values.iter().find_map(|value| dangling_reference(value, whole)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(json: &str) -> String {
        ToolDefinition::parse(json).err().unwrap().to_string()
    }

    #[test]
    fn parse_error_names_the_tool() {
        let tool = |name: &str, parameters: &str| {
            format!(r#"{{"type": "function", "function": {{"name": "{name}", "parameters": {parameters}}}}}"#)
        };
        let object = r#"{"type": "object"}"#;
        assert!(problem("{}").contains("JSON array"));
        assert!(problem(r#"[{"name": "f"}]"#).contains("missing field"));
        assert!(problem(&format!("[{}]", tool("a b", object))).contains("a b"));
        assert!(problem(&format!("[{}, {}]", tool("f", object), tool("f", object))).contains("two tools"));
        assert!(problem(&format!("[{}]", tool("f", r#"{"type": "string"}"#))).contains("\"f\""));
        assert!(problem(&format!("[{}]", tool("f", r#"{"type": "object", "required": 1}"#))).contains("\"f\""));
        let remote = r#"{"type": "object", "properties": {"x": {"$ref": "https://example.com/schema"}}}"#;
        assert!(problem(&format!("[{}]", tool("f", remote))).contains("\"f\""), "remote schemas are not fetched");
        let dangling = remote.replace("https://example.com/schema", "#/$defs/x");
        assert!(problem(&format!("[{}]", tool("f", &dangling))).contains("#/$defs/x"));
        let defined = dangling.replace("{\"type\": \"object\", ", "{\"type\": \"object\", \"$defs\": {\"x\": {}}, ");
        assert!(ToolDefinition::parse(&format!("[{}]", tool("f", &defined))).is_ok(), "{defined}");
        let search = r#"[{"type": "web_search", "function": {"name": "w"}}]"#;
        assert!(problem(search).contains("\"function\""));
    }

    #[test]
    fn definition_is_offered_verbatim_and_needs_no_parameters() {
        let json = r#"[{"type": "function", "function": {"strict": true, "name": "now", "description": "d"}}]"#;
        let definition = &ToolDefinition::parse(json).unwrap()[0];
        assert_eq!(definition.json.get(), &json[1..json.len() - 1]);
        assert!(definition.validate("{}").is_ok() && definition.validate("[]").is_err());
    }
}
