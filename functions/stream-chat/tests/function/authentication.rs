//! Authentication by token and internal API key.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;

use crate::{
    GRPC_WEB, PATH, PROGRAM, ask,
    jwt::sign_hs256,
    lambda_runtime::{LambdaFunction, function_url_event},
};

const SECRET: &str = "a secret that the gateway shares";

fn token(subject: &str, secret: &str) -> String {
    let expiry = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 600;
    format!("Bearer {}", sign_hs256(&json!({"sub": subject, "exp": expiry}), secret))
}

#[tokio::test]
async fn token_admits_its_subject_and_internal_key_admits_anyone() {
    let variables = [
        ("AUTH", "jwt"),
        ("JWT_SECRET", SECRET),
        ("INTERNAL_API_KEY", "the internal key"),
        ("DEMO_THINKING_DELAY_MS", "0"),
        ("DEMO_CHUNK_DELAY_MS", "0"),
    ];
    let mut function = LambdaFunction::start(PROGRAM, &variables).await;
    let expired = "Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4iLCJleHAiOjF9.AAAA".to_owned();
    for (what, proof, status) in [
        ("a token of ann", Some(("authorization", token("ann", SECRET))), "0"),
        ("a token of somebody else", Some(("authorization", token("bob", SECRET))), "7"),
        ("a token of another issuer", Some(("authorization", token("ann", "another secret"))), "16"),
        ("a token that is none", Some(("authorization", expired)), "16"),
        ("nothing", None, "16"),
        ("the service's own key", Some(("x-internal-api-key", "the internal key".to_owned())), "0"),
        ("the service's own key as a token", Some(("authorization", "Bearer the internal key".to_owned())), "0"),
        ("another key", Some(("x-internal-api-key", "external".to_owned())), "16"),
    ] {
        let mut binary = function_url_event(PATH, GRPC_WEB, &ask("hello"));
        let mut text = function_url_event(PATH, "application/grpc-web-text", STANDARD.encode(ask("hello")).as_bytes());
        if let Some((name, value)) = proof {
            binary["headers"][name] = value.clone().into();
            text["headers"][name] = value.into();
        }
        let binary = function.answer(binary).await.frames();
        let text = function.answer(text).await.text_frames();
        for (messages, trailers) in [binary, text] {
            assert_eq!(trailers["grpc-status"], status, "{what}: {trailers:?}");
            assert_eq!(messages.is_empty(), status != "0", "{what}");
        }
    }
    // The body is not even decoded.
    let mut malformed = function_url_event(PATH, GRPC_WEB, &ask("hello"));
    malformed["body"] = "!".into();
    assert_eq!(function.answer(malformed).await.frames().1["grpc-status"], "16");
}
