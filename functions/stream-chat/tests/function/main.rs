//! The function as Lambda runs it: its program, events, and the bytes of its answers.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

mod callers;
mod double;
mod events;
#[path = "../../../../tests/api/fake_provider.rs"]
#[expect(dead_code, reason = "these tests need less of it")]
mod fake_provider;
mod secrets;
mod stopping;

use std::time::Duration;

use agent_service::proto::agent_v1::{self as pb, chat_response::Content};

use double::{Answer, Function, Said, event, framed, refused};
use fake_provider::{FakeProvider, Step, delta, finish, head};
use prost::Message as _;

const PROGRAM: &str = env!("CARGO_BIN_EXE_stream-chat");
const PATH: &str = "/agent.v1.AgentService/StreamChat";
const GRPC_WEB: &str = "application/grpc-web+proto";

fn ask(message: &str) -> Vec<u8> {
    let request = pb::ChatRequest {
        user_id: "ann".into(),
        input: Some(pb::chat_request::Input::Message(message.into())),
        ..Default::default()
    };
    framed(&request.encode_to_vec())
}

fn chat(message: &str) -> serde_json::Value {
    event(PATH, GRPC_WEB, &ask(message))
}

fn decoded(frames: &[Vec<u8>]) -> Vec<pb::ChatResponse> {
    frames.iter().map(|frame| pb::ChatResponse::decode(frame.as_slice()).unwrap()).collect()
}

/// Demo mode without delays, and nothing else.
async fn demo() -> Function {
    Function::start(PROGRAM, &[("DEMO_THINKING_DELAY_MS", "0"), ("DEMO_CHUNK_DELAY_MS", "0")]).await
}

async fn with_provider(provider: &FakeProvider) -> Function {
    let mut variables = provider.variables();
    variables.extend([("AUTH", "none"), ("EMBEDDING_PROVIDER", "hashed")]);
    // The connection that is warmed up at the start.
    provider.refuse(404, "").await;
    Function::start(PROGRAM, &variables).await
}

#[tokio::test]
async fn with_nothing_configured_it_answers_from_canned_answers_without_a_memory() {
    let mut function = demo().await;
    for _ in 0..2 {
        let answer = function.answer(chat("hello")).await;
        assert_eq!((answer.status, answer.headers["content-type"].as_str()), (200, GRPC_WEB));
        let (frames, trailers) = answer.frames();
        assert_eq!(trailers["grpc-status"], "0");
        let frames = decoded(&frames);
        let state = |frame: &pb::ChatResponse| match &frame.content {
            Some(Content::StatusUpdate(status)) => status.state().as_str_name(),
            _ => "",
        };
        assert_eq!((state(&frames[0]), state(&frames[1])), ("THINKING", "GENERATING"), "there is nothing to search");
        assert_eq!(frames.last().unwrap().finish_reason(), pb::FinishReason::Stop);
        assert!(matches!(frames.last().unwrap().content, Some(Content::FullText(_))));
    }
}

#[tokio::test]
async fn frames_leave_while_the_answer_is_being_made() {
    let provider = FakeProvider::start().await;
    let mut function = with_provider(&provider).await;
    // The provider goes on only when this test lets it.
    let first = format!("data: {}\n\n", delta("first"));
    provider
        .script(vec![Step::Send(head(200, "text/event-stream")), Step::Send(first.into_bytes()), Step::AwaitGone])
        .await;
    function.invoke(chat("hello"), Duration::from_secs(5));
    let mut bytes = Vec::new();
    let Said::Head(headers) = function.next().await else { panic!("no head") };
    assert_eq!(headers["lambda-runtime-function-response-mode"], "streaming");
    let mut chunks = 0;
    while !String::from_utf8_lossy(&bytes).contains("first") {
        let Said::Chunk(chunk) = function.next().await else { panic!("the answer ended early") };
        bytes.extend(chunk);
        chunks += 1;
    }
    assert!(chunks >= 3, "the prelude, the first status and the delta come one by one: {chunks}");
    // The function's time runs out before the provider goes on: the stream ends in order, and says that trying again helps.
    let answer = function.rest(bytes).await;
    let (frames, trailers) = answer.frames();
    assert_eq!(trailers["grpc-status"], "0");
    let last = decoded(&frames).pop().unwrap();
    let Some(Content::Error(error)) = &last.content else { panic!("{last:?}") };
    assert_eq!((error.code.as_str(), error.retryable), ("DEADLINE_EXCEEDED", true));
    assert_eq!(last.finish_reason(), pb::FinishReason::Error);
}

#[tokio::test]
async fn a_refusal_is_readable_by_a_browser_and_nothing_else_is_in_the_body() {
    let mut function = demo().await;
    let status_of = |answer: &Answer| {
        assert_eq!(answer.status, 200);
        assert!(!answer.headers.contains_key("grpc-status"), "a header that a page can not read: {answer:?}");
        let (frames, trailers) = answer.frames();
        assert!(frames.is_empty());
        trailers
    };
    let blank = status_of(&function.answer(chat(" ")).await);
    assert_eq!(blank["grpc-status"], "3");
    assert!(blank["grpc-message"].contains("message") && blank.contains_key("grpc-status-details-bin"), "{blank:?}");
    for path in ["/agent.v1.AgentService/RetrieveMemory", "/agent.v1.MemoryService/AddMemories", "/", "/x"] {
        let unknown = status_of(&function.answer(event(path, GRPC_WEB, &ask("hello"))).await);
        assert_eq!(unknown["grpc-status"], "12", "{path}");
    }
    let broken = status_of(&function.answer(event(PATH, GRPC_WEB, &framed(b"\xff\xff"))).await);
    assert_eq!(broken["grpc-status"], "3");
    // A stage in front of the path is none of the service's.
    let staged = function.answer(event(&format!("/prod{PATH}"), GRPC_WEB, &ask("hello"))).await;
    assert_eq!(staged.frames().1["grpc-status"], "0");
}

#[tokio::test]
async fn an_answer_of_many_megabytes_arrives_whole() {
    let provider = FakeProvider::start().await;
    let mut function = with_provider(&provider).await;
    let piece = "0123456789abcdef".repeat(4096);
    let mut events = vec![delta(&piece); 95];
    events.push(finish("stop"));
    let events: Vec<&str> = events.iter().map(String::as_str).chain(["[DONE]"]).collect();
    provider.stream(&events).await;
    let answer = function.answer(chat("hello")).await;
    assert!(answer.body.len() > 12_000_000, "{}", answer.body.len());
    let (frames, trailers) = answer.frames();
    assert_eq!(trailers["grpc-status"], "0");
    let Some(Content::FullText(text)) = decoded(&frames).pop().unwrap().content else { panic!("no full text") };
    assert_eq!(text.len(), 95 * piece.len());
}

#[tokio::test]
async fn a_database_and_a_provider_that_hang_do_not_keep_a_function_from_its_first_event() {
    // Connections to it are made, but nobody says anything.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let (database, provider) = (format!("postgres://agent@{address}/agent"), format!("http://{address}/v1"));
    let variables = [
        ("AUTH", "none"),
        ("DATABASE_URL", database.as_str()),
        ("LLM_PROVIDER", "compatible"),
        ("LLM_API_BASE_URL", &provider),
        ("LLM_MODEL_NAME", "m"),
        ("EMBEDDING_PROVIDER", "hashed"),
        // Where they are kept, the first frame waits for the database.
        ("CONVERSATIONS", "off"),
    ];
    let mut function = Function::start(PROGRAM, &variables).await;
    function.invoke(chat("hello"), Duration::from_secs(30));
    // The first frame costs nothing either.
    assert!(matches!(function.next().await, Said::Head(_)));
    let mut bytes = Vec::new();
    while !String::from_utf8_lossy(&bytes).contains("\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}") {
        let Said::Chunk(chunk) = function.next().await else { panic!("the answer ended early") };
        bytes.extend(chunk);
    }
}

#[tokio::test]
async fn it_does_not_start_open_to_everyone_by_accident() {
    let runtime = ("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:9");
    for (variables, expected) in [
        (vec![runtime, ("LLM_API_KEY", "k")], "AUTH"),
        (vec![runtime, ("DATABASE_URL", "postgres://a@127.0.0.1/a")], "AUTH"),
        (vec![runtime, ("AUTH", "jwt")], "JWT_SECRET"),
        (vec![runtime, ("AUTH", "gateway")], "AUTH: is gateway"),
        (vec![runtime, ("JWT_SECRET", "s")], "AUTH: is not set"),
        (vec![runtime, ("AUTH", "none"), ("LLM_API_KEY", "ssm:/key")], "LLM_API_KEY"),
        (vec![], "cargo lambda watch"),
    ] {
        let (code, said) = refused(PROGRAM, &variables).await;
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(expected), "{expected} is not in: {said}");
    }
}

#[tokio::test]
async fn whatever_is_logged_it_is_no_event_no_token_and_no_text_of_a_user() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let provider = FakeProvider::start().await;
    let mut variables = provider.variables();
    let key = ("INTERNAL_API_KEY", "the-internal-key");
    variables.extend([("AUTH", "none"), ("EMBEDDING_PROVIDER", "hashed"), key, ("RUST_LOG", "trace")]);
    provider.refuse(404, "").await;
    let mut function = Function::start_with_log(PROGRAM, &variables, log.reopen().unwrap()).await;
    provider.stream(&[&delta("Pflaumenmus"), &finish("stop"), "[DONE]"]).await;
    let mut event = chat("Rhabarberkuchen");
    let encoded = event["body"].as_str().unwrap()[..12].to_owned();
    event["headers"]["x-internal-api-key"] = key.1.into();
    event["headers"]["authorization"] = "Bearer a-token".into();
    assert_eq!(function.answer(event).await.frames().1["grpc-status"], "0");
    function.terminate().await;
    function.ended().await;
    let logged = std::fs::read_to_string(log.path()).unwrap();
    assert!(logged.contains("StreamChat ended"), "{logged}");
    for private in ["Rhabarberkuchen", "Pflaumenmus", key.1, "a-token", "test-key", encoded.as_str()] {
        assert!(!logged.contains(private), "{private} is in:\n{logged}");
    }
}
