//! Responses of a function that panics.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

#[path = "../../support/lambda_runtime.rs"]
#[expect(dead_code, reason = "these tests need less of it")]
mod lambda_runtime;

use lambda_runtime::{LambdaFunction, function_url_event, grpc_frame};

#[tokio::test]
async fn panic_is_an_internal_error_and_function_continues() {
    let mut function = LambdaFunction::start(env!("CARGO_BIN_EXE_panicking-function"), &[]).await;
    // Twice: a panic must not affect later calls.
    for method in ["AtOnce", "Later", "Midway", "AtOnce", "Later", "Midway"] {
        let path = format!("/test.Panicking/{method}");
        let answer = function.answer(function_url_event(&path, "application/grpc-web+proto", &grpc_frame(b""))).await;
        assert_eq!(answer.status, 200, "{method}");
        let (messages, trailers) = answer.frames();
        assert_eq!(messages, if method == "Midway" { vec![b"hi".to_vec()] } else { Vec::new() });
        assert_eq!(trailers["grpc-status"], "13", "{method}");
        assert!(!trailers["grpc-message"].contains("private"), "{trailers:?}");
    }
}
