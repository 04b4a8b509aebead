//! The program under the Lambda runtime emulator: events, and the bytes of its responses.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

mod authentication;
mod events;
#[path = "../../../../tests/support/fake_provider.rs"]
#[expect(dead_code, reason = "not every crate uses all of it")]
mod fake_provider;
#[path = "../../../../tests/support/jwt.rs"]
mod jwt;
#[path = "../../../../tests/support/lambda_runtime.rs"]
mod lambda_runtime;
mod secrets;
mod shutdown;

use std::time::Duration;

use agent_service::proto::agent_v1::{self as pb, chat_response::Content};

use fake_provider::{FakeProvider, Latch, Step, delta, finish, head};
use lambda_runtime::{
    FunctionOutput, FunctionResponse, LambdaFunction, function_url_event, grpc_frame, run_to_failure,
};
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
    grpc_frame(&request.encode_to_vec())
}

fn chat(message: &str) -> serde_json::Value {
    function_url_event(PATH, GRPC_WEB, &ask(message))
}

fn decoded(frames: &[Vec<u8>]) -> Vec<pb::ChatResponse> {
    frames.iter().map(|frame| pb::ChatResponse::decode(frame.as_slice()).unwrap()).collect()
}

/// Demo mode without delays.
async fn start_demo() -> LambdaFunction {
    LambdaFunction::start(PROGRAM, &[("DEMO_THINKING_DELAY_MS", "0"), ("DEMO_CHUNK_DELAY_MS", "0")]).await
}

async fn start_with_provider(provider: &FakeProvider) -> LambdaFunction {
    let mut variables = provider.variables();
    variables.extend([("AUTH", "none"), ("EMBEDDING_PROVIDER", "hashed")]);
    // The request that warms up the connection at startup.
    provider.respond(404, "").await;
    LambdaFunction::start(PROGRAM, &variables).await
}

#[tokio::test]
async fn demo_mode_answers_without_memory_when_unconfigured() {
    let mut function = start_demo().await;
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
        assert_eq!(
            (state(&frames[0]), state(&frames[1])),
            ("THINKING", "GENERATING"),
            "without a database there is no search"
        );
        assert_eq!(frames.last().unwrap().finish_reason(), pb::FinishReason::Stop);
        assert!(matches!(frames.last().unwrap().content, Some(Content::FullText(_))));
    }
}

#[tokio::test]
async fn frames_are_streamed_while_answer_is_generated() {
    let provider = FakeProvider::start().await;
    let mut function = start_with_provider(&provider).await;
    let first = format!("data: {}\n\n", delta("first"));
    provider
        .script(vec![Step::Send(head(200, "text/event-stream")), Step::Send(first.into_bytes()), Step::AwaitDisconnect])
        .await;
    function.invoke(chat("hello"), Duration::from_secs(5));
    let mut bytes = Vec::new();
    let FunctionOutput::Head(headers) = function.next().await else { panic!("no response head") };
    assert_eq!(headers["lambda-runtime-function-response-mode"], "streaming");
    let mut chunks = 0;
    while !String::from_utf8_lossy(&bytes).contains("first") {
        let FunctionOutput::Chunk(chunk) = function.next().await else { panic!("the response ended early") };
        bytes.extend(chunk);
        chunks += 1;
    }
    assert!(chunks >= 3, "prelude, status and delta were not sent one by one: {chunks}");
    // The deadline of the function passes first: the stream ends with a retryable error.
    let answer = function.rest(bytes).await;
    let (frames, trailers) = answer.frames();
    assert_eq!(trailers["grpc-status"], "0");
    let last = decoded(&frames).pop().unwrap();
    let Some(Content::Error(error)) = &last.content else { panic!("{last:?}") };
    assert_eq!((error.code.as_str(), error.retryable), ("DEADLINE_EXCEEDED", true));
    assert_eq!(last.finish_reason(), pb::FinishReason::Error);
}

#[tokio::test]
async fn silent_chat_repeats_its_last_status() {
    let provider = FakeProvider::start().await;
    let mut variables = provider.variables();
    variables.extend([("AUTH", "none"), ("EMBEDDING_PROVIDER", "hashed"), ("STATUS_INTERVAL_SECONDS", "0.02")]);
    provider.respond(404, "").await;
    let mut function = LambdaFunction::start(PROGRAM, &variables).await;
    let (release, released) = tokio::sync::oneshot::channel();
    let answer = format!("data: {}\n\ndata: {}\n\n", delta("late"), finish("stop"));
    provider
        .script(vec![
            Step::Send(head(200, "text/event-stream")),
            Step::AwaitLatch(Latch::new(released)),
            Step::Send(answer.into_bytes()),
        ])
        .await;
    function.invoke(chat("hello"), Duration::from_secs(30));
    assert!(matches!(function.next().await, FunctionOutput::Head(_)));
    let mut bytes = Vec::new();
    while String::from_utf8_lossy(&bytes).matches("Writing the answer").count() < 4 {
        let FunctionOutput::Chunk(chunk) = function.next().await else { panic!("the response ended early") };
        bytes.extend(chunk);
    }
    release.send(()).unwrap();
    let (frames, trailers) = function.rest(bytes).await.frames();
    assert_eq!(trailers["grpc-status"], "0");
    let frames = decoded(&frames);
    assert!(frames.windows(2).all(|pair| pair[0].response_id < pair[1].response_id));
    assert!(matches!(&frames.last().unwrap().content, Some(Content::FullText(text)) if text == "late"));
}

#[tokio::test]
async fn grpc_timeout_ends_a_chat_with_an_error_frame() {
    let provider = FakeProvider::start().await;
    let mut function = start_with_provider(&provider).await;
    provider.script(vec![Step::Send(head(200, "text/event-stream")), Step::AwaitDisconnect]).await;
    let mut event = chat("hello");
    event["headers"]["grpc-timeout"] = "700m".into();
    let (frames, trailers) = function.answer(event).await.frames();
    assert_eq!(trailers["grpc-status"], "0");
    let last = decoded(&frames).pop().unwrap();
    assert!(matches!(&last.content, Some(Content::Error(error)) if error.code == "DEADLINE_EXCEEDED"), "{last:?}");
}

#[tokio::test]
async fn rejection_is_sent_as_trailers_in_the_body() {
    let mut function = start_demo().await;
    let status_of = |answer: &FunctionResponse| {
        assert_eq!(answer.status, 200);
        assert!(!answer.headers.contains_key("grpc-status"), "browsers cannot read this header: {answer:?}");
        let (frames, trailers) = answer.frames();
        assert!(frames.is_empty());
        trailers
    };
    let blank = status_of(&function.answer(chat(" ")).await);
    assert_eq!(blank["grpc-status"], "3");
    assert!(blank["grpc-message"].contains("message") && blank.contains_key("grpc-status-details-bin"), "{blank:?}");
    for path in ["/agent.v1.AgentService/RetrieveMemory", "/agent.v1.MemoryService/AddMemories", "/", "/x"] {
        let unknown = status_of(&function.answer(function_url_event(path, GRPC_WEB, &ask("hello"))).await);
        assert_eq!(unknown["grpc-status"], "12", "{path}");
    }
    let broken = status_of(&function.answer(function_url_event(PATH, GRPC_WEB, &grpc_frame(b"\xff\xff"))).await);
    assert_eq!(broken["grpc-status"], "3");
    // A stage prefix of API Gateway is ignored.
    let staged = function.answer(function_url_event(&format!("/prod{PATH}"), GRPC_WEB, &ask("hello"))).await;
    assert_eq!(staged.frames().1["grpc-status"], "0");
}

#[tokio::test]
async fn refusal_is_an_error_frame_if_so_configured() {
    let variables = [("CHAT_REFUSALS", "frames"), ("DEMO_THINKING_DELAY_MS", "0"), ("DEMO_CHUNK_DELAY_MS", "0")];
    let mut function = LambdaFunction::start(PROGRAM, &variables).await;
    let (frames, trailers) = function.answer(chat(" ")).await.frames();
    assert_eq!(trailers["grpc-status"], "0");
    let [frame] = decoded(&frames).try_into().unwrap();
    let Some(Content::Error(error)) = &frame.content else { panic!("{frame:?}") };
    assert_eq!((error.code.as_str(), error.details["field"].as_str()), ("INVALID_ARGUMENT", "message"));
    assert_eq!(frame.finish_reason(), pb::FinishReason::Error);
}

#[tokio::test]
async fn answer_of_many_megabytes_arrives_whole() {
    let provider = FakeProvider::start().await;
    let mut function = start_with_provider(&provider).await;
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
async fn hanging_database_and_provider_do_not_delay_first_event() {
    // Accepts connections and never answers.
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
        // With persistence the first frame waits for the database.
        ("CONVERSATIONS", "off"),
    ];
    let mut function = LambdaFunction::start(PROGRAM, &variables).await;
    function.invoke(chat("hello"), Duration::from_secs(30));
    // The first frame needs neither.
    assert!(matches!(function.next().await, FunctionOutput::Head(_)));
    let mut bytes = Vec::new();
    while !String::from_utf8_lossy(&bytes).contains("\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}") {
        let FunctionOutput::Chunk(chunk) = function.next().await else { panic!("the response ended early") };
        bytes.extend(chunk);
    }
}

#[tokio::test]
async fn function_does_not_start_without_explicit_auth() {
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
        let (code, stderr) = run_to_failure(PROGRAM, &variables).await;
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains(expected), "{expected} is not in: {stderr}");
    }
}

#[tokio::test]
async fn trace_log_contains_no_event_token_or_user_text() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let provider = FakeProvider::start().await;
    let mut variables = provider.variables();
    let key = ("INTERNAL_API_KEY", "the-internal-key");
    variables.extend([("AUTH", "none"), ("EMBEDDING_PROVIDER", "hashed"), key, ("RUST_LOG", "trace")]);
    provider.respond(404, "").await;
    let mut function = LambdaFunction::start_with_log(PROGRAM, &variables, log.reopen().unwrap()).await;
    provider.stream(&[&delta("Pflaumenmus"), &finish("stop"), "[DONE]"]).await;
    let mut event = chat("Rhabarberkuchen");
    let encoded = event["body"].as_str().unwrap()[..12].to_owned();
    event["headers"]["x-internal-api-key"] = key.1.into();
    event["headers"]["authorization"] = "Bearer a-token".into();
    assert_eq!(function.answer(event).await.frames().1["grpc-status"], "0");
    function.terminate().await;
    function.wait().await;
    let logged = std::fs::read_to_string(log.path()).unwrap();
    assert!(logged.contains("StreamChat ended"), "{logged}");
    for private in ["Rhabarberkuchen", "Pflaumenmus", key.1, "a-token", "test-key", encoded.as_str()] {
        assert!(!logged.contains(private), "{private} is in:\n{logged}");
    }
}
