//! Tools: those that the client runs between two calls, and those of the memory that the server runs itself.

use std::{io::Write as _, path::Path};

use agent_service::proto::agent_v1::{
    self as pb, chat_request::Input, chat_response::Content, conversation_service_client::ConversationServiceClient,
};
use serde_json::{Value, json};
use tonic::Code;

use crate::{
    fake_provider::{FakeProvider, Step, delta, finish, head, stream, usage},
    harness::{TestServer, ask, check_contract, error_of, joined_deltas, outline, usage_of},
};

const TOOLS: &str = r#"[
    {"type": "function", "function": {"name": "get_weather", "description": "Tells the weather", "parameters":
        {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "now"}}
]"#;

fn tools_file() -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(TOOLS.as_bytes()).unwrap();
    file
}

async fn server(provider: &FakeProvider, tools: &Path) -> TestServer {
    let mut variables = provider.variables();
    variables.push(("TOOLS_FILE", tools.to_str().unwrap()));
    TestServer::start(&variables).await
}

/// A question in the session `s` with all tools.
fn question(message: &str) -> pb::ChatRequest {
    pb::ChatRequest {
        session_id: "s".into(),
        config: Some(pb::ChatConfig { tools_enabled: true, ..Default::default() }),
        use_document_context: Some(false),
        ..ask(message)
    }
}

fn result(call_id: &str, json: &str) -> pb::ChatRequest {
    let result = pb::ToolResult { tool_call_id: call_id.into(), result_json: json.into(), ..Default::default() };
    pb::ChatRequest { session_id: "s".into(), input: Some(Input::ToolResult(result)), ..ask("") }
}

fn failed(call_id: &str, message: &str) -> pb::ChatRequest {
    let result = pb::ToolResult {
        tool_call_id: call_id.into(),
        is_error: true,
        error_message: message.into(),
        ..Default::default()
    };
    pb::ChatRequest { session_id: "s".into(), input: Some(Input::ToolResult(result)), ..ask("") }
}

/// The chunk with a whole call.
fn call(index: u32, id: &str, name: &str, arguments: &Value) -> String {
    let function = json!({"name": name, "arguments": arguments.to_string()});
    let call = json!({"index": index, "id": id, "type": "function", "function": function});
    json!({"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": null}]}).to_string()
}

/// An answer that wants one tool to be called.
fn wants(id: &str, name: &str, arguments: &Value) -> Vec<Step> {
    stream(&[&call(0, id, name, arguments), &finish("tool_calls"), &usage(10, 5), "[DONE]"])
}

fn answers(text: &str) -> Vec<Step> {
    stream(&[&delta(text), &finish("stop"), &usage(20, 2), "[DONE]"])
}

async fn chat(server: &TestServer, request: pb::ChatRequest) -> Vec<pb::ChatResponse> {
    let frames = server.chat(request).await.unwrap();
    check_contract(&frames);
    frames
}

async fn refused(server: &TestServer, request: pb::ChatRequest) {
    let status = server.chat(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("tool_result.tool_call_id"), "{status:?}");
}

fn calls_of(frames: &[pb::ChatResponse]) -> Vec<(&str, &str, &str)> {
    frames
        .iter()
        .filter_map(|frame| match &frame.content {
            Some(Content::ToolCall(call)) => Some((call.id.as_str(), call.name.as_str(), call.arguments.as_str())),
            _ => None,
        })
        .collect()
}

fn results_of(frames: &[pb::ChatResponse]) -> Vec<&pb::ToolResultPayload> {
    frames
        .iter()
        .filter_map(|frame| match &frame.content {
            Some(Content::ToolResult(result)) => Some(result),
            _ => None,
        })
        .collect()
}

fn golden(file: &str) -> Vec<Step> {
    let body = std::fs::read(format!("{}/tests/golden/streams/{file}.sse", env!("CARGO_MANIFEST_DIR"))).unwrap();
    vec![Step::Send(head(200, "text/event-stream")), Step::Send(body)]
}

#[tokio::test]
async fn parallel_calls_go_to_the_client_and_the_turn_goes_on_when_all_results_are_in() {
    let mut provider = FakeProvider::start().await;
    let tools = tools_file();
    let server = server(&provider, tools.path()).await;
    for (file, ids, cities) in [
        ("openai_tools", ["call_DdmO9pD3xa9XTPNJ32zg2hcA", "call_H7ZtNVYzq1nCBQzHTKwr0sZa"], ["Paris", "Bogotá"]),
        ("dashscope_tools", ["call_8f08d2b0fc0c4d8fab7123", "call_c16bd6aa4d0a4ba7a4b66d"], ["杭州", "北京"]),
        ("deepseek_tools", ["call_00_aPmi7Xk1", "call_01_qD2mB8Wz"], ["Hangzhou", "Beijing"]),
    ] {
        provider.script(golden(file)).await;
        let frames = chat(&server, question("what is the weather?")).await;
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

        // Answered in the other order; one of them failed.
        let frames = chat(&server, failed(ids[1], "no such place")).await;
        assert_eq!(outline(&frames), ["THINKING", "nothing"]);
        assert_eq!(frames.last().unwrap().finish_reason(), pb::FinishReason::Continue);
        refused(&server, failed(ids[1], "no such place")).await;
        provider.script(answers("Sunny in one, unknown in the other.")).await;
        let frames = chat(&server, result(ids[0], r#"{"sky": "clear"}"#)).await;
        assert_eq!(outline(&frames), ["THINKING", "GENERATING", "delta", "usage", "full_text"]);
        assert_eq!(joined_deltas(&frames), "Sunny in one, unknown in the other.");

        let requests = provider.received();
        let (first, second) = (&requests[0].body, &requests[1].body);
        let names = |body: &Value| -> Vec<String> {
            let tools = body["tools"].as_array().unwrap();
            tools.iter().map(|tool| tool["function"]["name"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(names(first), ["save_memory", "forget_memory", "get_weather", "now"], "without retrieval no search");
        assert_eq!(names(first), names(second));
        let messages = second["messages"].as_array().unwrap();
        let roles: Vec<_> = messages.iter().map(|message| message["role"].as_str().unwrap()).collect();
        let before = first["messages"].as_array().unwrap();
        assert_eq!(roles[before.len() - 1..], ["user", "assistant", "tool", "tool"]);
        assert_eq!(messages[..before.len()], before[..], "the very turn goes on");
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
        let thought = file == "deepseek_tools";
        let reasoning = messages[2].get("reasoning_content");
        assert_eq!(
            reasoning,
            thought.then_some(&json!("Two cities, two calls.")),
            "thought goes back where it came from"
        );
        for id in ids {
            refused(&server, result(id, "1")).await;
        }
    }
}

#[tokio::test]
async fn tools_are_offered_as_the_request_selects_them() {
    let mut provider = FakeProvider::start().await;
    let tools = tools_file();
    let server = server(&provider, tools.path()).await;
    let with = |active: &[&str], enabled: bool, retrieval: bool| pb::ChatRequest {
        active_tools: active.iter().map(|&name| name.to_owned()).collect(),
        config: Some(pb::ChatConfig { tools_enabled: enabled, ..Default::default() }),
        use_document_context: Some(retrieval),
        ..ask("hi")
    };
    for (request, expected) in [
        (with(&[], false, true), vec![]),
        (with(&[], true, true), vec!["search_memory", "save_memory", "forget_memory", "get_weather", "now"]),
        (with(&["now"], false, true), vec!["now"]),
        (with(&["now", "unheard_of", "search_memory"], true, true), vec!["search_memory", "now"]),
        (with(&["unheard_of"], true, true), vec![]),
        (with(&["search_memory", "save_memory"], false, false), vec!["save_memory"]),
    ] {
        provider.script(answers("ok")).await;
        chat(&server, request.clone()).await;
        let body = provider.received().remove(0).body;
        let offered: Vec<_> = body["tools"].as_array().into_iter().flatten().collect();
        let names: Vec<_> = offered.iter().map(|tool| tool["function"]["name"].as_str().unwrap()).collect();
        assert_eq!(names, expected, "{request:?}");
        assert_eq!(body.get("tools").is_some(), !expected.is_empty(), "no empty list");
    }
}

#[tokio::test]
async fn results_of_calls_that_were_not_made_for_this_user_and_session_are_refused() {
    let provider = FakeProvider::start().await;
    let tools = tools_file();
    let server = server(&provider, tools.path()).await;
    refused(&server, result("c", "1")).await;
    provider.script(wants("c", "now", &json!({}))).await;
    chat(&server, question("what time is it?")).await;
    refused(&server, result("another", "1")).await;
    refused(&server, pb::ChatRequest { session_id: "another".into(), ..result("c", "1") }).await;
    refused(&server, pb::ChatRequest { user_id: "bob".into(), ..result("c", "1") }).await;
    provider.script(answers("noon")).await;
    assert_eq!(joined_deltas(&chat(&server, result("c", "\"12:00\"")).await), "noon");
}

#[tokio::test]
async fn of_results_that_come_at_once_exactly_one_goes_on_with_the_turn() {
    let mut provider = FakeProvider::start().await;
    let tools = tools_file();
    let server = server(&provider, tools.path()).await;
    let calls: Vec<_> = (0..8).map(|n| call(n, &format!("c{n}"), "now", &json!({}))).collect();
    let events: Vec<_> = calls.iter().map(String::as_str).chain(["[DONE]"]).collect();
    provider.stream(&events).await;
    assert_eq!(calls_of(&chat(&server, question("time?")).await).len(), 8);
    provider.received();
    provider.always(answers("noon")).await;
    let ids: Vec<_> = (0..8).map(|n| format!("c{n}")).collect();
    let results = ids.iter().map(|id| chat(&server, result(id, "1")));
    let all = futures_util::future::join_all(results).await;
    let goes_on = all.iter().filter(|frames| frames.last().unwrap().finish_reason() == pb::FinishReason::Stop);
    assert_eq!(goes_on.count(), 1);
    assert_eq!(provider.received().len(), 1);
}

#[tokio::test]
async fn wrong_calls_are_repaired_once_and_never_reach_a_client() {
    let mut provider = FakeProvider::start().await;
    let tools = tools_file();
    let server = server(&provider, tools.path()).await;
    let wrong = [
        ("get_weather", r#"{"city": 7}"#),
        ("get_weather", r#"{"city": "Par"#),
        ("get_wether", r#"{"city": "Paris"}"#),
    ];
    for (name, arguments) in wrong {
        let function = json!({"name": name, "arguments": arguments});
        let tool_calls = json!([{"index": 0, "id": "w", "function": function}]);
        let event = json!({"choices": [{"delta": {"tool_calls": tool_calls}}]}).to_string();
        provider.stream(&[&event, &call(1, "right", "now", &json!({})), &finish("tool_calls"), &usage(10, 5)]).await;
        provider.script(wants("r", "get_weather", &json!({"city": "Paris"}))).await;
        let frames = chat(&server, question("weather?")).await;
        assert_eq!(calls_of(&frames), [("r", "get_weather", r#"{"city":"Paris"}"#)], "{arguments}");
        assert_eq!(usage_of(&frames).0.prompt_tokens, 20, "both requests are told");
        let second = provider.received().remove(1).body;
        let messages = second["messages"].as_array().unwrap();
        let told = |place: usize| messages[messages.len() - place]["content"].as_str().unwrap().to_owned();
        assert!(told(2).contains("was not made"), "{}", told(2));
        assert!(told(1).contains("repeat it"), "{}", told(1));

        provider.stream(&[&event, &finish("tool_calls")]).await;
        provider.stream(&[&event, &finish("tool_calls")]).await;
        let frames = chat(&server, question("weather?")).await;
        assert_eq!((error_of(&frames).code.as_str(), error_of(&frames).retryable), ("TOOL_CALL_INVALID", true));
        assert!(calls_of(&frames).is_empty());
        provider.received();
    }
}

#[tokio::test]
async fn the_server_runs_the_tools_of_the_memory_itself() {
    let mut provider = FakeProvider::start().await;
    let tools = tools_file();
    let server = server(&provider, tools.path()).await;
    let ids = server.remember("ann", &["I mix up eigenvalues"]).await;
    provider.script(wants("c1", "search_memory", &json!({"query": "eigenvalues"}))).await;
    provider.script(wants("c2", "forget_memory", &json!({"ids": ids}))).await;
    provider
        .script(wants("c3", "save_memory", &json!({"content": "Ann knows eigenvalues now", "tags": ["maths"]})))
        .await;
    provider.script(answers("Done.")).await;
    let request = pb::ChatRequest { use_document_context: None, ..question("I know eigenvalues now") };
    let frames = chat(&server, request).await;
    let round = ["GENERATING", "EXECUTING_TOOL", "tool_result"];
    let end = ["GENERATING", "delta", "usage", "full_text"];
    let start = ["THINKING", "SEARCHING", "citations"];
    assert_eq!(outline(&frames), [&start[..], &round, &round, &round, &end].concat());
    assert_eq!((usage_of(&frames).0.prompt_tokens, usage_of(&frames).0.completion_tokens), (50, 17));
    let results = results_of(&frames);
    assert!(results.iter().all(|result| result.success));
    assert_eq!((results[0].tool_name.as_str(), results[0].tool_call_id.as_str()), ("search_memory", "c1"));
    assert!(format!("{:?}", results[0].data).contains(&ids[0]));
    let seen = provider.received();
    let last = seen[1].body["messages"].as_array().unwrap().last().unwrap();
    assert_eq!(last["role"], "tool");
    assert!(last["content"].as_str().unwrap().contains("I mix up eigenvalues"));

    let list = pb::ListMemoriesRequest { user_id: "ann".into(), ..Default::default() };
    let memories = server.memory().list_memories(list).await.unwrap().into_inner().memories;
    assert_eq!(memories.len(), 1, "{memories:?}");
    assert_eq!((&*memories[0].content, &*memories[0].source_type), ("Ann knows eigenvalues now", "fact"));
    assert_eq!(memories[0].tags, ["maths"]);
}

#[tokio::test]
async fn tools_of_both_kinds_in_one_round_are_each_run_where_they_belong() {
    let mut provider = FakeProvider::start().await;
    let tools = tools_file();
    let server = server(&provider, tools.path()).await;
    let save = call(0, "s", "save_memory", &json!({"content": "Ann lives in Paris"}));
    let weather = call(1, "w", "get_weather", &json!({"city": "Paris"}));
    provider.stream(&[&delta("Let me look. "), &save, &weather, &finish("tool_calls"), &usage(1, 1)]).await;
    let frames = chat(&server, question("weather at home?")).await;
    assert_eq!(
        outline(&frames),
        ["THINKING", "GENERATING", "delta", "EXECUTING_TOOL", "tool_result", "tool_call", "usage", "nothing"]
    );
    assert_eq!(calls_of(&frames).len(), 1, "the client is not asked to run the server's tools");
    provider.script(answers("Sunny.")).await;
    let frames = chat(&server, result("w", r#"{"sky": "clear"}"#)).await;
    assert_eq!(joined_deltas(&frames), "Sunny.", "and the full text is that of this call");
    let messages = provider.received().remove(1).body["messages"].clone();
    assert_eq!(messages[2]["content"], "Let me look. ");
    assert_eq!((&messages[3]["tool_call_id"], &messages[4]["tool_call_id"]), (&json!("s"), &json!("w")));
}

#[tokio::test]
async fn a_model_that_calls_tools_for_ever_is_told_to_answer_and_then_stopped() {
    let mut provider = FakeProvider::start().await;
    let tools = tools_file();
    let server = server(&provider, tools.path()).await;
    provider.always(wants("c", "save_memory", &json!({"content": "again"}))).await;
    let frames = chat(&server, question("hi")).await;
    assert_eq!((error_of(&frames).code.as_str(), error_of(&frames).retryable), ("TOOL_ROUNDS_EXCEEDED", false));
    let requests = provider.received();
    assert_eq!(requests.len(), 9);
    let (last, before) = requests.split_last().unwrap();
    assert_eq!(last.body["tool_choice"], "none");
    assert!(before.iter().all(|request| request.body.get("tool_choice").is_none()));
}

#[tokio::test]
async fn a_resumed_turn_that_fails_can_be_resumed_again_and_no_result_is_lost() {
    let provider = FakeProvider::start().await;
    let tools = tools_file();
    let server = server(&provider, tools.path()).await;
    provider.script(wants("c", "now", &json!({}))).await;
    chat(&server, question("time?")).await;
    provider.refuse(503, "").await;
    let frames = chat(&server, result("c", "12")).await;
    assert!(error_of(&frames).retryable);
    provider.script(answers("noon")).await;
    assert_eq!(joined_deltas(&chat(&server, result("c", "12")).await), "noon");
    refused(&server, result("c", "12")).await;
}

#[tokio::test]
async fn a_resumed_turn_that_is_cut_is_kept_once_when_it_is_whole() {
    let provider = FakeProvider::start().await;
    let tools = tools_file();
    let server = server(&provider, tools.path()).await;
    provider.script(wants("c", "now", &json!({}))).await;
    chat(&server, question("time?")).await;
    let half = format!("data: {}\n\n", delta("half")).into_bytes();
    provider.script(vec![Step::Send(head(200, "text/event-stream")), Step::Send(half), Step::Reset]).await;
    let frames = chat(&server, result("c", "12")).await;
    assert!(error_of(&frames).retryable);
    provider.script(answers("noon")).await;
    assert_eq!(joined_deltas(&chat(&server, result("c", "12")).await), "noon");
    let mut conversations = ConversationServiceClient::new(server.channel.clone());
    let wanted = pb::GetSessionRequest { user_id: "ann".into(), session_id: "s".into(), ..Default::default() };
    let kept = conversations.get_session(wanted).await.unwrap().into_inner().turns;
    assert_eq!(kept.iter().map(|turn| turn.interrupted).collect::<Vec<_>>(), [false]);
}

#[tokio::test]
async fn a_resumed_turn_speaks_the_language_in_which_it_began() {
    let provider = FakeProvider::start().await;
    let tools = tools_file();
    let server = server(&provider, tools.path()).await;
    provider.script(wants("c", "now", &json!({}))).await;
    let profile = pb::UserProfile { language: "zh-CN".into(), ..Default::default() };
    chat(&server, pb::ChatRequest { user_profile: Some(profile), ..question("几点了?") }).await;
    provider.script(answers("中午")).await;
    let frames = chat(&server, result("c", "12")).await;
    let Some(Content::StatusUpdate(status)) = &frames[0].content else { panic!("{frames:?}") };
    assert_eq!(status.details, "正在思考…");
}

#[tokio::test]
async fn a_session_waits_for_the_tools_of_its_latest_turn_and_forgetting_everything_forgets_it() {
    let provider = FakeProvider::start().await;
    let tools = tools_file();
    let server = server(&provider, tools.path()).await;
    for id in ["old", "new"] {
        provider.script(wants(id, "now", &json!({}))).await;
        chat(&server, question("time?")).await;
    }
    refused(&server, result("old", "1")).await;
    let everything = pb::DeleteMemoriesRequest { user_id: "ann".into(), everything: true, ..Default::default() };
    server.memory().delete_memories(everything).await.unwrap();
    refused(&server, result("new", "1")).await;
}
