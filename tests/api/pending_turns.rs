//! Turns that wait for tool results of the client.

use agent_service::proto::agent_v1::{self as pb, chat_response::Content};
use serde_json::json;

use crate::{
    fake_provider::{Step, partial_answer},
    harness::{error_of, joined_deltas, run_chat, without_retrieval},
    tools::{
        assert_result_rejected, calls_of, question, question_with_tools, start_with_tools, text_answer,
        tool_call_answer, tool_call_event, tool_result,
    },
};

#[tokio::test]
async fn results_of_unknown_calls_are_rejected() {
    let (provider, server) = start_with_tools().await;
    assert_result_rejected(&server, tool_result("c", "1")).await;
    provider.script(tool_call_answer("c", "now", &json!({}))).await;
    run_chat(&server, question("what time is it?")).await;
    assert_result_rejected(&server, tool_result("another", "1")).await;
    assert_result_rejected(&server, pb::ChatRequest { session_id: "another".into(), ..tool_result("c", "1") }).await;
    assert_result_rejected(&server, pb::ChatRequest { user_id: "bob".into(), ..tool_result("c", "1") }).await;
    provider.script(text_answer("noon")).await;
    assert_eq!(joined_deltas(&run_chat(&server, tool_result("c", "\"12:00\"")).await), "noon");
}

#[tokio::test]
async fn concurrent_results_resume_the_turn_once() {
    let (mut provider, server) = start_with_tools().await;
    let calls: Vec<_> = (0..8).map(|n| tool_call_event(n, &format!("c{n}"), "now", &json!({}))).collect();
    let events: Vec<_> = calls.iter().map(String::as_str).chain(["[DONE]"]).collect();
    provider.stream(&events).await;
    assert_eq!(calls_of(&run_chat(&server, question("time?")).await).len(), 8);
    provider.take_requests();
    provider.script_all(text_answer("noon")).await;
    let ids: Vec<_> = (0..8).map(|n| format!("c{n}")).collect();
    let results = ids.iter().map(|id| run_chat(&server, tool_result(id, "1")));
    let all = futures_util::future::join_all(results).await;
    let finished = all.iter().filter(|frames| frames.last().unwrap().finish_reason() == pb::FinishReason::Stop);
    assert_eq!(finished.count(), 1);
    assert_eq!(provider.take_requests().len(), 1);
}

#[tokio::test]
async fn failed_resumed_turn_can_be_resumed_again() {
    let (provider, server) = start_with_tools().await;
    provider.script(tool_call_answer("c", "now", &json!({}))).await;
    run_chat(&server, question("time?")).await;
    provider.respond(503, "").await;
    let frames = run_chat(&server, tool_result("c", "12")).await;
    assert!(error_of(&frames).retryable);
    provider.script(text_answer("noon")).await;
    assert_eq!(joined_deltas(&run_chat(&server, tool_result("c", "12")).await), "noon");
    assert_result_rejected(&server, tool_result("c", "12")).await;
}

#[tokio::test]
async fn cut_resumed_turn_is_persisted_once() {
    let (provider, server) = start_with_tools().await;
    provider.script(tool_call_answer("c", "now", &json!({}))).await;
    run_chat(&server, question("time?")).await;
    provider.script([partial_answer("half"), vec![Step::Reset]].concat()).await;
    let frames = run_chat(&server, tool_result("c", "12")).await;
    assert!(error_of(&frames).retryable);
    provider.script(text_answer("noon")).await;
    assert_eq!(joined_deltas(&run_chat(&server, tool_result("c", "12")).await), "noon");
    let turns = server.get_session("s").await.unwrap().turns;
    assert_eq!(turns.iter().map(|turn| turn.interrupted).collect::<Vec<_>>(), [false]);
}

#[tokio::test]
async fn resumed_turn_keeps_its_language() {
    let (provider, server) = start_with_tools().await;
    provider.script(tool_call_answer("c", "now", &json!({}))).await;
    let profile = pb::UserProfile { language: "zh-CN".into(), ..Default::default() };
    run_chat(
        &server,
        without_retrieval(pb::ChatRequest { user_profile: Some(profile), ..question_with_tools("几点了?") }),
    )
    .await;
    provider.script(text_answer("中午")).await;
    let frames = run_chat(&server, tool_result("c", "12")).await;
    let Some(Content::StatusUpdate(status)) = &frames[0].content else { panic!("{frames:?}") };
    assert_eq!(status.details, "正在思考…");
}

#[tokio::test]
async fn new_turn_and_deletion_drop_the_pending_turn() {
    let (provider, server) = start_with_tools().await;
    for id in ["old", "new"] {
        provider.script(tool_call_answer(id, "now", &json!({}))).await;
        run_chat(&server, question("time?")).await;
    }
    assert_result_rejected(&server, tool_result("old", "1")).await;
    let everything = pb::DeleteMemoriesRequest { user_id: "ann".into(), everything: true, ..Default::default() };
    server.memory().delete_memories(everything).await.unwrap();
    assert_result_rejected(&server, tool_result("new", "1")).await;
}
