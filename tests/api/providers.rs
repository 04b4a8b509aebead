//! Real models, played by a scripted provider.

use agent_service::proto::agent_v1::{self as pb, chat_response::Content};
use proptest::prelude::*;

use crate::{
    fake_provider::{FakeProvider, Step, delta, finish, head, usage},
    harness::{TestServer, ask, check_contract, error_of, joined_deltas, kind, outline, usage_of},
};

/// A question that needs no memory.
fn plain(message: &str) -> pb::ChatRequest {
    pb::ChatRequest { use_document_context: Some(false), ..ask(message) }
}

#[tokio::test]
async fn an_answer_streams_with_the_providers_own_usage() {
    let provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.variables()).await;
    provider.stream(&[&delta("线性"), &delta("代数"), &finish("stop"), &usage(12, 34), "[DONE]"]).await;
    let frames = server.chat(plain("什么是线性代数?")).await.unwrap();
    check_contract(&frames);
    assert_eq!(joined_deltas(&frames), "线性代数");
    let (usage, metadata) = usage_of(&frames);
    assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.total_tokens), (12, 34, 46));
    assert_eq!((metadata["usage_source"].as_str(), metadata["model"].as_str()), ("provider", "test-model"));
}

#[tokio::test]
async fn the_request_carries_key_model_sampling_history_and_the_prompt_in_the_users_language() {
    let mut provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.variables()).await;
    provider.stream(&[&delta("ok"), &finish("stop"), "[DONE]"]).await;
    let message = |role: &str, content: &str| pb::ChatMessage {
        role: role.into(),
        content: content.into(),
        tool_call_id: "call-1".into(),
        name: "calculator".into(),
        ..Default::default()
    };
    let request = pb::ChatRequest {
        history: vec![message("user", "earlier"), message("assistant", "yes"), message("tool", "42")],
        config: Some(pb::ChatConfig {
            model: "other-model".into(),
            temperature: Some(0.25),
            max_tokens: Some(77),
            ..Default::default()
        }),
        user_profile: Some(pb::UserProfile {
            nickname: "小明".into(),
            language: "zh-CN".into(),
            timezone: "Asia/Shanghai".into(),
            preferences: [("concise_mode".to_owned(), "true".to_owned())].into(),
            ..Default::default()
        }),
        ..plain("question")
    };
    server.chat(request).await.unwrap();
    let received = provider.requests.recv().await.unwrap();
    assert!(received.head.starts_with("POST /v1/chat/completions "), "{}", received.head);
    assert!(received.head.to_ascii_lowercase().contains("authorization: bearer test-key"));
    let body = received.body;
    assert_eq!((body["model"].as_str(), body["temperature"].as_f64()), (Some("other-model"), Some(0.25)));
    assert_eq!((body["max_tokens"].as_i64(), body["stream"].as_bool()), (Some(77), Some(true)));
    assert_eq!(body["stream_options"]["include_usage"], true);
    let messages = body["messages"].as_array().unwrap();
    let roles: Vec<_> = messages.iter().map(|message| message["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user", "user"], "a tool does not speak as the system");
    let system = messages[0]["content"].as_str().unwrap();
    assert!(system.contains("小明") && system.contains("Asia/Shanghai"), "{system}");
    assert!(messages[3]["content"].as_str().unwrap().contains("42"));
    assert_eq!(messages[4]["content"], "question");
}

#[tokio::test]
async fn what_is_not_set_is_not_sent() {
    let mut provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.variables()).await;
    provider.stream(&[&delta("ok"), &finish("stop"), "[DONE]"]).await;
    server.chat(plain("hi")).await.unwrap();
    let body = provider.requests.recv().await.unwrap().body;
    assert!(body.get("temperature").is_none() && body.get("max_tokens").is_none());
    assert_eq!(body["model"], "test-model");
}

#[tokio::test]
async fn chinese_cut_anywhere_between_two_chunks_arrives_whole() {
    let provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.variables()).await;
    let stream = format!("data: {}\n\ndata: {}\n\ndata: [DONE]\n\n", delta("特征值🎓"), finish("stop"));
    for size in [1, 2, 3, 5, 7] {
        let pieces = stream.as_bytes().chunks(size).map(|piece| Step::Send(piece.to_vec()));
        provider.script([Step::Send(head(200, "text/event-stream"))].into_iter().chain(pieces).collect()).await;
        let frames = server.chat(plain("hi")).await.unwrap();
        assert_eq!(joined_deltas(&frames), "特征值🎓", "pieces of {size} bytes");
    }
}

#[tokio::test]
async fn length_and_content_filter_are_told_as_such() {
    let provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.variables()).await;
    for (reason, expected) in [
        ("length", pb::FinishReason::Length),
        ("content_filter", pb::FinishReason::ContentFilter),
        ("stop", pb::FinishReason::Stop),
    ] {
        provider.stream(&[&delta("cut"), &finish(reason), "[DONE]"]).await;
        let frames = server.chat(plain("hi")).await.unwrap();
        check_contract(&frames);
        assert_eq!(frames.last().unwrap().finish_reason(), expected);
    }
}

#[tokio::test]
async fn every_refusal_of_a_provider_has_its_code_and_says_whether_trying_again_helps() {
    let provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.variables()).await;
    use pb::ErrorCode::{InvalidArgument, NotFound, RateLimited, Timeout, Unauthorized, Unavailable};
    for (status, body, code, class, retryable) in [
        (
            401,
            r#"{"error":{"code":"invalid_api_key","message":"sk-leak"}}"#,
            "PROVIDER_UNAUTHORIZED",
            Unauthorized,
            false,
        ),
        (402, "{}", "PROVIDER_QUOTA_EXHAUSTED", RateLimited, false),
        (404, r#"{"error":{"code":"model_not_found"}}"#, "PROVIDER_MODEL_NOT_FOUND", NotFound, false),
        (404, "404 page not found", "PROVIDER_ADDRESS_NOT_FOUND", NotFound, false),
        (429, r#"{"error":{"type":"rate_limit_error"}}"#, "PROVIDER_RATE_LIMITED", RateLimited, true),
        (429, r#"{"error":{"code":"insufficient_quota"}}"#, "PROVIDER_QUOTA_EXHAUSTED", RateLimited, false),
        (400, r#"{"error":{"code":"context_length_exceeded"}}"#, "PROVIDER_CONTEXT_LENGTH", InvalidArgument, false),
        (500, "<html>oops</html>", "PROVIDER_UNAVAILABLE", Unavailable, true),
        (503, "", "PROVIDER_UNAVAILABLE", Unavailable, true),
        (504, "", "PROVIDER_TIMEOUT", Timeout, true),
    ] {
        provider.refuse(status, body).await;
        let frames = server.chat(plain("hi")).await.unwrap();
        check_contract(&frames);
        let error = error_of(&frames);
        assert_eq!(
            (error.code.as_str(), error.error_code(), error.retryable),
            (code, class, retryable),
            "{status} {body}"
        );
        assert_eq!(error.details["provider_status"], status.to_string());
        assert!(!error.message.is_empty() && !format!("{error:?}").contains("sk-leak"));
        assert_eq!(outline(&frames), ["THINKING", "GENERATING", "error"], "nothing was spent");
    }
}

#[tokio::test]
async fn an_error_speaks_the_users_language() {
    let provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.variables()).await;
    provider.refuse(503, "").await;
    let profile = pb::UserProfile { language: "zh".into(), ..Default::default() };
    let frames = server.chat(pb::ChatRequest { user_profile: Some(profile), ..plain("hi") }).await.unwrap();
    assert_eq!(error_of(&frames).message, "模型服务暂时不可用，请稍后重试。");
}

#[tokio::test]
async fn an_error_inside_the_stream_or_a_cut_stream_is_never_called_an_answer() {
    let provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.variables()).await;
    let error = r#"{"error":{"message":"overloaded","type":"server_error"}}"#;
    for (events, code) in [
        (vec![delta("half an ans"), error.to_owned()], "PROVIDER_UNAVAILABLE"),
        (vec![delta("half an ans")], "PROVIDER_STREAM_CUT"),
        (vec![delta("half an ans"), "{not json".to_owned()], "PROVIDER_MALFORMED"),
    ] {
        let events: Vec<_> = events.iter().map(String::as_str).collect();
        provider.stream(&events).await;
        let frames = server.chat(plain("hi")).await.unwrap();
        check_contract(&frames);
        assert_eq!(error_of(&frames).code, code);
        assert!(error_of(&frames).retryable);
        assert_eq!(outline(&frames), ["THINKING", "GENERATING", "delta", "usage", "error"], "tokens were spent");
    }
}

#[tokio::test]
async fn an_answer_without_text_is_an_error_of_its_own() {
    let provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.variables()).await;
    provider.stream(&[&finish("stop"), &usage(5, 0), "[DONE]"]).await;
    let frames = server.chat(plain("hi")).await.unwrap();
    check_contract(&frames);
    assert_eq!(error_of(&frames).code, "PROVIDER_EMPTY_ANSWER");
    assert_eq!(outline(&frames), ["THINKING", "GENERATING", "usage", "error"], "what was spent is told all the same");
    assert_eq!(usage_of(&frames).0.prompt_tokens, 5);
}

#[tokio::test]
async fn answers_share_a_connection_to_their_provider() {
    let provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.variables()).await;
    let body = format!("data: {}\n\ndata: {}\n\ndata: [DONE]\n\n", delta("ok"), finish("stop"));
    for _ in 0..5 {
        let response = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        provider.script(vec![Step::Send(response.into_bytes()), Step::AwaitNext]).await;
        assert_eq!(joined_deltas(&server.chat(plain("hi")).await.unwrap()), "ok");
    }
    assert_eq!(provider.connections(), 1);
}

#[tokio::test]
async fn a_provider_that_is_not_there_is_unavailable() {
    // A port below those that are given out, on which nobody listens.
    let address = "127.0.0.1:1";
    let url = format!("http://{address}/v1");
    let variables = [
        ("LLM_PROVIDER", "compatible"),
        ("LLM_API_BASE_URL", url.as_str()),
        ("LLM_MODEL_NAME", "m"),
        ("LLM_API_KEY", "k"),
    ];
    let server = TestServer::start(&variables).await;
    let frames = server.chat(plain("hi")).await.unwrap();
    assert_eq!(error_of(&frames).code, "PROVIDER_UNAVAILABLE");
}

#[tokio::test]
async fn limits_end_a_provider_that_never_answers_or_stalls() {
    let provider = FakeProvider::start().await;
    let mut variables = provider.variables();
    variables.extend([("LLM_FIRST_TOKEN_TIMEOUT_SECONDS", "0.2"), ("LLM_IDLE_TIMEOUT_SECONDS", "0.2")]);
    let server = TestServer::start(&variables).await;
    let started = format!("data: {}\n\n", delta("half"));
    for steps in [
        vec![Step::AwaitGone],
        vec![Step::Send(head(200, "text/event-stream")), Step::AwaitGone],
        vec![Step::Send(head(200, "text/event-stream")), Step::Send(started.into_bytes()), Step::AwaitGone],
    ] {
        provider.script(steps).await;
        let frames = server.chat(plain("hi")).await.unwrap();
        check_contract(&frames);
        assert_eq!(error_of(&frames).code, "PROVIDER_TIMEOUT");
    }
}

#[tokio::test]
async fn deltas_leave_while_the_answer_is_being_made_and_leaving_cancels_the_provider() {
    let mut provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.variables()).await;
    let beginning = format!("data: {}\n\n", delta("first"));
    provider
        .script(vec![Step::Send(head(200, "text/event-stream")), Step::Send(beginning.into_bytes()), Step::AwaitGone])
        .await;
    let mut stream = server.agent().stream_chat(plain("hi")).await.unwrap().into_inner();
    loop {
        let frame = stream.message().await.unwrap().unwrap();
        if kind(&frame) == "delta" {
            assert_eq!(frame.content, Some(Content::Delta("first".into())));
            break;
        }
    }
    drop(stream);
    tokio::time::timeout(crate::harness::PATIENCE, provider.gone.recv()).await.expect("the request goes on").unwrap();
}

#[tokio::test]
async fn only_allowed_models_may_be_named() {
    let provider = FakeProvider::start().await;
    let mut variables = provider.variables();
    variables.push(("LLM_ALLOWED_MODELS", "good, better"));
    let server = TestServer::start(&variables).await;
    let with_model = |model: &str| pb::ChatRequest {
        config: Some(pb::ChatConfig { model: model.into(), ..Default::default() }),
        ..plain("hi")
    };
    let status = server.chat(with_model("evil")).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert!(status.message().contains("config.model"));
    for model in ["good", "test-model"] {
        provider.stream(&[&delta("ok"), &finish("stop"), "[DONE]"]).await;
        assert!(server.chat(with_model(model)).await.is_ok(), "{model}");
    }
}

/// How a scripted answer ends.
#[derive(Debug, Clone, Copy)]
enum End {
    Finished(&'static str),
    DoneOnly,
    Cut,
    Error,
    Refused(u16),
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_turn_keeps_the_order_of_frames(
        turns in prop::collection::vec(
            (
                prop::collection::vec("[a-z线性代数 \n]{0,12}", 0..12),
                prop_oneof![
                    Just(End::Finished("stop")), Just(End::Finished("length")), Just(End::Finished("")),
                    Just(End::DoneOnly), Just(End::Cut), Just(End::Error), Just(End::Refused(500)), Just(End::Refused(401)),
                ],
                any::<bool>(),
                any::<bool>(),
            ),
            1..4,
        )
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let provider = FakeProvider::start().await;
            let server = TestServer::start(&provider.variables()).await;
            server.remember("ann", &["linear algebra is hard"]).await;
            for (texts, end, with_usage, with_memory) in turns {
                let mut events: Vec<_> = texts.iter().map(|text| delta(text)).collect();
                match end {
                    End::Finished(reason) => events.push(finish(reason)),
                    End::Error => events.push(r#"{"error":{"code":"server_error"}}"#.to_owned()),
                    End::DoneOnly | End::Cut | End::Refused(_) => {}
                }
                if with_usage && matches!(end, End::Finished(_)) {
                    events.push(usage(3, 4));
                }
                if matches!(end, End::Finished(_) | End::DoneOnly) {
                    events.push("[DONE]".to_owned());
                }
                let events: Vec<_> = events.iter().map(String::as_str).collect();
                match end {
                    End::Refused(status) => provider.refuse(status, "{}").await,
                    _ => provider.stream(&events).await,
                }
                let request =
                    pb::ChatRequest { use_document_context: Some(with_memory), ..ask("is linear algebra hard?") };
                let frames = server.chat(request).await.unwrap();
                check_contract(&frames);
                let has_text = texts.iter().any(|text| !text.is_empty());
                let answered = frames.last().unwrap().finish_reason() != pb::FinishReason::Error;
                let complete = matches!(end, End::Finished(_) | End::DoneOnly);
                assert_eq!(answered, complete && (has_text || matches!(end, End::Finished("length"))), "{end:?}");
                assert_eq!(outline(&frames).contains(&"citations"), with_memory);
                if !matches!(end, End::Refused(_)) {
                    assert_eq!(joined_deltas(&frames), texts.concat());
                }
            }
        });
    }
}
