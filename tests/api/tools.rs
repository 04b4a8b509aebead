//! Tool calls: tools of the client, which suspend a turn, and memory tools, which the server runs.

use std::io::Write as _;

use agent_service::proto::agent_v1::{self as pb, chat_request::Input, chat_response::Content};
use serde_json::{Value, json};
use tonic::{Code, Request};

use crate::{
    fake_provider::{FakeProvider, Step, delta, finish, golden_stream, stream, usage},
    harness::{
        TestServer, ask, ask_without_retrieval, error_of, joined_deltas, outline, run_chat, usage_of, without_retrieval,
    },
};

const TOOLS: &str = r#"[
    {"type": "function", "function": {"name": "get_weather", "description": "Tells the weather", "parameters":
        {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "now"}}
]"#;

pub async fn start_with_tools() -> (FakeProvider, TestServer) {
    let provider = FakeProvider::start().await;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(TOOLS.as_bytes()).unwrap();
    let mut variables = provider.variables();
    variables.push(("TOOLS_FILE", file.path().to_str().unwrap()));
    let server = TestServer::start(&variables).await;
    (provider, server)
}

/// A question in session `s` with all tools enabled.
pub fn question_with_tools(message: &str) -> pb::ChatRequest {
    pb::ChatRequest {
        session_id: "s".into(),
        config: Some(pb::ChatConfig { tools_enabled: true, ..Default::default() }),
        ..ask(message)
    }
}

/// As [`question_with_tools`], without retrieval.
pub fn question(message: &str) -> Request<pb::ChatRequest> {
    without_retrieval(question_with_tools(message))
}

pub fn tool_result(call_id: &str, json: &str) -> pb::ChatRequest {
    send_result(pb::ToolResult { tool_call_id: call_id.into(), result_json: json.into(), ..Default::default() })
}

fn failed_tool_result(call_id: &str, message: &str) -> pb::ChatRequest {
    let (tool_call_id, error_message) = (call_id.into(), message.into());
    send_result(pb::ToolResult { tool_call_id, is_error: true, error_message, ..Default::default() })
}

fn send_result(result: pb::ToolResult) -> pb::ChatRequest {
    pb::ChatRequest { session_id: "s".into(), input: Some(Input::ToolResult(result)), ..ask("") }
}

pub fn tool_call_event(index: u32, id: &str, name: &str, arguments: &Value) -> String {
    let function = json!({"name": name, "arguments": arguments.to_string()});
    let call = json!({"index": index, "id": id, "type": "function", "function": function});
    json!({"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": null}]}).to_string()
}

pub fn tool_call_answer(id: &str, name: &str, arguments: &Value) -> Vec<Step> {
    stream(&[&tool_call_event(0, id, name, arguments), &finish("tool_calls"), &usage(10, 5), "[DONE]"])
}

pub fn text_answer(text: &str) -> Vec<Step> {
    stream(&[&delta(text), &finish("stop"), &usage(20, 2), "[DONE]"])
}

pub async fn assert_result_rejected(server: &TestServer, request: pb::ChatRequest) {
    let status = server.chat(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("tool_result.tool_call_id"), "{status:?}");
}

pub fn calls_of(frames: &[pb::ChatResponse]) -> Vec<(&str, &str, &str)> {
    frames
        .iter()
        .filter_map(|frame| match &frame.content {
            Some(Content::ToolCall(call)) => Some((call.id.as_str(), call.name.as_str(), call.arguments.as_str())),
            _ => None,
        })
        .collect()
}

pub fn results_of(frames: &[pb::ChatResponse]) -> Vec<&pb::ToolResultPayload> {
    frames
        .iter()
        .filter_map(|frame| match &frame.content {
            Some(Content::ToolResult(result)) => Some(result),
            _ => None,
        })
        .collect()
}

#[tokio::test]
async fn parallel_tool_calls_resume_turn_after_all_results() {
    let (mut provider, server) = start_with_tools().await;
    for (file, ids, cities) in [
        ("openai_tools", ["call_DdmO9pD3xa9XTPNJ32zg2hcA", "call_H7ZtNVYzq1nCBQzHTKwr0sZa"], ["Paris", "Bogotá"]),
        ("dashscope_tools", ["call_8f08d2b0fc0c4d8fab7123", "call_c16bd6aa4d0a4ba7a4b66d"], ["杭州", "北京"]),
        ("deepseek_tools", ["call_00_aPmi7Xk1", "call_01_qD2mB8Wz"], ["Hangzhou", "Beijing"]),
    ] {
        provider.script(golden_stream(file)).await;
        let frames = run_chat(&server, question("what is the weather?")).await;
        assert_eq!(
            outline(&frames),
            ["THINKING", "GENERATING", "EXECUTING_TOOL", "tool_call", "usage", "nothing"],
            "{file}"
        );
        assert_eq!(frames.last().unwrap().finish_reason(), pb::FinishReason::ToolCalls);
        for ((id, name, arguments), (expected, city)) in calls_of(&frames).into_iter().zip(ids.into_iter().zip(cities))
        {
            let arguments: Value = serde_json::from_str(arguments).unwrap();
            assert_eq!((id, name, arguments), (expected, "get_weather", json!({"city": city})), "{file}");
        }

        // Results in reverse order; one is an error.
        let frames = run_chat(&server, failed_tool_result(ids[1], "no such place")).await;
        assert_eq!(outline(&frames), ["THINKING", "nothing"]);
        assert_eq!(frames.last().unwrap().finish_reason(), pb::FinishReason::Continue);
        assert_result_rejected(&server, failed_tool_result(ids[1], "no such place")).await;
        provider.script(text_answer("Sunny in one, unknown in the other.")).await;
        let frames = run_chat(&server, tool_result(ids[0], r#"{"sky": "clear"}"#)).await;
        assert_eq!(outline(&frames), ["THINKING", "GENERATING", "delta", "usage", "full_text"]);
        assert_eq!(joined_deltas(&frames), "Sunny in one, unknown in the other.");

        let requests = provider.take_requests();
        let (first, second) = (&requests[0].body, &requests[1].body);
        let names = |body: &Value| -> Vec<String> {
            let tools = body["tools"].as_array().unwrap();
            tools.iter().map(|tool| tool["function"]["name"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(
            names(first),
            ["save_memory", "forget_memory", "get_weather", "now"],
            "search_memory is not offered without retrieval"
        );
        assert_eq!(names(first), names(second));
        let messages = second["messages"].as_array().unwrap();
        let roles: Vec<_> = messages.iter().map(|message| message["role"].as_str().unwrap()).collect();
        let before = first["messages"].as_array().unwrap();
        assert_eq!(roles[before.len() - 1..], ["user", "assistant", "tool", "tool"]);
        assert_eq!(messages[..before.len()], before[..], "the turn resumes with the same messages");
        let messages = &messages[before.len() - 2..];
        assert_eq!(messages[2]["tool_calls"][1]["id"], ids[1]);
        assert_eq!(
            (&messages[3]["tool_call_id"], &messages[3]["content"]),
            (&json!(ids[0]), &json!(r#"{"sky": "clear"}"#))
        );
        assert_eq!(
            (&messages[4]["tool_call_id"], &messages[4]["content"]),
            (&json!(ids[1]), &json!(r#"{"error":"no such place"}"#))
        );
        let has_reasoning = file == "deepseek_tools";
        let reasoning = messages[2].get("reasoning_content");
        assert_eq!(
            reasoning,
            has_reasoning.then_some(&json!("Two cities, two calls.")),
            "reasoning is returned to providers that require it"
        );
        for id in ids {
            assert_result_rejected(&server, tool_result(id, "1")).await;
        }
    }
}

#[tokio::test]
async fn tools_are_offered_as_selected_by_the_request() {
    let (mut provider, server) = start_with_tools().await;
    let with = |active: &[&str], enabled: bool, retrieval: bool| {
        let request = pb::ChatRequest {
            active_tools: active.iter().map(|&name| name.to_owned()).collect(),
            config: Some(pb::ChatConfig { tools_enabled: enabled, ..Default::default() }),
            ..ask("hi")
        };
        if retrieval { Request::new(request) } else { without_retrieval(request) }
    };
    for (request, expected) in [
        (with(&[], false, true), vec![]),
        (with(&[], true, true), vec!["search_memory", "save_memory", "forget_memory", "get_weather", "now"]),
        (with(&["now"], false, true), vec!["now"]),
        (with(&["now", "unheard_of", "search_memory"], true, true), vec!["search_memory", "now"]),
        (with(&["unheard_of"], true, true), vec![]),
        (with(&["search_memory", "save_memory"], false, false), vec!["save_memory"]),
    ] {
        provider.script(text_answer("ok")).await;
        let described = format!("{request:?}");
        run_chat(&server, request).await;
        let body = provider.take_requests().remove(0).body;
        let offered: Vec<_> = body["tools"].as_array().into_iter().flatten().collect();
        let names: Vec<_> = offered.iter().map(|tool| tool["function"]["name"].as_str().unwrap()).collect();
        assert_eq!(names, expected, "{described}");
        assert_eq!(body.get("tools").is_some(), !expected.is_empty(), "an empty tool list is sent");
    }
}

#[tokio::test]
async fn invalid_tool_calls_are_repaired_once() {
    let (mut provider, server) = start_with_tools().await;
    let invalid = [
        ("get_weather", r#"{"city": 7}"#),
        ("get_weather", r#"{"city": "Par"#),
        ("get_wether", r#"{"city": "Paris"}"#),
    ];
    for (name, arguments) in invalid {
        let function = json!({"name": name, "arguments": arguments});
        let tool_calls = json!([{"index": 0, "id": "w", "function": function}]);
        let event = json!({"choices": [{"delta": {"tool_calls": tool_calls}}]}).to_string();
        provider
            .stream(&[&event, &tool_call_event(1, "right", "now", &json!({})), &finish("tool_calls"), &usage(10, 5)])
            .await;
        provider.script(tool_call_answer("r", "get_weather", &json!({"city": "Paris"}))).await;
        let frames = run_chat(&server, question("weather?")).await;
        assert_eq!(calls_of(&frames), [("r", "get_weather", r#"{"city":"Paris"}"#)], "{arguments}");
        assert_eq!(usage_of(&frames).0.prompt_tokens, 20, "usage of both requests is summed");
        let second = provider.take_requests().remove(1).body;
        let messages = second["messages"].as_array().unwrap();
        let from_end = |index: usize| messages[messages.len() - index]["content"].as_str().unwrap().to_owned();
        assert!(from_end(2).contains("was not made"), "{}", from_end(2));
        assert!(from_end(1).contains("repeat it"), "{}", from_end(1));

        provider.stream(&[&event, &finish("tool_calls")]).await;
        provider.stream(&[&event, &finish("tool_calls")]).await;
        let frames = run_chat(&server, question("weather?")).await;
        assert_eq!((error_of(&frames).code.as_str(), error_of(&frames).retryable), ("TOOL_CALL_INVALID", true));
        assert!(calls_of(&frames).is_empty());
        provider.take_requests();
    }
}

/// The prompt of a turn without tools is dropped at the first text, so that its request can be repeated only before.
#[tokio::test]
async fn call_without_offered_tools_is_repaired_only_before_text() {
    let (mut provider, server) = start_with_tools().await;
    let call = tool_call_event(0, "w", "get_weather", &json!({"city": "Paris"}));
    provider.stream(&[&call, &finish("tool_calls"), &usage(10, 5)]).await;
    provider.stream(&[&delta("Sunny."), &finish("stop"), &usage(10, 5)]).await;
    assert_eq!(joined_deltas(&run_chat(&server, ask_without_retrieval("weather?")).await), "Sunny.");
    let requests = provider.take_requests();
    let of_request = |index: usize| requests[index].body["messages"].as_array().unwrap();
    assert_eq!(of_request(1)[..of_request(0).len()], of_request(0)[..], "the repetition has the whole prompt");

    provider.stream(&[&delta("Let me see."), &call, &finish("tool_calls"), &usage(10, 5)]).await;
    let frames = run_chat(&server, ask_without_retrieval("weather?")).await;
    assert_eq!(
        (joined_deltas(&frames).as_str(), error_of(&frames).code.as_str()),
        ("Let me see.", "TOOL_CALL_INVALID")
    );
    assert_eq!(provider.take_requests().len(), 1);
}

#[tokio::test]
async fn memory_tools_run_on_the_server() {
    let (mut provider, server) = start_with_tools().await;
    let ids = server.remember("ann", &["I mix up eigenvalues"]).await;
    provider.script(tool_call_answer("c1", "search_memory", &json!({"query": "eigenvalues"}))).await;
    provider.script(tool_call_answer("c2", "forget_memory", &json!({"ids": ids}))).await;
    provider
        .script(tool_call_answer(
            "c3",
            "save_memory",
            &json!({"content": "Ann knows eigenvalues now", "tags": ["maths"]}),
        ))
        .await;
    provider.script(text_answer("Done.")).await;
    let frames = run_chat(&server, question_with_tools("I know eigenvalues now")).await;
    let round = ["GENERATING", "EXECUTING_TOOL", "tool_result"];
    let end = ["GENERATING", "delta", "usage", "full_text"];
    let start = ["THINKING", "SEARCHING", "citations"];
    assert_eq!(outline(&frames), [&start[..], &round, &round, &round, &end].concat());
    assert_eq!((usage_of(&frames).0.prompt_tokens, usage_of(&frames).0.completion_tokens), (50, 17));
    let results = results_of(&frames);
    assert!(results.iter().all(|result| result.success));
    assert_eq!((results[0].tool_name.as_str(), results[0].tool_call_id.as_str()), ("search_memory", "c1"));
    assert!(format!("{:?}", results[0].data).contains(&ids[0]));
    let requests = provider.take_requests();
    let last = requests[1].body["messages"].as_array().unwrap().last().unwrap();
    assert_eq!(last["role"], "tool");
    assert!(last["content"].as_str().unwrap().contains("I mix up eigenvalues"));

    let memories = server.list_memories("ann").await;
    assert_eq!(memories.len(), 1, "{memories:?}");
    assert_eq!((&*memories[0].content, &*memories[0].source_type), ("Ann knows eigenvalues now", "fact"));
    assert_eq!(memories[0].tags, ["maths"]);
    assert_eq!(memories[0].metadata["saved_by"], "model");
}

#[tokio::test]
async fn server_and_client_tools_run_in_one_round() {
    let (mut provider, server) = start_with_tools().await;
    let save = tool_call_event(0, "s", "save_memory", &json!({"content": "The user's home is in Paris"}));
    let weather = tool_call_event(1, "w", "get_weather", &json!({"city": "Paris"}));
    provider.stream(&[&delta("Let me look. "), &save, &weather, &finish("tool_calls"), &usage(1, 1)]).await;
    let frames = run_chat(&server, question("weather at home, in Paris?")).await;
    assert_eq!(
        outline(&frames),
        ["THINKING", "GENERATING", "delta", "EXECUTING_TOOL", "tool_result", "tool_call", "usage", "nothing"]
    );
    assert_eq!(calls_of(&frames).len(), 1, "tools of the server are not sent to the client");
    provider.script(text_answer("Sunny.")).await;
    let frames = run_chat(&server, tool_result("w", r#"{"sky": "clear"}"#)).await;
    assert_eq!(joined_deltas(&frames), "Sunny.", "the full text is that of the resumed call");
    let messages = provider.take_requests().remove(1).body["messages"].clone();
    assert_eq!(messages[2]["content"], "Let me look. ");
    assert_eq!((&messages[3]["tool_call_id"], &messages[4]["tool_call_id"]), (&json!("s"), &json!("w")));
}

#[tokio::test]
async fn tool_rounds_are_bounded() {
    let (mut provider, server) = start_with_tools().await;
    provider.script_all(tool_call_answer("c", "save_memory", &json!({"content": "again"}))).await;
    let frames = run_chat(&server, question("hi")).await;
    assert_eq!((error_of(&frames).code.as_str(), error_of(&frames).retryable), ("TOOL_ROUNDS_EXCEEDED", false));
    let requests = provider.take_requests();
    assert_eq!(requests.len(), 9);
    let (last, before) = requests.split_last().unwrap();
    assert_eq!(last.body["tool_choice"], "none");
    assert!(before.iter().all(|request| request.body.get("tool_choice").is_none()));
}
