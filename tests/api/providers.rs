//! Answers of an OpenAI-compatible provider.

use agent_service::proto::agent_v1 as pb;
use proptest::prelude::*;
use tonic::Request;

use crate::{
    fake_provider::{FakeProvider, Step, delta, finish, stream_head, usage},
    harness::{
        TEST_TIMEOUT, TestServer, ask, ask_without_retrieval, endless_answer, error_of, joined_deltas, open_stream,
        outline, read_until, run_chat, run_turn, usage_of, without_retrieval,
    },
};

#[tokio::test]
async fn answer_streams_with_usage_of_the_provider() {
    let (provider, server) = TestServer::start_with_provider().await;
    provider.stream(&[&delta("线性"), &delta("代数"), &finish("stop"), &usage(12, 34), "[DONE]"]).await;
    let frames = run_chat(&server, ask_without_retrieval("什么是线性代数?")).await;
    assert_eq!(joined_deltas(&frames), "线性代数");
    let (usage, metadata) = usage_of(&frames);
    assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.total_tokens), (12, 34, 46));
    assert_eq!((metadata["usage_source"].as_str(), metadata["model"].as_str()), ("provider", "test-model"));
}

#[tokio::test]
async fn request_carries_key_sampling_history_and_prompt() {
    let (mut provider, server) = TestServer::start_with_provider().await;
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
        ..ask("question")
    };
    server.chat(without_retrieval(request)).await.unwrap();
    let received = provider.requests.recv().await.unwrap();
    assert!(received.head.starts_with("POST /v1/chat/completions "), "{}", received.head);
    assert!(received.head.to_ascii_lowercase().contains("authorization: bearer test-key"));
    let body = received.body;
    assert_eq!((body["model"].as_str(), body["temperature"].as_f64()), (Some("other-model"), Some(0.25)));
    assert_eq!((body["max_tokens"].as_i64(), body["stream"].as_bool()), (Some(77), Some(true)));
    assert_eq!(body["stream_options"]["include_usage"], true);
    let messages = body["messages"].as_array().unwrap();
    let roles: Vec<_> = messages.iter().map(|message| message["role"].as_str().unwrap()).collect();
    assert_eq!(
        roles,
        ["system", "user", "assistant", "user", "user"],
        "tool messages of the history are sent as user messages"
    );
    let system = messages[0]["content"].as_str().unwrap();
    assert!(system.contains("小明") && system.contains("Asia/Shanghai"), "{system}");
    assert!(messages[3]["content"].as_str().unwrap().contains("42"));
    assert_eq!(messages[4]["content"], "question");
}

#[tokio::test]
async fn unset_sampling_options_are_not_sent() {
    let (mut provider, server) = TestServer::start_with_provider().await;
    provider.stream(&[&delta("ok"), &finish("stop"), "[DONE]"]).await;
    server.chat(ask_without_retrieval("hi")).await.unwrap();
    let body = provider.requests.recv().await.unwrap().body;
    assert!(body.get("temperature").is_none() && body.get("max_tokens").is_none());
    assert_eq!(body["model"], "test-model");
}

#[tokio::test]
async fn utf8_split_across_chunks_arrives_whole() {
    let (provider, server) = TestServer::start_with_provider().await;
    let stream = format!("data: {}\n\ndata: {}\n\ndata: [DONE]\n\n", delta("特征值🎓"), finish("stop"));
    for size in [1, 2, 3, 5, 7] {
        let chunks = stream.as_bytes().chunks(size).map(|chunk| Step::Send(chunk.to_vec()));
        provider.script([stream_head()].into_iter().chain(chunks).collect()).await;
        let frames = server.chat(ask_without_retrieval("hi")).await.unwrap();
        assert_eq!(joined_deltas(&frames), "特征值🎓", "chunks of {size} bytes");
    }
}

#[tokio::test]
async fn finish_reasons_are_passed_through() {
    let (provider, server) = TestServer::start_with_provider().await;
    for (reason, expected) in [
        ("length", pb::FinishReason::Length),
        ("content_filter", pb::FinishReason::ContentFilter),
        ("stop", pb::FinishReason::Stop),
    ] {
        provider.stream(&[&delta("cut"), &finish(reason), "[DONE]"]).await;
        let frames = run_turn(&server).await;
        assert_eq!(frames.last().unwrap().finish_reason(), expected);
    }
}

#[tokio::test]
async fn provider_errors_map_to_code_and_retryability() {
    let (provider, server) = TestServer::start_with_provider().await;
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
        provider.respond(status, body).await;
        let frames = run_turn(&server).await;
        let error = error_of(&frames);
        assert_eq!(
            (error.code.as_str(), error.error_code(), error.retryable),
            (code, class, retryable),
            "{status} {body}"
        );
        assert_eq!(error.details["provider_status"], status.to_string());
        assert!(!error.message.is_empty() && !format!("{error:?}").contains("sk-leak"));
        assert_eq!(outline(&frames), ["THINKING", "GENERATING", "error"], "no usage was reported");
    }
}

#[tokio::test]
async fn error_message_is_in_the_language_of_the_user() {
    let (provider, server) = TestServer::start_with_provider().await;
    provider.respond(503, "").await;
    let profile = pb::UserProfile { language: "zh".into(), ..Default::default() };
    let frames =
        server.chat(without_retrieval(pb::ChatRequest { user_profile: Some(profile), ..ask("hi") })).await.unwrap();
    assert_eq!(error_of(&frames).message, "模型服务商暂时不可用，请稍后重试。");
}

#[tokio::test]
async fn broken_stream_is_reported_as_an_error() {
    let (provider, server) = TestServer::start_with_provider().await;
    let error = r#"{"error":{"message":"overloaded","type":"server_error"}}"#;
    for (events, code) in [
        (vec![delta("half an ans"), error.to_owned()], "PROVIDER_UNAVAILABLE"),
        (vec![delta("half an ans")], "PROVIDER_STREAM_CUT"),
        (vec![delta("half an ans"), "{not json".to_owned()], "PROVIDER_MALFORMED"),
    ] {
        let events: Vec<_> = events.iter().map(String::as_str).collect();
        provider.stream(&events).await;
        let frames = run_turn(&server).await;
        assert_eq!(error_of(&frames).code, code);
        assert!(error_of(&frames).retryable);
        assert_eq!(
            outline(&frames),
            ["THINKING", "GENERATING", "delta", "usage", "error"],
            "usage is reported for a partial answer"
        );
    }
}

#[tokio::test]
async fn empty_answer_is_an_error_with_usage() {
    let (provider, server) = TestServer::start_with_provider().await;
    provider.stream(&[&finish("stop"), &usage(5, 0), "[DONE]"]).await;
    let frames = run_turn(&server).await;
    assert_eq!(error_of(&frames).code, "PROVIDER_EMPTY_ANSWER");
    assert_eq!(outline(&frames), ["THINKING", "GENERATING", "usage", "error"], "usage is reported for an empty answer");
    assert_eq!(usage_of(&frames).0.prompt_tokens, 5);
}

#[tokio::test]
async fn answers_share_a_provider_connection() {
    let (provider, server) = TestServer::start_with_provider().await;
    let body = format!("data: {}\n\ndata: {}\n\ndata: [DONE]\n\n", delta("ok"), finish("stop"));
    for _ in 0..5 {
        let response = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        provider.script(vec![Step::Send(response.into_bytes()), Step::KeepAlive]).await;
        assert_eq!(joined_deltas(&server.chat(ask_without_retrieval("hi")).await.unwrap()), "ok");
    }
    assert_eq!(provider.connections(), 1);
}

#[tokio::test]
async fn timeouts_end_a_silent_or_stalled_provider() {
    let provider = FakeProvider::start().await;
    let mut variables = provider.variables();
    variables.extend([("LLM_FIRST_TOKEN_TIMEOUT_SECONDS", "0.2"), ("LLM_IDLE_TIMEOUT_SECONDS", "0.2")]);
    let server = TestServer::start(&variables).await;
    for steps in [vec![Step::AwaitDisconnect], vec![stream_head(), Step::AwaitDisconnect], endless_answer("half")] {
        provider.script(steps).await;
        let frames = run_turn(&server).await;
        assert_eq!(error_of(&frames).code, "PROVIDER_TIMEOUT");
    }
}

#[tokio::test]
async fn dropped_stream_cancels_the_provider_request() {
    let (mut provider, server) = TestServer::start_with_provider().await;
    provider.script(endless_answer("first")).await;
    let mut stream = open_stream(&server, ask_without_retrieval("hi")).await;
    assert_eq!(joined_deltas(&read_until(&mut stream, "delta").await), "first");
    drop(stream);
    tokio::time::timeout(TEST_TIMEOUT, provider.disconnects.recv())
        .await
        .expect("the provider request was not cancelled")
        .unwrap();
}

#[tokio::test]
async fn model_must_be_allowed() {
    let provider = FakeProvider::start().await;
    let mut variables = provider.variables();
    variables.push(("LLM_ALLOWED_MODELS", "good, better"));
    let server = TestServer::start(&variables).await;
    let with_model = |model: &str| {
        let config = Some(pb::ChatConfig { model: model.into(), ..Default::default() });
        without_retrieval(pb::ChatRequest { config, ..ask("hi") })
    };
    let status = server.chat(with_model("evil")).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert!(status.message().contains("config.model"));
    for model in ["good", "test-model"] {
        provider.stream(&[&delta("ok"), &finish("stop"), "[DONE]"]).await;
        assert!(server.chat(with_model(model)).await.is_ok(), "{model}");
    }
}

#[derive(Debug, Clone, Copy)]
enum StreamEnd {
    Finished(&'static str),
    DoneOnly,
    Cut,
    Error,
    Refused(u16),
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_turn_follows_the_frame_grammar(
        turns in prop::collection::vec(
            (
                prop::collection::vec("[a-z线性代数 \n]{0,12}", 0..12),
                prop_oneof![
                    Just(StreamEnd::Finished("stop")), Just(StreamEnd::Finished("length")), Just(StreamEnd::Finished("")),
                    Just(StreamEnd::DoneOnly), Just(StreamEnd::Cut), Just(StreamEnd::Error), Just(StreamEnd::Refused(500)), Just(StreamEnd::Refused(401)),
                ],
                any::<bool>(),
                any::<bool>(),
            ),
            1..4,
        )
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let (provider, server) = TestServer::start_with_provider().await;
            server.remember("ann", &["linear algebra is hard"]).await;
            for (texts, end, with_usage, with_memory) in turns {
                let mut events: Vec<_> = texts.iter().map(|text| delta(text)).collect();
                match end {
                    StreamEnd::Finished(reason) => events.push(finish(reason)),
                    StreamEnd::Error => events.push(r#"{"error":{"code":"server_error"}}"#.to_owned()),
                    StreamEnd::DoneOnly | StreamEnd::Cut | StreamEnd::Refused(_) => {}
                }
                if with_usage && matches!(end, StreamEnd::Finished(_)) {
                    events.push(usage(3, 4));
                }
                if matches!(end, StreamEnd::Finished(_) | StreamEnd::DoneOnly) {
                    events.push("[DONE]".to_owned());
                }
                let events: Vec<_> = events.iter().map(String::as_str).collect();
                match end {
                    StreamEnd::Refused(status) => provider.respond(status, "{}").await,
                    _ => provider.stream(&events).await,
                }
                let request = ask("is linear algebra hard?");
                let request = if with_memory { Request::new(request) } else { without_retrieval(request) };
                let frames = run_chat(&server, request).await;
                let has_text = texts.iter().any(|text| !text.is_empty());
                let is_answered = frames.last().unwrap().finish_reason() != pb::FinishReason::Error;
                let is_complete = matches!(end, StreamEnd::Finished(_) | StreamEnd::DoneOnly);
                assert_eq!(is_answered, is_complete && (has_text || matches!(end, StreamEnd::Finished("length"))), "{end:?}");
                assert_eq!(outline(&frames).contains(&"citations"), with_memory);
                if !matches!(end, StreamEnd::Refused(_)) {
                    assert_eq!(joined_deltas(&frames), texts.concat());
                }
            }
        });
    }
}
