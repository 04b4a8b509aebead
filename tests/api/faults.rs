//! Every fault of a provider has one right outcome. Real sockets, and limits of fractions of a second where waiting is
//! involved: what is asserted is what came, never when.

use std::time::Duration;

use agent_service::proto::agent_v1 as pb;

use crate::{
    fake_provider::{FakeProvider, Step, delta, finish, head, refusal, stream, usage},
    harness::{TestServer, ask, check_contract, error_of, joined_deltas, outline, usage_of},
};

/// A server that is patient with its provider, for a short while.
async fn patient(provider: &FakeProvider, more: &[(&str, &str)]) -> TestServer {
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

async fn turn(server: &TestServer) -> Vec<pb::ChatResponse> {
    let request = pb::ChatRequest { use_document_context: Some(false), ..ask("hi") };
    let frames = server.chat(request).await.unwrap();
    check_contract(&frames);
    frames
}

/// What a turn comes to: its text, or the code of its error and whether trying again helps.
async fn outcome(server: &TestServer) -> Result<String, (String, bool)> {
    let frames = turn(server).await;
    if frames.last().unwrap().finish_reason() == pb::FinishReason::Error {
        let error = error_of(&frames);
        return Err((error.code.clone(), error.retryable));
    }
    Ok(joined_deltas(&frames))
}

fn good() -> Vec<Step> {
    stream(&[&delta("good"), &finish("stop"), &usage(3, 1), "[DONE]"])
}

fn begun(text: &str) -> Vec<Step> {
    let mut bytes = head(200, "text/event-stream");
    if !text.is_empty() {
        bytes.extend(format!("data: {}\n\n", delta(text)).into_bytes());
    }
    vec![Step::Send(bytes)]
}

fn then(mut steps: Vec<Step>, step: Step) -> Vec<Step> {
    steps.push(step);
    steps
}

fn page(status: u16) -> Vec<Step> {
    let mut bytes = head(status, "text/html; charset=utf-8");
    bytes.extend_from_slice(b"<html><body>Welcome</body></html>");
    vec![Step::Send(bytes)]
}

#[tokio::test]
async fn what_passes_is_tried_again_and_the_user_sees_one_whole_answer() {
    let mut provider = FakeProvider::start().await;
    let server = patient(&provider, &[]).await;
    let empty = || stream(&[&finish("stop"), "[DONE]"]);
    let thought = r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#;
    for (fault, steps) in [
        ("500", refusal(500, "", "{}")),
        ("502 with a web page", page(502)),
        ("503", refusal(503, "", "")),
        ("504", refusal(504, "", "")),
        ("529", refusal(529, "", r#"{"error":{"type":"overloaded_error"}}"#)),
        ("408", refusal(408, "", "{}")),
        ("429", refusal(429, "", r#"{"error":{"code":"rate_limit_exceeded"}}"#)),
        ("429 with a wait", refusal(429, "retry-after: 0.2\r\n", "{}")),
        ("a web page instead of an answer", page(200)),
        ("no JSON", stream(&["{not json", "[DONE]"])),
        ("an error in the stream", stream(&[r#"{"error":{"message":"x","type":"server_error"}}"#])),
        ("an error as bare text", stream(&[r#"{"error":"overloaded"}"#])),
        ("no answer at all", vec![]),
        ("a header that never comes", vec![Step::AwaitGone]),
        ("a first token that never comes", then(begun(""), Step::AwaitGone)),
        ("comments alone", then(begun(""), Step::Drip(b": ping\n\n".to_vec(), Duration::from_millis(5)))),
        ("a reset before the first token", then(begun(""), Step::Reset)),
        ("an end before the first token", begun("")),
        ("an empty answer", empty()),
        ("thought alone", stream(&[thought, &finish("stop"), "[DONE]"])),
        ("thought, then a cut", stream(&[thought])),
        (
            "a cut after the start of a call",
            stream(&[r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"c"}]}}]}"#]),
        ),
        ("an event without end", then(begun(""), Step::Repeat(vec![b'x'; 1 << 20], 100))),
    ] {
        provider.script(steps).await;
        provider.script(good()).await;
        assert_eq!(outcome(&server).await, Ok("good".to_owned()), "{fault}");
        assert_eq!(provider.received().len(), 2, "{fault}");
    }
}

#[tokio::test]
async fn what_does_not_pass_is_asked_once_and_told_by_its_own_code() {
    let mut provider = FakeProvider::start().await;
    let server = patient(&provider, &[]).await;
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
        provider.script(refusal(status, "", body)).await;
        assert_eq!(outcome(&server).await, Err((code.to_owned(), false)), "{status} {body}");
        assert_eq!(provider.received().len(), 1, "{status} {body}");
    }
}

#[tokio::test]
async fn after_the_first_delta_nothing_is_asked_again_and_nothing_cut_is_called_complete() {
    let mut provider = FakeProvider::start().await;
    let server = patient(&provider, &[("LLM_TOTAL_TIMEOUT_SECONDS", "3")]).await;
    let half = |step| then(begun("half"), step);
    let event = |json: &str| Step::Send(format!("data: {json}\n\n").into_bytes());
    for (fault, steps, code) in [
        ("a stall", half(Step::AwaitGone), "PROVIDER_TIMEOUT"),
        ("a byte at a time", half(Step::Drip(b"x".to_vec(), Duration::from_millis(5))), "PROVIDER_TIMEOUT"),
        ("comments alone", half(Step::Drip(b": \n\n".to_vec(), Duration::from_millis(5))), "PROVIDER_TIMEOUT"),
        ("a reset", half(Step::Reset), "PROVIDER_STREAM_CUT"),
        ("an end", begun("half"), "PROVIDER_STREAM_CUT"),
        ("an empty reason and an end", half(event(&finish(""))), "PROVIDER_STREAM_CUT"),
        ("a model that was taken away", half(event(&finish("insufficient_system_resource"))), "PROVIDER_STREAM_CUT"),
        ("an error", half(event(r#"{"error":{"code":500,"message":"x"}}"#)), "PROVIDER_UNAVAILABLE"),
        ("no JSON", half(event("{")), "PROVIDER_MALFORMED"),
        ("an event without end", half(Step::Repeat(vec![b'x'; 1 << 20], 100)), "PROVIDER_MALFORMED"),
        (
            "deltas without end",
            half(Step::Drip(format!("data: {}\n\n", delta("more")).into_bytes(), Duration::from_micros(1))),
            "PROVIDER_TIMEOUT",
        ),
    ] {
        provider.script(steps).await;
        let frames = turn(&server).await;
        assert_eq!((error_of(&frames).code.as_str(), error_of(&frames).retryable), (code, true), "{fault}");
        assert_eq!(outline(&frames), ["THINKING", "GENERATING", "delta", "usage", "error"], "{fault}");
        assert_eq!(usage_of(&frames).1["usage_source"], "estimated", "{fault}");
        assert_eq!(provider.received().len(), 1, "{fault}");
    }
}

#[tokio::test]
async fn a_flood_of_deltas_ends_at_the_limit_of_tokens_and_says_so() {
    let mut provider = FakeProvider::start().await;
    let server = patient(&provider, &[("LLM_MAX_TOKENS", "50")]).await;
    let more = format!("data: {}\n\n", delta("more and more and more "));
    provider.script(then(begun("first"), Step::Repeat(more.into_bytes(), 1_000_000))).await;
    let frames = turn(&server).await;
    assert_eq!(frames.last().unwrap().finish_reason(), pb::FinishReason::Length);
    assert!((800..1000).contains(&joined_deltas(&frames).len()));
    assert_eq!(provider.received()[0].body["max_tokens"], 50, "a provider that listens needs no stopping");
    provider.script(good()).await;
    let config = pb::ChatConfig { max_tokens: Some(10), ..Default::default() };
    let request = pb::ChatRequest { config: Some(config), use_document_context: Some(false), ..ask("hi") };
    server.chat(request).await.unwrap();
    assert_eq!(provider.received()[0].body["max_tokens"], 10, "the smaller one counts");
}

#[tokio::test]
async fn what_servers_do_to_the_end_of_a_stream_makes_no_difference() {
    let provider = FakeProvider::start().await;
    let server = patient(&provider, &[]).await;
    let whole = r#"{"choices":[{"message":{"role":"assistant","content":"good"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1}}"#;
    let mut json = head(200, "application/json; charset=utf-8");
    json.extend_from_slice(whole.as_bytes());
    let cumulative = r#"{"choices":[{"delta":{"content":"good"}}],"usage":{"prompt_tokens":3,"completion_tokens":1}}"#;
    let untyped =
        format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\ndata: {}\n\ndata: {}\n\n", delta("good"), finish("stop"));
    for (way, steps) in [
        ("no [DONE]", stream(&[&delta("good"), &finish("stop"), &usage(3, 1)])),
        ("no usage", stream(&[&delta("good"), &finish("stop"), "[DONE]"])),
        ("an empty usage", stream(&[&delta("good"), &finish("stop"), r#"{"choices":[],"usage":{}}"#, "[DONE]"])),
        ("no choices", stream(&[&delta("good"), &finish("stop"), r#"{"usage":null}"#, "[DONE]"])),
        ("no reason, but [DONE]", stream(&[&delta("good"), "[DONE]"])),
        ("an unheard-of reason", stream(&[&delta("good"), &finish("eos")])),
        ("usage in every chunk", stream(&[cumulative, &finish("stop"), "[DONE]"])),
        ("no streaming at all", vec![Step::Send(json)]),
        ("no content type", vec![Step::Send(untyped.into_bytes())]),
        (
            "a connection that stays open",
            then(stream(&[&delta("good"), &finish("stop"), &usage(3, 1)]), Step::AwaitGone),
        ),
    ] {
        provider.script(steps).await;
        assert_eq!(outcome(&server).await, Ok("good".to_owned()), "{way}");
    }
}

#[tokio::test]
async fn a_provider_that_can_not_be_reached_is_told_by_what_is_in_the_way() {
    let free = "127.0.0.1:1";
    // Speaks before it is spoken to, and no TLS.
    let plain = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plain_address = plain.local_addr().unwrap();
    let speaking = tokio::spawn(async move {
        loop {
            let (mut socket, _) = plain.accept().await.unwrap();
            let _ = tokio::io::AsyncWriteExt::write_all(&mut socket, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    // A label of a host name has 63 characters at most, so that nobody has to be asked for this one.
    let (nobody, no_name, no_tls) = (
        format!("http://{free}/v1"),
        format!("http://{}.invalid/v1", "x".repeat(70)),
        format!("https://{plain_address}/v1"),
    );
    for (url, problem) in [(&nobody, "connection_refused"), (&no_name, "dns"), (&no_tls, "tls")] {
        let variables = [
            ("LLM_PROVIDER", "compatible"),
            ("LLM_API_BASE_URL", url.as_str()),
            ("LLM_MODEL_NAME", "m"),
            ("LLM_MAX_ATTEMPTS", "2"),
        ];
        let server = TestServer::start(&variables).await;
        let frames = turn(&server).await;
        let error = error_of(&frames);
        assert_eq!((error.code.as_str(), error.retryable), ("PROVIDER_UNAVAILABLE", true), "{url}");
        assert_eq!(error.details["problem"], problem, "{url}: {error:?}");
        assert_eq!(error.details["check"], "LLM_API_BASE_URL");
    }
    speaking.abort();
}

#[tokio::test]
async fn an_error_says_who_failed_and_what_to_check_without_a_secret() {
    let provider = FakeProvider::start().await;
    let server = patient(&provider, &[]).await;
    for (status, body, check) in [
        (
            401,
            r#"{"error":{"message":"Incorrect API key provided: test-key","code":"invalid_api_key"}}"#,
            "LLM_API_KEY",
        ),
        (404, r#"{"detail":"Not Found"}"#, "LLM_API_BASE_URL"),
        (404, r#"{"error":{"message":"The model `test-model` does not exist."}}"#, "LLM_MODEL_NAME, LLM_API_BASE_URL"),
    ] {
        provider.script(refusal(status, "", body)).await;
        let frames = turn(&server).await;
        let error = error_of(&frames);
        assert_eq!(error.details["check"], check);
        assert_eq!(error.details["provider_status"], status.to_string());
        assert_eq!((&*error.details["provider"], &*error.details["model"]), ("compatible", "test-model"));
        assert!(!format!("{error:?}").contains("test-key"), "{error:?}");
    }
    let doubled = provider.base_url.clone() + "/v1";
    let server = patient(&provider, &[("LLM_API_BASE_URL", &doubled)]).await;
    provider.script(refusal(404, "", "{}")).await;
    assert!(error_of(&turn(&server).await).details["address"].contains("twice"));
}

#[tokio::test]
async fn where_the_first_model_fails_the_next_one_answers() {
    let (mut first, mut second) = (FakeProvider::start().await, FakeProvider::start().await);
    let fallbacks = serde_json::json!([{"model": "second-model", "base_url": second.base_url}]).to_string();
    let server = patient(&first, &[("LLM_FALLBACKS", &fallbacks)]).await;
    for (fault, steps, asked) in [
        ("a refused key", refusal(401, "", "{}"), 1),
        ("an unknown model", refusal(404, "", r#"{"error":{"code":"model_not_found"}}"#), 1),
        ("too long a conversation", refusal(400, "", r#"{"error":{"code":"context_length_exceeded"}}"#), 1),
        ("trouble", refusal(503, "", ""), 3),
        ("a long wait", refusal(429, "retry-after: 30\r\n", ""), 1),
        ("silence", vec![Step::AwaitGone], 1),
    ] {
        first.always(steps).await;
        second.script(good()).await;
        let frames = turn(&server).await;
        assert_eq!(joined_deltas(&frames), "good", "{fault}");
        assert_eq!(usage_of(&frames).1["model"], "second-model", "{fault}");
        assert_eq!(first.received().len(), asked, "{fault}");
        let requests = second.received();
        assert_eq!(requests[0].body["model"], "second-model", "{fault}");
        assert!(!requests[0].head.contains("test-key"), "a key goes to no other address");
    }
    first.always(refusal(401, "", "{}")).await;
    second.always(refusal(503, "", "")).await;
    assert_eq!(outcome(&server).await, Err(("PROVIDER_UNAVAILABLE".to_owned(), true)), "the one that may pass is told");
    first.always(vec![]).await;
    first.script(then(begun("half"), Step::Reset)).await;
    second.received();
    assert_eq!(outcome(&server).await, Err(("PROVIDER_STREAM_CUT".to_owned(), true)));
    assert!(second.received().is_empty(), "no second answer is glued to the first");

    first.always(refusal(401, "", "{}")).await;
    second.script(then(begun("half"), Step::Reset)).await;
    let frames = turn(&server).await;
    assert_eq!(error_of(&frames).code, "PROVIDER_STREAM_CUT");
    assert_eq!(usage_of(&frames).1["model"], "second-model", "what was said is counted for who said it");
}

#[tokio::test]
async fn what_failed_attempts_spent_is_told_by_model() {
    let (first, second) = (FakeProvider::start().await, FakeProvider::start().await);
    let fallbacks = serde_json::json!([{"model": "gpt-4o-mini", "base_url": second.base_url}]).to_string();
    let server =
        patient(&first, &[("LLM_FALLBACKS", &fallbacks), ("LLM_MODEL_NAME", "gpt-4o"), ("LLM_MAX_ATTEMPTS", "1")])
            .await;
    first.script(stream(&[&finish("stop"), &usage(1000, 0), "[DONE]"])).await;
    second.script(stream(&[&delta("good"), &finish("stop"), &usage(2000, 100), "[DONE]"])).await;
    let frames = turn(&server).await;
    let (usage, metadata) = usage_of(&frames);
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (3000, 100));
    assert_eq!(usage.cost_micro_usd, 2500 + 300 + 60);
    let by_model: serde_json::Value = serde_json::from_str(&metadata["usage_by_model"]).unwrap();
    assert_eq!(by_model["gpt-4o"]["prompt_tokens"], 1000);
    assert_eq!((&*metadata["model"], &*metadata["usage_source"]), ("gpt-4o-mini", "provider"));
}

#[tokio::test]
async fn a_model_that_is_dead_costs_nothing_until_it_is_tried_again() {
    let (mut first, second) = (FakeProvider::start().await, FakeProvider::start().await);
    let fallbacks = serde_json::json!([{"model": "second-model", "base_url": second.base_url}]).to_string();
    let breaker = [
        ("LLM_FALLBACKS", fallbacks.as_str()),
        ("LLM_MAX_ATTEMPTS", "1"),
        ("LLM_BREAKER_FAILURES", "2"),
        ("LLM_BREAKER_COOLDOWN_SECONDS", "0.3"),
    ];
    let server = patient(&first, &breaker).await;
    second.always(good()).await;
    first.always(refusal(400, "", "{}")).await;
    for _ in 0..4 {
        outcome(&server).await.unwrap();
    }
    assert_eq!(first.received().len(), 4, "a status of 4xx is no outage");
    first.always(refusal(503, "", "")).await;
    for _ in 0..4 {
        outcome(&server).await.unwrap();
    }
    // On a slow machine the pause is over before the fourth turn, which then tries again.
    assert!((2..=4).contains(&first.received().len()));
    first.always(good()).await;
    let asked = async {
        while first.received().is_empty() {
            outcome(&server).await.unwrap();
        }
    };
    tokio::time::timeout(crate::harness::PATIENCE, asked).await.expect("it is never tried again");
}

#[tokio::test]
async fn without_another_model_a_dead_one_is_told_at_once_with_the_time_to_wait() {
    let mut provider = FakeProvider::start().await;
    let server = patient(&provider, &[("LLM_MAX_ATTEMPTS", "1"), ("LLM_BREAKER_FAILURES", "1")]).await;
    provider.always(refusal(503, "", "")).await;
    outcome(&server).await.unwrap_err();
    let frames = turn(&server).await;
    let error = error_of(&frames);
    assert_eq!((error.code.as_str(), error.retryable), ("PROVIDER_UNAVAILABLE", true));
    assert_eq!(error.details["problem"], "resting");
    assert!((1..=10_000).contains(&error.details["retry_after_ms"].parse::<u64>().unwrap()));
    assert_eq!(provider.received().len(), 1);
}

#[tokio::test]
async fn the_time_of_a_turn_bounds_all_attempts_together() {
    let mut provider = FakeProvider::start().await;
    let more = [("LLM_TOTAL_TIMEOUT_SECONDS", "0.4"), ("LLM_MAX_ATTEMPTS", "10")];
    let server = patient(&provider, &more).await;
    provider.always(vec![Step::AwaitGone]).await;
    assert_eq!(outcome(&server).await, Err(("PROVIDER_TIMEOUT".to_owned(), true)));
    assert!((1..=3).contains(&provider.received().len()));
    provider.always(refusal(429, "retry-after: 15\r\n", "")).await;
    let frames = turn(&server).await;
    assert_eq!(error_of(&frames).details["retry_after_ms"], "15000", "the client is told how long to wait");
}

#[tokio::test]
async fn streams_as_providers_document_them_come_to_their_text_and_usage() {
    let provider = FakeProvider::start().await;
    let server = patient(&provider, &[]).await;
    for (file, text, tokens, cached, reasoning) in [
        ("openai", "Hello!", (19, 10), Some("4"), Some("3")),
        ("dashscope", "我是通义千问。", (22, 17), None, None),
        ("dashscope_thinking", "9.9更大", (22, 17), None, None),
        ("deepseek", "Hello! How can I help?", (17, 9), Some("5"), None),
    ] {
        let path = format!("{}/tests/golden/streams/{file}.sse", env!("CARGO_MANIFEST_DIR"));
        let body = std::fs::read(path).unwrap();
        provider.script(vec![Step::Send(head(200, "text/event-stream; charset=utf-8")), Step::Send(body)]).await;
        let frames = turn(&server).await;
        assert_eq!(joined_deltas(&frames), text, "{file}");
        let (usage, metadata) = usage_of(&frames);
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), tokens, "{file}");
        assert_eq!(metadata["usage_source"], "provider");
        assert_eq!(metadata.get("cached_tokens").map(String::as_str), cached, "{file}");
        assert_eq!(metadata.get("reasoning_tokens").map(String::as_str), reasoning, "{file}");
    }
}
