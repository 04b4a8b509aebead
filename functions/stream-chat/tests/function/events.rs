//! Event formats, HTTP errors and malformed events.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{
    GRPC_WEB, PATH, ask, chat, decoded,
    lambda_runtime::{function_url_event, grpc_frame, rest_api_event},
    pb, start_demo,
};

#[tokio::test]
async fn rest_api_events_are_answered_like_function_urls() {
    let mut function = start_demo().await;
    let body = STANDARD.encode(ask("hello"));
    for path in [PATH.to_owned(), format!("/live{PATH}")] {
        // API Gateway passes binary media types as base64.
        let binary = function.answer(rest_api_event(&path, GRPC_WEB, &body, true)).await;
        let text = function.answer(rest_api_event(&path, "application/grpc-web-text", &body, false)).await;
        for (frames, trailers) in [binary.frames(), text.text_frames()] {
            assert_eq!(trailers["grpc-status"], "0", "{path}");
            assert_eq!(decoded(&frames).last().unwrap().finish_reason(), pb::FinishReason::Stop);
        }
    }
}

#[tokio::test]
async fn response_is_prelude_eight_zeros_and_whole_frames() {
    let mut function = start_demo().await;
    function.invoke(chat("hello"), Duration::from_secs(30));
    let chunks = function.chunks().await;
    let prelude: Value = serde_json::from_slice(&chunks[0]).unwrap();
    assert_eq!((&prelude["statusCode"], &prelude["headers"]["content-type"]), (&json!(200), &json!(GRPC_WEB)));
    assert_eq!(chunks[1], [0; 8]);
    let (trailers, messages) = chunks[2..].split_last().unwrap();
    for chunk in messages {
        // A chunk may hold several messages, but no part of one.
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
    let mut function = start_demo().await;
    let text = STANDARD.encode(ask("hello"));
    let answer = function.answer(function_url_event(PATH, "application/grpc-web-text", text.as_bytes())).await;
    assert!(answer.headers["content-type"].starts_with("application/grpc-web-text"), "{answer:?}");
    let (frames, trailers) = answer.text_frames();
    assert_eq!(trailers["grpc-status"], "0");
    assert_eq!(decoded(&frames).last().unwrap().finish_reason(), pb::FinishReason::Stop);
    let text = STANDARD.encode(ask(""));
    let rejected = function.answer(function_url_event(PATH, "application/grpc-web-text", text.as_bytes())).await;
    assert_eq!(rejected.text_frames().1["grpc-status"], "3");
    for garbage in [&b"!not base64!"[..], b"AAAAAA=", b"AAA"] {
        let garbage = function.answer(function_url_event(PATH, "application/grpc-web-text", garbage)).await;
        assert_eq!(garbage.text_frames().1["grpc-status"], "3", "{garbage:?}");
    }
}

#[tokio::test]
async fn base64_of_the_text_mode_may_be_padded_in_the_middle() {
    let mut function = start_demo().await;
    let frame = ask("hello there");
    for split in 1..=4 {
        let (first, second) = frame.split_at(split);
        let text = [first, second].map(|part| STANDARD.encode(part)).concat();
        let answer = function.answer(function_url_event(PATH, "application/grpc-web-text", text.as_bytes())).await;
        assert_eq!(answer.text_frames().1["grpc-status"], "0", "split at {split}");
    }
}

#[tokio::test]
async fn gzip_requests_are_answered_and_other_encodings_unimplemented() {
    let mut function = start_demo().await;
    let message = ask("hello")[5..].to_vec();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, &message).unwrap();
    let mut compressed = grpc_frame(&encoder.finish().unwrap());
    compressed[0] = 1;
    let event = |encoding: &str| {
        let mut event = function_url_event(PATH, GRPC_WEB, &compressed);
        event["headers"]["grpc-encoding"] = encoding.into();
        event
    };
    let answer = function.answer(event("gzip")).await;
    assert_eq!(answer.headers["x-accel-buffering"], "no");
    assert!(!answer.headers.contains_key("grpc-encoding"), "{answer:?}");
    let (frames, trailers) = answer.frames();
    assert_eq!(trailers["grpc-status"], "0");
    assert_eq!(decoded(&frames).last().unwrap().finish_reason(), pb::FinishReason::Stop);
    let refused = function.answer(event("br")).await;
    assert_eq!(refused.frames().1["grpc-status"], "12");
    assert_eq!(refused.headers["grpc-accept-encoding"], "gzip,identity");
}

#[tokio::test]
async fn unknown_path_is_not_found() {
    let mut function = start_demo().await;
    for (method, path) in
        [("GET", "/"), ("GET", "/agent.v1.AgentService/RetrieveMemory"), ("POST", "/x"), ("PUT", "/x/y")]
    {
        let mut event = function_url_event(path, "application/json", b"{}");
        event["requestContext"]["http"]["method"] = method.into();
        let rejected = function.answer(event).await;
        assert_eq!((rejected.status, rejected.body.len()), (404, 0), "{method} {path}");
    }
}

#[tokio::test]
async fn non_grpc_request_gets_an_http_error() {
    let mut function = start_demo().await;
    let mut get = chat("hello");
    get["requestContext"]["http"]["method"] = "GET".into();
    let rejected = function.answer(get).await;
    assert_eq!((rejected.status, rejected.headers["allow"].as_str(), rejected.body.len()), (405, "POST", 0));
    for content_type in ["application/grpc", "application/json", "", "application/grpc-webbed"] {
        let rejected = function.answer(function_url_event(PATH, content_type, &ask("hello"))).await;
        assert_eq!((rejected.status, rejected.body.len()), (415, 0), "{content_type}");
    }
    let answer = function.answer(chat("hello")).await;
    assert_eq!(answer.frames().1["grpc-status"], "0", "the function does not continue");
}

#[tokio::test]
async fn content_type_is_accepted_in_any_case_with_parameters() {
    let mut function = start_demo().await;
    for written in
        ["Application/gRPC-Web+Proto", "application/grpc-web; charset=utf-8", "application/grpc-web+proto;x=y"]
    {
        let answer = function.answer(function_url_event(PATH, written, &ask("hello"))).await;
        assert_eq!(answer.frames().1["grpc-status"], "0", "{written}");
    }
    let text = STANDARD.encode(ask("hello"));
    let answer = function.answer(function_url_event(PATH, "APPLICATION/GRPC-WEB-TEXT", text.as_bytes())).await;
    assert_eq!(answer.text_frames().1["grpc-status"], "0");
}

#[tokio::test]
async fn malformed_event_is_answered_and_function_continues() {
    let mut function = start_demo().await;
    let mut not_base64 = chat("hello");
    not_base64["body"] = "!".into();
    let rejected = function.answer(not_base64).await;
    assert_eq!((rejected.status, rejected.frames().1["grpc-status"].as_str()), (200, "3"), "{rejected:?}");
    let mut strange_path = chat("hello");
    strange_path["rawPath"] = "/a b/\u{1}ü/StreamChat?x".into();
    assert_eq!(function.answer(strange_path).await.frames().1["grpc-status"], "12");
    let mut without_body = chat("hello");
    without_body.as_object_mut().unwrap().remove("body");
    assert_ne!(function.answer(without_body).await.frames().1["grpc-status"], "0", "an empty body is no message");
    for no_request in [json!(null), json!({}), json!([1]), json!({"Records": [{"eventSource": "aws:sqs"}]}), json!("x")]
    {
        let rejected = function.answer(no_request.clone()).await;
        assert_eq!((rejected.status, rejected.body.len()), (400, 0), "{no_request}");
    }
    assert_eq!(function.answer(chat("hello")).await.frames().1["grpc-status"], "0");
}

#[tokio::test]
async fn message_size_limit_equals_that_of_the_server() {
    let mut function = start_demo().await;
    // Above tonic's default limit of 4 MiB the contract's own limit applies.
    let long = function.answer(chat(&"x".repeat(5 << 20))).await.frames().1;
    assert_eq!(long["grpc-status"], "3", "{long:?}");
    assert!(long["grpc-message"].contains("message"), "{long:?}");
    // Rejected by its length prefix, before the message arrives.
    let mut too_large = grpc_frame(b"");
    too_large[1..5].copy_from_slice(&(51_u32 << 20).to_be_bytes());
    let rejected = function.answer(function_url_event(PATH, GRPC_WEB, &too_large)).await.frames().1;
    assert_eq!(rejected["grpc-status"], "8", "{rejected:?}");
}
