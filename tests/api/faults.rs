//! Faults of a provider and their outcomes, over real sockets. Timeouts are fractions of a second; tests assert outcomes, never
//! durations.

use std::time::Duration;

use agent_service::proto::agent_v1 as pb;

use crate::{
    fake_provider::{
        FakeProvider, Step, delta, events, finish, golden_stream, head, http_response, partial_answer, stream,
        stream_head, usage,
    },
    harness::{
        CLOSED_ADDRESS, TestServer, ask, error_of, joined_deltas, outline, run_turn, usage_of, without_retrieval,
    },
};

/// A server with three attempts, short timeouts and no circuit breaker.
pub async fn start_with_retries(provider: &FakeProvider, more: &[(&str, &str)]) -> TestServer {
    let mut variables = provider.variables();
    variables.extend([
        ("LLM_MAX_ATTEMPTS", "3"),
        ("LLM_FIRST_TOKEN_TIMEOUT_SECONDS", "0.3"),
        ("LLM_IDLE_TIMEOUT_SECONDS", "0.3"),
        ("LLM_BREAKER_FAILURES", "0"),
    ]);
    variables.extend(more.iter().copied());
    TestServer::start(&variables).await
}

/// The text of a turn, or the code of its error and whether it is retryable.
pub async fn outcome(server: &TestServer) -> Result<String, (String, bool)> {
    let frames = run_turn(server).await;
    if frames.last().unwrap().finish_reason() == pb::FinishReason::Error {
        let error = error_of(&frames);
        return Err((error.code.clone(), error.retryable));
    }
    Ok(joined_deltas(&frames))
}

pub fn good_answer() -> Vec<Step> {
    stream(&[&delta("good"), &finish("stop"), &usage(3, 1), "[DONE]"])
}

pub fn followed_by(mut steps: Vec<Step>, step: Step) -> Vec<Step> {
    steps.push(step);
    steps
}

fn html_page(status: u16) -> Vec<Step> {
    let mut bytes = head(status, "text/html; charset=utf-8");
    bytes.extend_from_slice(b"<html><body>Welcome</body></html>");
    vec![Step::Send(bytes)]
}

#[tokio::test]
async fn transient_fault_is_retried_to_one_complete_answer() {
    let mut provider = FakeProvider::start().await;
    let server = start_with_retries(&provider, &[]).await;
    let empty = || stream(&[&finish("stop"), "[DONE]"]);
    let reasoning = r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#;
    for (fault, steps) in [
        ("500", http_response(500, "", "{}")),
        ("502 with a web page", html_page(502)),
        ("503", http_response(503, "", "")),
        ("504", http_response(504, "", "")),
        ("529", http_response(529, "", r#"{"error":{"type":"overloaded_error"}}"#)),
        ("408", http_response(408, "", "{}")),
        ("429", http_response(429, "", r#"{"error":{"code":"rate_limit_exceeded"}}"#)),
        ("429 with a wait", http_response(429, "retry-after: 0.2\r\n", "{}")),
        ("a web page instead of an answer", html_page(200)),
        ("no JSON", stream(&["{not json", "[DONE]"])),
        ("an error in the stream", stream(&[r#"{"error":{"message":"x","type":"server_error"}}"#])),
        ("an error as bare text", stream(&[r#"{"error":"overloaded"}"#])),
        ("a closed connection", vec![]),
        ("no response head", vec![Step::AwaitDisconnect]),
        ("no first token", followed_by(vec![stream_head()], Step::AwaitDisconnect)),
        (
            "comments alone",
            followed_by(vec![stream_head()], Step::Drip(b": ping\n\n".to_vec(), Duration::from_millis(5))),
        ),
        ("a reset before the first token", followed_by(vec![stream_head()], Step::Reset)),
        ("an end before the first token", vec![stream_head()]),
        ("an empty answer", empty()),
        ("reasoning without an answer", stream(&[reasoning, &finish("stop"), "[DONE]"])),
        ("reasoning, then a cut", stream(&[reasoning])),
        (
            "a cut after the start of a call",
            stream(&[r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"c"}]}}]}"#]),
        ),
        ("an endless event", followed_by(vec![stream_head()], Step::Repeat(vec![b'x'; 1 << 20], 100))),
    ] {
        provider.script(steps).await;
        provider.script(good_answer()).await;
        assert_eq!(outcome(&server).await, Ok("good".to_owned()), "{fault}");
        assert_eq!(provider.take_requests().len(), 2, "{fault}");
    }
}

#[tokio::test]
async fn permanent_fault_is_not_retried_and_has_its_code() {
    let mut provider = FakeProvider::start().await;
    let server = start_with_retries(&provider, &[]).await;
    for (status, body, code) in [
        (401, r#"{"error":{"code":"invalid_api_key"}}"#, "PROVIDER_UNAUTHORIZED"),
        (403, "{}", "PROVIDER_UNAUTHORIZED"),
        (402, r#"{"error":{"message":"Insufficient Balance"}}"#, "PROVIDER_QUOTA_EXHAUSTED"),
        (429, r#"{"error":{"code":"insufficient_quota"}}"#, "PROVIDER_QUOTA_EXHAUSTED"),
        (404, r#"{"error":{"code":"model_not_found"}}"#, "PROVIDER_MODEL_NOT_FOUND"),
        (404, "404 page not found", "PROVIDER_ADDRESS_NOT_FOUND"),
        (307, "", "PROVIDER_ADDRESS_NOT_FOUND"),
        (400, r#"{"error":{"code":"context_length_exceeded"}}"#, "PROVIDER_CONTEXT_LENGTH"),
        (400, r#"{"error":{"code":"content_filter"}}"#, "PROVIDER_CONTENT_FILTER"),
        (400, r#"{"error":{"message":"temperature is wrong"}}"#, "PROVIDER_REJECTED"),
    ] {
        provider.script(http_response(status, "", body)).await;
        assert_eq!(outcome(&server).await, Err((code.to_owned(), false)), "{status} {body}");
        assert_eq!(provider.take_requests().len(), 1, "{status} {body}");
    }
}

#[tokio::test]
async fn fault_after_first_delta_is_an_error_without_retry() {
    let mut provider = FakeProvider::start().await;
    let server = start_with_retries(&provider, &[("LLM_TOTAL_TIMEOUT_SECONDS", "3")]).await;
    let half = |step| followed_by(partial_answer("half"), step);
    let event = |json: &str| events(&[json]);
    for (fault, steps, code) in [
        ("a stall", half(Step::AwaitDisconnect), "PROVIDER_TIMEOUT"),
        ("a byte at a time", half(Step::Drip(b"x".to_vec(), Duration::from_millis(5))), "PROVIDER_TIMEOUT"),
        ("comments alone", half(Step::Drip(b": \n\n".to_vec(), Duration::from_millis(5))), "PROVIDER_TIMEOUT"),
        ("a reset", half(Step::Reset), "PROVIDER_STREAM_CUT"),
        ("an end", partial_answer("half"), "PROVIDER_STREAM_CUT"),
        ("an empty finish reason", half(event(&finish(""))), "PROVIDER_STREAM_CUT"),
        ("a model that was unloaded", half(event(&finish("insufficient_system_resource"))), "PROVIDER_STREAM_CUT"),
        ("an error", half(event(r#"{"error":{"code":500,"message":"x"}}"#)), "PROVIDER_UNAVAILABLE"),
        ("no JSON", half(event("{")), "PROVIDER_MALFORMED"),
        ("an endless event", half(Step::Repeat(vec![b'x'; 1 << 20], 100)), "PROVIDER_MALFORMED"),
        (
            "deltas without end",
            half(Step::Drip(format!("data: {}\n\n", delta("more")).into_bytes(), Duration::from_micros(1))),
            "PROVIDER_TIMEOUT",
        ),
    ] {
        provider.script(steps).await;
        let frames = run_turn(&server).await;
        assert_eq!((error_of(&frames).code.as_str(), error_of(&frames).retryable), (code, true), "{fault}");
        assert_eq!(outline(&frames), ["THINKING", "GENERATING", "delta", "usage", "error"], "{fault}");
        assert_eq!(usage_of(&frames).1["usage_source"], "estimated", "{fault}");
        assert_eq!(provider.take_requests().len(), 1, "{fault}");
    }
}

#[tokio::test]
async fn answer_is_truncated_at_the_token_limit() {
    let mut provider = FakeProvider::start().await;
    let server = start_with_retries(&provider, &[("LLM_MAX_TOKENS", "50")]).await;
    let more = format!("data: {}\n\n", delta("more and more and more "));
    provider.script(followed_by(partial_answer("first"), Step::Repeat(more.into_bytes(), 1_000_000))).await;
    let frames = run_turn(&server).await;
    assert_eq!(frames.last().unwrap().finish_reason(), pb::FinishReason::Length);
    assert!((800..1000).contains(&joined_deltas(&frames).len()));
    assert_eq!(provider.take_requests()[0].body["max_tokens"], 50, "max_tokens is sent to the provider");
    provider.script(good_answer()).await;
    let config = pb::ChatConfig { max_tokens: Some(10), ..Default::default() };
    let request = without_retrieval(pb::ChatRequest { config: Some(config), ..ask("hi") });
    server.chat(request).await.unwrap();
    assert_eq!(provider.take_requests()[0].body["max_tokens"], 10, "the smaller limit applies");
}

#[tokio::test]
async fn stream_end_variants_complete_the_answer() {
    let provider = FakeProvider::start().await;
    let server = start_with_retries(&provider, &[]).await;
    let answer = r#"{"choices":[{"message":{"role":"assistant","content":"good"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1}}"#;
    let mut json = head(200, "application/json; charset=utf-8");
    json.extend_from_slice(answer.as_bytes());
    let cumulative = r#"{"choices":[{"delta":{"content":"good"}}],"usage":{"prompt_tokens":3,"completion_tokens":1}}"#;
    let untyped =
        format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\ndata: {}\n\ndata: {}\n\n", delta("good"), finish("stop"));
    for (case, steps) in [
        ("no [DONE]", stream(&[&delta("good"), &finish("stop"), &usage(3, 1)])),
        ("no usage", stream(&[&delta("good"), &finish("stop"), "[DONE]"])),
        ("an empty usage", stream(&[&delta("good"), &finish("stop"), r#"{"choices":[],"usage":{}}"#, "[DONE]"])),
        ("no choices", stream(&[&delta("good"), &finish("stop"), r#"{"usage":null}"#, "[DONE]"])),
        ("no finish reason, but [DONE]", stream(&[&delta("good"), "[DONE]"])),
        ("an unknown finish reason", stream(&[&delta("good"), &finish("eos")])),
        ("usage in every chunk", stream(&[cumulative, &finish("stop"), "[DONE]"])),
        ("no streaming at all", vec![Step::Send(json)]),
        ("no content type", vec![Step::Send(untyped.into_bytes())]),
        (
            "a connection that stays open",
            followed_by(stream(&[&delta("good"), &finish("stop"), &usage(3, 1)]), Step::AwaitDisconnect),
        ),
    ] {
        provider.script(steps).await;
        assert_eq!(outcome(&server).await, Ok("good".to_owned()), "{case}");
    }
}

#[tokio::test]
async fn unreachable_provider_error_names_the_problem() {
    // Answers a TLS handshake in plain text.
    let plain = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plain_address = plain.local_addr().unwrap();
    let accepting = tokio::spawn(async move {
        loop {
            let (mut socket, _) = plain.accept().await.unwrap();
            let _ = tokio::io::AsyncWriteExt::write_all(&mut socket, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    // Labels are limited to 63 characters (RFC 1035), so resolution fails without a DNS query.
    let (refusing, unknown_host, without_tls) = (
        format!("http://{CLOSED_ADDRESS}/v1"),
        format!("http://{}.invalid/v1", "x".repeat(70)),
        format!("https://{plain_address}/v1"),
    );
    for (url, problem) in [(&refusing, "connection_refused"), (&unknown_host, "dns"), (&without_tls, "tls")] {
        let variables = [
            ("LLM_PROVIDER", "compatible"),
            ("LLM_API_BASE_URL", url.as_str()),
            ("LLM_MODEL_NAME", "m"),
            ("LLM_MAX_ATTEMPTS", "2"),
        ];
        let server = TestServer::start(&variables).await;
        let frames = run_turn(&server).await;
        let error = error_of(&frames);
        assert_eq!((error.code.as_str(), error.retryable), ("PROVIDER_UNAVAILABLE", true), "{url}");
        assert_eq!(error.details["problem"], problem, "{url}: {error:?}");
        assert_eq!(error.details["check"], "LLM_API_BASE_URL");
    }
    accepting.abort();
}

#[tokio::test]
async fn error_names_provider_and_setting_without_secret() {
    let provider = FakeProvider::start().await;
    let server = start_with_retries(&provider, &[]).await;
    for (status, body, check) in [
        (
            401,
            r#"{"error":{"message":"Incorrect API key provided: test-key","code":"invalid_api_key"}}"#,
            "LLM_API_KEY",
        ),
        (404, r#"{"detail":"Not Found"}"#, "LLM_API_BASE_URL"),
        (404, r#"{"error":{"message":"The model `test-model` does not exist."}}"#, "LLM_MODEL_NAME, LLM_API_BASE_URL"),
    ] {
        provider.script(http_response(status, "", body)).await;
        let frames = run_turn(&server).await;
        let error = error_of(&frames);
        assert_eq!(error.details["check"], check);
        assert_eq!(error.details["provider_status"], status.to_string());
        assert_eq!((&*error.details["provider"], &*error.details["model"]), ("compatible", "test-model"));
        assert!(!format!("{error:?}").contains("test-key"), "{error:?}");
    }
    let doubled_path = provider.base_url.clone() + "/v1";
    let server = start_with_retries(&provider, &[("LLM_API_BASE_URL", &doubled_path)]).await;
    provider.script(http_response(404, "", "{}")).await;
    assert!(error_of(&run_turn(&server).await).details["address"].contains("twice"));
}

#[tokio::test]
async fn total_timeout_bounds_all_attempts() {
    let mut provider = FakeProvider::start().await;
    let more = [("LLM_TOTAL_TIMEOUT_SECONDS", "0.4"), ("LLM_MAX_ATTEMPTS", "10")];
    let server = start_with_retries(&provider, &more).await;
    provider.script_all(vec![Step::AwaitDisconnect]).await;
    assert_eq!(outcome(&server).await, Err(("PROVIDER_TIMEOUT".to_owned(), true)));
    assert!((1..=3).contains(&provider.take_requests().len()));
    provider.script_all(http_response(429, "retry-after: 15\r\n", "")).await;
    let frames = run_turn(&server).await;
    assert_eq!(error_of(&frames).details["retry_after_ms"], "15000", "retry_after_ms is passed on");
}

#[tokio::test]
async fn documented_provider_streams_yield_text_and_usage() {
    let provider = FakeProvider::start().await;
    let server = start_with_retries(&provider, &[]).await;
    for (file, text, tokens, cached, reasoning) in [
        ("openai", "Hello!", (19, 10), Some("4"), Some("3")),
        ("dashscope", "我是通义千问。", (22, 17), None, None),
        ("dashscope_thinking", "9.9更大", (22, 17), None, None),
        ("deepseek", "Hello! How can I help?", (17, 9), Some("5"), None),
    ] {
        provider.script(golden_stream(file)).await;
        let frames = run_turn(&server).await;
        assert_eq!(joined_deltas(&frames), text, "{file}");
        let (usage, metadata) = usage_of(&frames);
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), tokens, "{file}");
        assert_eq!(metadata["usage_source"], "provider");
        assert_eq!(metadata.get("cached_tokens").map(String::as_str), cached, "{file}");
        assert_eq!(metadata.get("reasoning_tokens").map(String::as_str), reasoning, "{file}");
    }
}
