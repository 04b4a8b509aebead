//! What the clients of a function are told when it panics.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

#[path = "../../../functions/stream-chat/tests/function/double.rs"]
#[expect(dead_code, reason = "these tests need less of it")]
mod double;

use double::{Function, event, framed};

#[tokio::test]
async fn a_panic_is_an_internal_error_in_the_body_what_was_said_before_it_stays_and_the_function_goes_on() {
    let mut function = Function::start(env!("CARGO_BIN_EXE_panicking-function"), &[]).await;
    // Twice, since whatever a panic leaves behind must not matter.
    for method in ["AtOnce", "Later", "Midway", "AtOnce", "Later", "Midway"] {
        let path = format!("/test.Panicking/{method}");
        let answer = function.answer(event(&path, "application/grpc-web+proto", &framed(b""))).await;
        assert_eq!(answer.status, 200, "{method}");
        let (messages, trailers) = answer.frames();
        assert_eq!(messages, if method == "Midway" { vec![b"hi".to_vec()] } else { Vec::new() });
        assert_eq!(trailers["grpc-status"], "13", "{method}");
        assert!(!trailers["grpc-message"].contains("private"), "{trailers:?}");
    }
}
