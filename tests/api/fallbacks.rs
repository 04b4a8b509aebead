//! Fallback models and the circuit breaker.

use crate::{
    fake_provider::{FakeProvider, Step, delta, finish, http_response, partial_answer, stream, usage},
    faults::{followed_by, good_answer, outcome, start_with_retries},
    harness::{TEST_TIMEOUT, error_of, joined_deltas, run_turn, usage_of},
};

#[tokio::test]
async fn fallback_model_answers_when_first_model_fails() {
    let (mut first, mut second) = (FakeProvider::start().await, FakeProvider::start().await);
    let fallbacks = serde_json::json!([{"model": "second-model", "base_url": second.base_url}]).to_string();
    let server = start_with_retries(&first, &[("LLM_FALLBACKS", &fallbacks)]).await;
    for (fault, steps, attempts) in [
        ("a refused key", http_response(401, "", "{}"), 1),
        ("an unknown model", http_response(404, "", r#"{"error":{"code":"model_not_found"}}"#), 1),
        ("context length exceeded", http_response(400, "", r#"{"error":{"code":"context_length_exceeded"}}"#), 1),
        ("unavailable", http_response(503, "", ""), 3),
        ("a long retry-after", http_response(429, "retry-after: 30\r\n", ""), 1),
        ("silence", vec![Step::AwaitDisconnect], 1),
    ] {
        first.script_all(steps).await;
        second.script(good_answer()).await;
        let frames = run_turn(&server).await;
        assert_eq!(joined_deltas(&frames), "good", "{fault}");
        assert_eq!(usage_of(&frames).1["model"], "second-model", "{fault}");
        assert_eq!(first.take_requests().len(), attempts, "{fault}");
        let requests = second.take_requests();
        assert_eq!(requests[0].body["model"], "second-model", "{fault}");
        assert!(!requests[0].head.contains("test-key"), "the key was sent to another address");
    }
    first.script_all(http_response(401, "", "{}")).await;
    second.script_all(http_response(503, "", "")).await;
    assert_eq!(
        outcome(&server).await,
        Err(("PROVIDER_UNAVAILABLE".to_owned(), true)),
        "the retryable error is reported"
    );
    first.script_all(vec![]).await;
    first.script(followed_by(partial_answer("half"), Step::Reset)).await;
    second.take_requests();
    assert_eq!(outcome(&server).await, Err(("PROVIDER_STREAM_CUT".to_owned(), true)));
    assert!(second.take_requests().is_empty(), "a second answer was appended to the first");

    first.script_all(http_response(401, "", "{}")).await;
    second.script(followed_by(partial_answer("half"), Step::Reset)).await;
    let frames = run_turn(&server).await;
    assert_eq!(error_of(&frames).code, "PROVIDER_STREAM_CUT");
    assert_eq!(usage_of(&frames).1["model"], "second-model", "usage is reported for the model that answered");
}

#[tokio::test]
async fn usage_of_failed_attempts_is_reported_by_model() {
    let (first, second) = (FakeProvider::start().await, FakeProvider::start().await);
    let fallbacks = serde_json::json!([{"model": "gpt-4o-mini", "base_url": second.base_url}]).to_string();
    let server = start_with_retries(
        &first,
        &[("LLM_FALLBACKS", &fallbacks), ("LLM_MODEL_NAME", "gpt-4o"), ("LLM_MAX_ATTEMPTS", "1")],
    )
    .await;
    first.script(stream(&[&finish("stop"), &usage(1000, 0), "[DONE]"])).await;
    second.script(stream(&[&delta("good"), &finish("stop"), &usage(2000, 100), "[DONE]"])).await;
    let frames = run_turn(&server).await;
    let (usage, metadata) = usage_of(&frames);
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (3000, 100));
    assert_eq!(usage.cost_micro_usd, 2500 + 300 + 60);
    let by_model: serde_json::Value = serde_json::from_str(&metadata["usage_by_model"]).unwrap();
    assert_eq!(by_model["gpt-4o"]["prompt_tokens"], 1000);
    assert_eq!((&*metadata["model"], &*metadata["usage_source"]), ("gpt-4o-mini", "provider"));
}

#[tokio::test]
async fn open_circuit_breaker_skips_model_until_cooldown() {
    let (mut first, second) = (FakeProvider::start().await, FakeProvider::start().await);
    let fallbacks = serde_json::json!([{"model": "second-model", "base_url": second.base_url}]).to_string();
    let breaker = [
        ("LLM_FALLBACKS", fallbacks.as_str()),
        ("LLM_MAX_ATTEMPTS", "1"),
        ("LLM_BREAKER_FAILURES", "2"),
        ("LLM_BREAKER_COOLDOWN_SECONDS", "0.3"),
    ];
    let server = start_with_retries(&first, &breaker).await;
    second.script_all(good_answer()).await;
    first.script_all(http_response(400, "", "{}")).await;
    for _ in 0..4 {
        outcome(&server).await.unwrap();
    }
    assert_eq!(first.take_requests().len(), 4, "a status of 4xx does not open the breaker");
    first.script_all(http_response(503, "", "")).await;
    for _ in 0..4 {
        outcome(&server).await.unwrap();
    }
    // On a slow machine the cooldown ends before the fourth turn, which then retries.
    assert!((2..=4).contains(&first.take_requests().len()));
    first.script_all(good_answer()).await;
    let retried = async {
        while first.take_requests().is_empty() {
            outcome(&server).await.unwrap();
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, retried).await.expect("the model is never retried");
}

#[tokio::test]
async fn open_circuit_breaker_without_fallback_fails_fast() {
    let mut provider = FakeProvider::start().await;
    let server = start_with_retries(&provider, &[("LLM_MAX_ATTEMPTS", "1"), ("LLM_BREAKER_FAILURES", "1")]).await;
    provider.script_all(http_response(503, "", "")).await;
    outcome(&server).await.unwrap_err();
    let frames = run_turn(&server).await;
    let error = error_of(&frames);
    assert_eq!((error.code.as_str(), error.retryable), ("PROVIDER_UNAVAILABLE", true));
    assert_eq!(error.details["problem"], "resting");
    assert!((1..=10_000).contains(&error.details["retry_after_ms"].parse::<u64>().unwrap()));
    assert_eq!(provider.take_requests().len(), 1);
}
