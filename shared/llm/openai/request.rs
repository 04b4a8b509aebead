//! The body of a request, <https://platform.openai.com/docs/api-reference/chat/create>.

use serde::Serialize;
use serde_json::value::RawValue;

use super::super::model::{Message, ModelRequest, ToolCall};
use crate::config::{EndpointConfig, Provider};

#[derive(Serialize)]
pub(super) struct RequestBody<'a> {
    model: &'a str,
    messages: Vec<BodyMessage<'a>>,
    stream: bool,
    stream_options: StreamOptions,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tools: &'a [Box<RawValue>],
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_choice: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parallel_tool_calls: Option<bool>,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

#[derive(Serialize)]
#[serde(tag = "role", rename_all = "lowercase")]
enum BodyMessage<'a> {
    System {
        content: &'a str,
    },
    User {
        content: &'a str,
    },
    Assistant {
        /// Some servers reject null.
        content: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        reasoning_content: Option<&'a str>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        tool_calls: Vec<BodyCall<'a>>,
    },
    Tool {
        tool_call_id: &'a str,
        content: &'a str,
    },
}

#[derive(Serialize)]
struct BodyCall<'a> {
    id: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    function: BodyFunction<'a>,
}

#[derive(Serialize)]
struct BodyFunction<'a> {
    name: &'a str,
    arguments: &'a str,
}

impl<'a> RequestBody<'a> {
    pub(super) fn new(
        config: &'a EndpointConfig,
        request: &'a ModelRequest,
        model: &'a str,
        max_tokens: Option<u32>,
    ) -> Self {
        // OpenAI's newer models reject `max_tokens`; other providers know nothing else.
        let (max_tokens, max_completion_tokens) =
            if config.is_openai_api() { (None, max_tokens) } else { (max_tokens, None) };
        let has_tools = !request.tools.is_empty();
        Self {
            model,
            messages: request.messages.iter().map(|message| BodyMessage::new(config, message)).collect(),
            stream: true,
            stream_options: StreamOptions { include_usage: true },
            temperature: request.temperature,
            max_tokens,
            max_completion_tokens,
            tools: &request.tools,
            tool_choice: (has_tools && request.must_answer).then_some("none"),
            // The default of other providers.
            parallel_tool_calls: (has_tools && config.provider == Provider::Qwen).then_some(true),
        }
    }
}

impl<'a> BodyMessage<'a> {
    fn new(config: &EndpointConfig, message: &'a Message) -> Self {
        match message {
            Message::System(content) => Self::System { content },
            Message::User(content) => Self::User { content },
            Message::Tool { call_id, content } => Self::Tool { tool_call_id: call_id, content },
            Message::Assistant { content, reasoning, calls } => {
                let reasoning = reasoning.as_deref().filter(|text| !text.is_empty());
                let reasoning_content = if calls.is_empty() || config.is_openai_api() {
                    None
                } else if config.is_deepseek() {
                    // DeepSeek rejects a request with calls and without this field.
                    Some(reasoning.unwrap_or_default())
                } else {
                    reasoning
                };
                Self::Assistant { content, reasoning_content, tool_calls: calls.iter().map(BodyCall::from).collect() }
            }
        }
    }
}

impl<'a> From<&'a ToolCall> for BodyCall<'a> {
    fn from(call: &'a ToolCall) -> Self {
        let ToolCall { id, name, arguments } = call;
        Self { id, kind: "function", function: BodyFunction { name, arguments } }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};
    use tokio::time::Instant;

    use super::*;

    fn body(base_url: &str, provider: Provider, must_answer: bool) -> Value {
        let config = EndpointConfig {
            provider,
            base_url: base_url.into(),
            api_key: None,
            model: "m".into(),
            key_variable: "K".into(),
            url_variable: "A",
        };
        let call = ToolCall { id: "c1".into(), name: "f".into(), arguments: "{}".into() };
        let assistant = |reasoning: Option<&str>| Message::Assistant {
            content: String::new(),
            reasoning: reasoning.map(str::to_owned),
            calls: vec![call.clone()],
        };
        let request = ModelRequest {
            user: None,
            model: None,
            messages: Arc::new(vec![
                assistant(Some("thought")),
                assistant(None),
                Message::Tool { call_id: "c1".into(), content: "42".into() },
            ]),
            temperature: None,
            max_tokens: None,
            tools: Arc::new([RawValue::from_string(r#"{"z": 1, "a": 2}"#.into()).unwrap()]),
            must_answer,
            deadline: Instant::now(),
        };
        serde_json::to_value(RequestBody::new(&config, &request, "m", Some(7))).unwrap()
    }

    #[tokio::test]
    async fn request_body_fits_each_provider() {
        let deepseek = body("https://api.deepseek.com/v1", Provider::Compatible, false);
        assert_eq!(deepseek["messages"][0]["reasoning_content"], "thought");
        assert_eq!(deepseek["messages"][1]["reasoning_content"], "", "sent even if empty");
        assert_eq!(deepseek["messages"][0]["content"], "");
        assert_eq!((&deepseek["max_tokens"], deepseek.get("max_completion_tokens")), (&json!(7), None));
        let openai = body("https://api.openai.com/v1", Provider::OpenAi, true);
        assert_eq!(openai["messages"][0].get("reasoning_content"), None);
        assert_eq!((&openai["max_completion_tokens"], openai.get("max_tokens")), (&json!(7), None));
        assert_eq!((&openai["tool_choice"], openai.get("parallel_tool_calls")), (&json!("none"), None));
        let qwen = body("https://dashscope.aliyuncs.com/compatible-mode/v1", Provider::Qwen, false);
        assert_eq!((&qwen["parallel_tool_calls"], qwen.get("tool_choice")), (&json!(true), None));
        let other = body("http://127.0.0.1:1/v1", Provider::Compatible, false);
        assert_eq!(other["messages"][0]["reasoning_content"], "thought", "sent if the model sent reasoning");
        assert_eq!(other["messages"][1].get("reasoning_content"), None);
        let call = json!({"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}});
        assert_eq!(other["messages"][0]["tool_calls"], json!([call]));
        assert_eq!(other["messages"][2], json!({"role": "tool", "tool_call_id": "c1", "content": "42"}));
    }
}
