//! `CHAT_REFUSALS=frames`: refusals of a chat as error frames, for gateways that lose statuses.

use agent_service::proto::agent_v1 as pb;
use prost::Message as _;
use tonic::{Code, Request};

use crate::harness::{
    TestServer, UNREACHABLE_DATABASE, ask, chat_request, error_of, grpc_frame, http, open_stream, read_until,
};

const FRAMES: (&str, &str) = ("CHAT_REFUSALS", "frames");

/// The error of the one frame of a refused call.
fn refusal_of(frames: &[pb::ChatResponse]) -> &pb::Error {
    let [frame] = frames else { panic!("{frames:?}") };
    assert_eq!(frame.finish_reason(), pb::FinishReason::Error);
    assert!(frame.created_at > 1_700_000_000 && frame.event_time.is_some());
    for id in [&frame.response_id, &frame.request_id, &frame.session_id, &frame.trace_id, &frame.prompt_version] {
        assert!(!id.is_empty(), "{frame:?}");
    }
    let error = error_of(frames);
    assert!(!error.message.is_empty() && error.error_code() != pb::ErrorCode::Unspecified, "{error:?}");
    error
}

#[tokio::test]
async fn invalid_argument_is_a_localized_frame_with_the_ids_of_its_call() {
    let server = TestServer::start(&[FRAMES]).await;
    let config = Some(pb::ChatConfig { temperature: Some(3.0), ..Default::default() });
    let profile = Some(pb::UserProfile { language: "zh".into(), ..Default::default() });
    let request = pb::ChatRequest { config, user_profile: profile, ..chat_request("r", "s", "hi") };
    let frames = server.chat(request).await.unwrap();
    let error = refusal_of(&frames);
    assert_eq!((error.code.as_str(), error.error_code()), ("INVALID_ARGUMENT", pb::ErrorCode::InvalidArgument));
    assert_eq!((error.retryable, error.details["field"].as_str()), (false, "config.temperature"));
    assert!(error.message.starts_with("config.temperature 超出范围"), "{error:?}");
    assert_eq!((frames[0].request_id.as_str(), frames[0].session_id.as_str()), ("r", "s"));
    let frames = server.chat(pb::ChatRequest { session_id: "a/b".into(), ..ask("hi") }).await.unwrap();
    assert_eq!(refusal_of(&frames).details["field"], "session_id");
    assert_ne!(frames[0].session_id, "a/b", "a rejected id is not repeated");
}

#[tokio::test]
async fn busy_session_and_quota_are_retryable_frames() {
    let limits = ("RATE_LIMITS", "requests_per_minute=1000000,concurrent_streams=2,tokens_per_day=2000000");
    let server = TestServer::start(&[FRAMES, limits, ("DEMO_CHUNK_DELAY_MS", "3600000")]).await;
    let mut streams = Vec::new();
    for session in ["s", "t"] {
        let mut stream = open_stream(&server, chat_request(session, session, "hello")).await;
        read_until(&mut stream, "delta").await;
        streams.push(stream);
    }
    let over_quota = server.chat(chat_request("three", "u", "hello")).await.unwrap();
    let error = refusal_of(&over_quota);
    assert_eq!((error.code.as_str(), error.error_code()), ("RESOURCE_EXHAUSTED", pb::ErrorCode::RateLimited));
    assert_eq!((error.retryable, error.details["quota"].as_str()), (true, "concurrent_streams"));
    assert!(error.details["retry_after_ms"].parse::<u64>().is_ok());
    assert!(server.cancel_turn("t", "").await.cancelled);
    read_until(&mut streams[1], "error").await;
    let busy = server.chat(chat_request("four", "s", "hello")).await.unwrap();
    let error = refusal_of(&busy);
    assert_eq!((error.code.as_str(), error.error_code()), ("ABORTED", pb::ErrorCode::Conflict));
    assert_eq!((error.retryable, error.details["reason"].as_str()), (true, "CONFLICT"));
}

#[tokio::test]
async fn overload_and_absent_store_are_retryable_frames() {
    let server =
        TestServer::start(&[FRAMES, ("MAX_CONCURRENT_STREAMS", "1"), ("DEMO_CHUNK_DELAY_MS", "3600000")]).await;
    let mut first = open_stream(&server, chat_request("one", "s", "hello")).await;
    read_until(&mut first, "delta").await;
    let absent = TestServer::start_on(UNREACHABLE_DATABASE, &[FRAMES, ("ADMISSION_TIMEOUT_MS", "100")]).await;
    for frames in [
        server.chat(chat_request("two", "t", "hello")).await.unwrap(),
        // A session without a history needs its store.
        absent.chat(chat_request("one", "s", "hello")).await.unwrap(),
    ] {
        let error = refusal_of(&frames);
        assert_eq!((error.code.as_str(), error.error_code()), ("UNAVAILABLE", pb::ErrorCode::Unavailable));
        assert!(error.retryable, "{error:?}");
    }
}

#[tokio::test]
async fn missing_credentials_stay_a_status() {
    let secret = ("JWT_SECRET", "a secret that is long enough for the tests");
    let server = TestServer::start(&[FRAMES, ("AUTH", "jwt"), secret]).await;
    assert_eq!(server.chat(ask("hi")).await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn other_calls_and_the_default_refuse_with_a_status() {
    let server = TestServer::start(&[FRAMES]).await;
    assert_eq!(
        server.agent().retrieve_memory(pb::MemoryQuery::default()).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let default = TestServer::start(&[]).await;
    assert_eq!(default.chat(ask("")).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn web_client_gets_the_frame_in_the_body() {
    let server = TestServer::start(&[FRAMES]).await;
    let response = http()
        .http1_only()
        .build()
        .unwrap()
        .post(format!("http://{}/agent.v1.AgentService/StreamChat", server.address))
        .header("content-type", "application/grpc-web+proto")
        .header("x-grpc-web", "1")
        .body(grpc_frame(&ask("").encode_to_vec()))
        .send()
        .await
        .unwrap();
    assert!(!response.headers().contains_key("grpc-status"), "{:?}", response.headers());
    let body = response.bytes().await.unwrap();
    let length = u32::from_be_bytes(body[1..5].try_into().unwrap()) as usize;
    let frame = pb::ChatResponse::decode(&body[5..5 + length]).unwrap();
    assert_eq!(refusal_of(&[frame]).details["field"], "message");
    let trailers = String::from_utf8_lossy(&body[5 + length + 5..]).into_owned();
    assert!(trailers.contains("grpc-status:0"), "{trailers}");
}

#[tokio::test]
async fn resume_behind_an_unknown_frame_is_a_frame_too() {
    let server = TestServer::start(&[FRAMES]).await;
    let mut request = Request::new(chat_request("r", "s", "hi"));
    request.metadata_mut().insert("x-last-response-id", "none".parse().unwrap());
    let frames = server.chat(request).await.unwrap();
    assert_eq!(refusal_of(&frames).details["field"], "x-last-response-id");
}
