//! Events of each kind, and what is no call.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{
    GRPC_WEB, PATH, ask, chat, decoded, demo,
    double::{event, framed, rest_event},
    pb,
};

#[tokio::test]
async fn a_rest_api_is_answered_as_a_function_url_is_in_binary_and_in_text() {
    let mut function = demo().await;
    let body = STANDARD.encode(ask("hello"));
    for path in [PATH.to_owned(), format!("/live{PATH}")] {
        // The type of binary calls is one that the API hands on in base64.
        let binary = function.answer(rest_event(&path, GRPC_WEB, &body, true)).await;
        let text = function.answer(rest_event(&path, "application/grpc-web-text", &body, false)).await;
        for (frames, trailers) in [binary.frames(), text.text_frames()] {
            assert_eq!(trailers["grpc-status"], "0", "{path}");
            assert_eq!(decoded(&frames).last().unwrap().finish_reason(), pb::FinishReason::Stop);
        }
    }
}

#[tokio::test]
async fn on_the_wire_are_a_prelude_eight_zeros_and_whole_frames() {
    let mut function = demo().await;
    function.invoke(chat("hello"), Duration::from_secs(30));
    let chunks = function.chunks().await;
    let prelude: Value = serde_json::from_slice(&chunks[0]).unwrap();
    assert_eq!((&prelude["statusCode"], &prelude["headers"]["content-type"]), (&json!(200), &json!(GRPC_WEB)));
    assert_eq!(chunks[1], [0; 8]);
    let (trailers, messages) = chunks[2..].split_last().unwrap();
    for chunk in messages {
        // Messages that are ready together travel together, but none is cut.
        let mut rest = chunk.as_slice();
        while !rest.is_empty() {
            let length = usize::try_from(u32::from_be_bytes(rest[1..5].try_into().unwrap())).unwrap();
            assert_eq!(rest[0], 0, "a message");
            rest = &rest[5 + length..];
        }
    }
    assert_eq!(trailers[0], 0x80);
    assert_eq!(usize::try_from(u32::from_be_bytes(trailers[1..5].try_into().unwrap())).unwrap(), trailers.len() - 5);
}

#[tokio::test]
async fn text_mode_is_answered_in_text() {
    let mut function = demo().await;
    let text = STANDARD.encode(ask("hello"));
    let answer = function.answer(event(PATH, "application/grpc-web-text", text.as_bytes())).await;
    assert!(answer.headers["content-type"].starts_with("application/grpc-web-text"), "{answer:?}");
    let (frames, trailers) = answer.text_frames();
    assert_eq!(trailers["grpc-status"], "0");
    assert_eq!(decoded(&frames).last().unwrap().finish_reason(), pb::FinishReason::Stop);
    let text = STANDARD.encode(ask(""));
    let refused = function.answer(event(PATH, "application/grpc-web-text", text.as_bytes())).await;
    assert_eq!(refused.text_frames().1["grpc-status"], "3");
    for garbage in [&b"!not base64!"[..], b"AAAAAA=", b"AAA"] {
        let garbage = function.answer(event(PATH, "application/grpc-web-text", garbage)).await;
        assert_eq!(garbage.text_frames().1["grpc-status"], "3", "{garbage:?}");
    }
}

#[tokio::test]
async fn what_is_no_call_gets_an_error_of_http() {
    let mut function = demo().await;
    let mut get = chat("hello");
    get["requestContext"]["http"]["method"] = "GET".into();
    let refused = function.answer(get).await;
    assert_eq!((refused.status, refused.headers["allow"].as_str(), refused.body.len()), (405, "POST", 0));
    for content_type in ["application/grpc", "application/json", "", "application/grpc-webbed"] {
        let refused = function.answer(event(PATH, content_type, &ask("hello"))).await;
        assert_eq!((refused.status, refused.body.len()), (415, 0), "{content_type}");
    }
    let answer = function.answer(chat("hello")).await;
    assert_eq!(answer.frames().1["grpc-status"], "0", "and the function goes on");
}

#[tokio::test]
async fn a_content_type_is_known_in_any_case_and_with_parameters() {
    let mut function = demo().await;
    for written in
        ["Application/gRPC-Web+Proto", "application/grpc-web; charset=utf-8", "application/grpc-web+proto;x=y"]
    {
        let answer = function.answer(event(PATH, written, &ask("hello"))).await;
        assert_eq!(answer.frames().1["grpc-status"], "0", "{written}");
    }
    let text = STANDARD.encode(ask("hello"));
    let answer = function.answer(event(PATH, "APPLICATION/GRPC-WEB-TEXT", text.as_bytes())).await;
    assert_eq!(answer.text_frames().1["grpc-status"], "0");
}

#[tokio::test]
async fn an_event_that_is_malformed_is_answered_and_the_function_goes_on() {
    let mut function = demo().await;
    let mut not_base64 = chat("hello");
    not_base64["body"] = "!".into();
    let refused = function.answer(not_base64).await;
    assert_eq!((refused.status, refused.frames().1["grpc-status"].as_str()), (200, "3"), "{refused:?}");
    let mut strange_path = chat("hello");
    strange_path["rawPath"] = "/a b/\u{1}ü/StreamChat?x".into();
    assert_eq!(function.answer(strange_path).await.frames().1["grpc-status"], "12");
    let mut without_body = chat("hello");
    without_body.as_object_mut().unwrap().remove("body");
    assert_ne!(function.answer(without_body).await.frames().1["grpc-status"], "0", "no message at all is no request");
    for no_request in [json!(null), json!({}), json!([1]), json!({"Records": [{"eventSource": "aws:sqs"}]}), json!("x")]
    {
        let refused = function.answer(no_request.clone()).await;
        assert_eq!((refused.status, refused.body.len()), (400, 0), "{no_request}");
    }
    assert_eq!(function.answer(chat("hello")).await.frames().1["grpc-status"], "0");
}

#[tokio::test]
async fn messages_are_as_large_as_a_server_takes_them_and_larger_ones_exhaust_a_resource() {
    let mut function = demo().await;
    // Beyond tonic's own limit of 4 MiB it is the contract that says how long a message may be.
    let long = function.answer(chat(&"x".repeat(5 << 20))).await.frames().1;
    assert_eq!(long["grpc-status"], "3", "{long:?}");
    assert!(long["grpc-message"].contains("message"), "{long:?}");
    // Its length says that it is too large, before any of it is there.
    let mut too_large = framed(b"");
    too_large[1..5].copy_from_slice(&(51_u32 << 20).to_be_bytes());
    let refused = function.answer(event(PATH, GRPC_WEB, &too_large)).await.frames().1;
    assert_eq!(refused["grpc-status"], "8", "{refused:?}");
}
