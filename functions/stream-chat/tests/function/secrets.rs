//! Secrets by reference to SSM or Secrets Manager.

use serde_json::json;

use crate::{
    PROGRAM, chat,
    fake_provider::{FakeProvider, delta, finish},
    lambda_runtime::{LambdaFunction, run_to_failure},
};

#[tokio::test]
async fn secrets_are_fetched_once_by_reference() {
    let mut provider = FakeProvider::start().await;
    let mut store = FakeProvider::start().await;
    let endpoint = store.base_url.trim_end_matches("/v1").to_owned();
    // Throttled, then failing, then successful.
    store.respond(400, r#"{"__type": "ThrottlingException"}"#).await;
    store.respond(500, "").await;
    let parameters = r#"{"Parameters": [{"Name": "/agent/internal", "Value": "the-internal-key"}, {"Name": "/agent/key", "Value": "the-key"}]}"#;
    store.respond(200, parameters).await;
    provider.respond(404, "").await;
    let mut variables = provider.variables();
    variables.retain(|(name, _)| *name != "LLM_API_KEY");
    variables.extend([
        ("AUTH", "none"),
        ("EMBEDDING_PROVIDER", "hashed"),
        ("LLM_API_KEY", "ssm:/agent/key"),
        ("INTERNAL_API_KEY", "ssm:/agent/internal"),
        ("AWS_ENDPOINT_URL_SSM", &endpoint),
        ("AWS_REGION", "eu-west-1"),
        ("AWS_ACCESS_KEY_ID", "AKEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_SESSION_TOKEN", "session"),
    ]);
    let mut function = LambdaFunction::start(PROGRAM, &variables).await;
    for _ in 0..2 {
        provider.stream(&[&delta("ok"), &finish("stop"), "[DONE]"]).await;
        assert_eq!(function.answer(chat("hello")).await.frames().1["grpc-status"], "0");
    }
    for _ in ["throttled", "failed"] {
        store.requests.recv().await.unwrap();
    }
    let request = store.requests.recv().await.unwrap();
    assert_eq!(request.body, json!({"Names": ["/agent/internal", "/agent/key"], "WithDecryption": true}));
    let head = request.head.to_ascii_lowercase();
    assert!(head.contains("x-amz-target: amazonssm.getparameters"), "{head}");
    assert!(head.contains("authorization: aws4-hmac-sha256 credential=akexample/"), "{head}");
    assert!(head.contains("/eu-west-1/ssm/aws4_request") && head.contains("x-amz-security-token: session"), "{head}");
    assert!(store.requests.try_recv().is_err(), "once");
    // The first request warms up the connection, without the key.
    assert!(!provider.requests.recv().await.unwrap().head.contains("the-key"));
    assert!(provider.requests.recv().await.unwrap().head.contains("Bearer the-key"));
}

#[tokio::test]
async fn unavailable_secret_is_named_by_its_variable_only() {
    let store = FakeProvider::start().await;
    let endpoint = store.base_url.trim_end_matches("/v1").to_owned();
    let runtime = [
        ("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:9"),
        ("AWS_ENDPOINT_URL", &endpoint),
        ("AWS_REGION", "eu-west-1"),
        ("AWS_ACCESS_KEY_ID", "AKEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ];
    // One response each: permanent errors are not retried.
    for (reference, status, answer, expected) in [
        (
            "ssm:/agent/key",
            400,
            r#"{"__type": "AccessDeniedException", "message": "private"}"#,
            "AccessDeniedException",
        ),
        ("ssm:/agent/key", 200, r#"{"Parameters": [], "InvalidParameters": ["/agent/key"]}"#, "no such parameter"),
        (
            "secretsmanager:/agent/key#url",
            400,
            r#"{"__type": "ResourceNotFoundException"}"#,
            "ResourceNotFoundException",
        ),
        ("secretsmanager:/agent/key#url", 200, r#"{"SecretString": "{\"private\": 1}"}"#, "not text"),
        // Without its key, the function would start in demo mode.
        ("ssm:/agent/key", 200, r#"{"Parameters": [{"Name": "/agent/key", "Value": " \n"}]}"#, "it is blank"),
    ] {
        store.respond(status, answer).await;
        let (code, stderr) = run_to_failure(PROGRAM, &[&runtime[..], &[("LLM_API_KEY", reference)]].concat()).await;
        assert_eq!(code, Some(2));
        assert!(stderr.contains("LLM_API_KEY") && stderr.contains(expected), "{stderr}");
        assert!(!stderr.contains("/agent/key") && !stderr.contains("private"), "{stderr}");
    }
}

#[tokio::test]
async fn weak_secret_of_a_store_is_refused_at_start() {
    let store = FakeProvider::start().await;
    let endpoint = store.base_url.trim_end_matches("/v1").to_owned();
    let variables = [
        ("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:9"),
        ("AWS_ENDPOINT_URL", &endpoint),
        ("AWS_REGION", "eu-west-1"),
        ("AWS_ACCESS_KEY_ID", "AKEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AUTH", "jwt"),
        ("JWT_SECRET", "ssm:/agent/jwt-secret"),
        ("INTERNAL_API_KEY", "ssm:/agent/internal"),
    ];
    store
        .respond(
            200,
            r#"{"Parameters": [{"Name": "/agent/jwt-secret", "Value": "thirty-one-bytes-are-too-few---"}, {"Name": "/agent/internal", "Value": "fifteen-bytes--"}]}"#,
        )
        .await;
    let (code, stderr) = run_to_failure(PROGRAM, &variables).await;
    assert_eq!(code, Some(2), "{stderr}");
    for expected in [
        "JWT_SECRET: has 31 bytes, but needs at least 32: set it to a random value",
        "INTERNAL_API_KEY: has 15 bytes, but needs at least 16: set it to a random value",
        "openssl rand -hex 32",
    ] {
        assert!(stderr.contains(expected), "{stderr}");
    }
    assert!(!stderr.contains("thirty-one") && !stderr.contains("fifteen-bytes"), "{stderr}");
}
