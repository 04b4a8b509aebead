//! Secrets by reference.

use serde_json::json;

use crate::{
    PROGRAM, chat,
    double::{Function, refused},
    fake_provider::{FakeProvider, delta, finish},
};

#[tokio::test]
async fn secrets_are_fetched_once_by_the_names_that_variables_give() {
    let mut provider = FakeProvider::start().await;
    let mut store = FakeProvider::start().await;
    let endpoint = store.base_url.trim_end_matches("/v1").to_owned();
    // It is busy, then out of order, and then it answers.
    store.refuse(400, r#"{"__type": "ThrottlingException"}"#).await;
    store.refuse(500, "").await;
    let parameters =
        r#"{"Parameters": [{"Name": "/agent/internal", "Value": "i"}, {"Name": "/agent/key", "Value": "the-key"}]}"#;
    store.refuse(200, parameters).await;
    provider.refuse(404, "").await;
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
    let mut function = Function::start(PROGRAM, &variables).await;
    for _ in 0..2 {
        provider.stream(&[&delta("ok"), &finish("stop"), "[DONE]"]).await;
        assert_eq!(function.answer(chat("hello")).await.frames().1["grpc-status"], "0");
    }
    for _ in ["busy", "out of order"] {
        store.requests.recv().await.unwrap();
    }
    let asked = store.requests.recv().await.unwrap();
    assert_eq!(asked.body, json!({"Names": ["/agent/internal", "/agent/key"], "WithDecryption": true}));
    let head = asked.head.to_ascii_lowercase();
    assert!(head.contains("x-amz-target: amazonssm.getparameters"), "{head}");
    assert!(head.contains("authorization: aws4-hmac-sha256 credential=akexample/"), "{head}");
    assert!(head.contains("/eu-west-1/ssm/aws4_request") && head.contains("x-amz-security-token: session"), "{head}");
    assert!(store.requests.try_recv().is_err(), "once");
    // The first request is the one that warms up the connection, and shows no key.
    assert!(!provider.requests.recv().await.unwrap().head.contains("the-key"));
    assert!(provider.requests.recv().await.unwrap().head.contains("Bearer the-key"));
}

#[tokio::test]
async fn a_secret_that_can_not_be_had_is_named_by_its_variable_alone() {
    let store = FakeProvider::start().await;
    let endpoint = store.base_url.trim_end_matches("/v1").to_owned();
    let runtime = [
        ("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:9"),
        ("AWS_ENDPOINT_URL", &endpoint),
        ("AWS_REGION", "eu-west-1"),
        ("AWS_ACCESS_KEY_ID", "AKEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ];
    // One answer each: what is wrong for good is not asked again.
    for (reference, status, answer, expected) in [
        (
            "ssm:/agent/key",
            400,
            r#"{"__type": "AccessDeniedException", "message": "private"}"#,
            "AccessDeniedException",
        ),
        ("ssm:/agent/key", 200, r#"{"Parameters": [], "InvalidParameters": ["/agent/key"]}"#, "no parameter"),
        (
            "secretsmanager:/agent/key#url",
            400,
            r#"{"__type": "ResourceNotFoundException"}"#,
            "ResourceNotFoundException",
        ),
        ("secretsmanager:/agent/key#url", 200, r#"{"SecretString": "{\"private\": 1}"}"#, "no text"),
    ] {
        store.refuse(status, answer).await;
        let (code, said) = refused(PROGRAM, &[&runtime[..], &[("LLM_API_KEY", reference)]].concat()).await;
        assert_eq!(code, Some(2));
        assert!(said.contains("LLM_API_KEY") && said.contains(expected), "{said}");
        assert!(!said.contains("/agent/key") && !said.contains("private"), "{said}");
    }
}
