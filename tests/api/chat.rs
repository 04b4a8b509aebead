//! Answers of demo mode and their frames.

use agent_service::proto::agent_v1::{self as pb, chat_response::Content};
use tonic::Request;
use unicode_segmentation::UnicodeSegmentation as _;

use crate::harness::{
    TestServer, ask, ask_without_retrieval, frame_kind, joined_deltas, open_stream, outline, run_chat, usage_of,
};

fn ask_in_chinese(message: &str) -> pb::ChatRequest {
    let profile = pb::UserProfile { language: "zh-CN".into(), ..Default::default() };
    pb::ChatRequest { user_profile: Some(profile), ..ask(message) }
}

fn status_details(frames: &[pb::ChatResponse]) -> Vec<String> {
    let details = frames.iter().filter_map(|frame| match &frame.content {
        Some(Content::StatusUpdate(status)) => Some(status.details.clone()),
        _ => None,
    });
    details.collect()
}

#[tokio::test]
async fn demo_answer_follows_the_frame_grammar() {
    let server = TestServer::start(&[]).await;
    let frames = run_chat(&server, ask("帮我制定高数复习计划")).await;
    assert_eq!(outline(&frames), ["THINKING", "SEARCHING", "GENERATING", "delta", "usage", "full_text"]);
    assert_eq!(frames.last().unwrap().finish_reason(), pb::FinishReason::Stop);
    let text = joined_deltas(&frames);
    assert!((300..=1000).contains(&text.chars().count()));
    for frame in &frames {
        if let Some(Content::Delta(delta)) = &frame.content {
            assert!((1..=10).contains(&delta.graphemes(true).count()), "{delta:?}");
        }
    }
}

#[tokio::test]
async fn demo_usage_is_marked_as_estimated() {
    let server = TestServer::start(&[]).await;
    let frames = server.chat(ask("hello")).await.unwrap();
    let (usage, metadata) = usage_of(&frames);
    assert!(usage.prompt_tokens > 0 && usage.completion_tokens > 0);
    assert_eq!(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
    assert_eq!(metadata["usage_source"], "estimated");
    assert_eq!(metadata["model"], "demo");
}

#[tokio::test]
async fn unmatched_question_explains_how_to_leave_demo_mode() {
    let server = TestServer::start(&[]).await;
    for question in ["What is the airspeed of a swallow?", "今天天气怎么样"] {
        let answer = joined_deltas(&server.chat(ask(question)).await.unwrap());
        assert!(answer.contains("LLM_API_KEY"), "{answer}");
    }
}

#[tokio::test]
async fn statuses_and_prompt_version_follow_profile_language() {
    let server = TestServer::start(&[]).await;
    let chinese = server.chat(ask_in_chinese("hello")).await.unwrap();
    assert_eq!(status_details(&chinese), ["正在思考…", "正在检索记忆…", "正在生成回答…"]);
    assert!(chinese.iter().all(|frame| frame.prompt_version.ends_with(".zh")));
    let english = server.chat(pb::ChatRequest { user_id: "bob".into(), ..ask("hello") }).await.unwrap();
    assert!(status_details(&english)[0].starts_with("Thinking"));
    assert!(english.iter().all(|frame| frame.prompt_version.ends_with(".en")));
}

#[tokio::test]
async fn client_ids_are_echoed_and_missing_ids_generated() {
    let server = TestServer::start(&[]).await;
    let request = pb::ChatRequest { session_id: "s-1".into(), request_id: "r-1".into(), ..ask("hi") };
    let frames = server.chat(request).await.unwrap();
    assert_eq!((frames[0].session_id.as_str(), frames[0].request_id.as_str()), ("s-1", "r-1"));
    assert_eq!(frames[0].trace_id, "r-1", "without a trace the request id correlates logs");
    let (one, two) = (server.chat(ask("hi")).await.unwrap(), server.chat(ask("hi")).await.unwrap());
    assert_ne!(one[0].session_id, two[0].session_id);
    assert_ne!(one[0].request_id, two[0].request_id);
    assert_ne!(one[0].response_id, two[0].response_id);
}

#[tokio::test]
async fn traceparent_takes_precedence_over_x_trace_id() {
    let server = TestServer::start(&[]).await;
    for (headers, expected) in [
        (vec![("x-trace-id", "trace-7")], "trace-7"),
        (
            vec![("x-trace-id", "trace-7"), ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")],
            "4bf92f3577b34da6a3ce929d0e0e4736",
        ),
    ] {
        let mut request = Request::new(ask("hi"));
        for (name, value) in headers {
            request.metadata_mut().insert(name, value.parse().unwrap());
        }
        let first = open_stream(&server, request).await.message().await.unwrap().unwrap();
        assert_eq!(first.trace_id, expected);
    }
}

#[tokio::test]
async fn first_frame_is_sent_before_the_thinking_delay() {
    // An hour: frames that arrive did not wait for the delay.
    let server = TestServer::start(&[("DEMO_THINKING_DELAY_MS", "3600000")]).await;
    let mut stream = open_stream(&server, ask("hi")).await;
    assert_eq!(frame_kind(&stream.message().await.unwrap().unwrap()), "THINKING");
}

#[tokio::test]
async fn chunks_are_paced_by_the_chunk_delay() {
    // An hour: only the first chunk can arrive.
    let server = TestServer::start(&[("DEMO_CHUNK_DELAY_MS", "3600000")]).await;
    let mut stream = open_stream(&server, ask_without_retrieval("hi")).await;
    for expected in ["THINKING", "GENERATING", "delta"] {
        assert_eq!(frame_kind(&stream.message().await.unwrap().unwrap()), expected);
    }
}

#[tokio::test]
async fn responses_file_replaces_canned_answers() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let json =
        r#"{"responses": [{"questions": ["ping"], "answer": "pong 🏓"}], "fallback": {"zh": "无", "en": "none"}}"#;
    std::fs::write(file.path(), json).unwrap();
    let server = TestServer::start(&[("DEMO_RESPONSES_FILE", file.path().to_str().unwrap())]).await;
    assert_eq!(joined_deltas(&server.chat(ask("Ping!")).await.unwrap()), "pong 🏓");
    assert_eq!(joined_deltas(&server.chat(ask("什么")).await.unwrap()), "无");
}

#[tokio::test]
async fn user_id_in_metadata_must_match_the_body() {
    let server = TestServer::start(&[]).await;
    let with_metadata = |user_id: &str| {
        let mut request = Request::new(pb::ChatRequest { user_id: user_id.into(), ..ask("hi") });
        request.metadata_mut().insert("user-id", "ann".parse().unwrap());
        request
    };
    assert!(server.agent().stream_chat(with_metadata("")).await.is_ok());
    assert!(server.agent().stream_chat(with_metadata("ann")).await.is_ok());
    let status = server.agent().stream_chat(with_metadata("bob")).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert!(status.message().contains("user_id"));
}
