//! Reads frames of a chat, and checks the grammar that the contract promises of every stream.

use std::collections::BTreeMap;

use agent_service::proto::agent_v1::{self as pb, chat_response::Content};

pub fn frame_kind(frame: &pb::ChatResponse) -> &'static str {
    match frame.content.as_ref() {
        Some(Content::StatusUpdate(status)) => status.state().as_str_name(),
        Some(Content::Delta(_)) => "delta",
        Some(Content::ToolCall(_)) => "tool_call",
        Some(Content::FullText(_)) => "full_text",
        Some(Content::Error(_)) => "error",
        Some(Content::Usage(_)) => "usage",
        Some(Content::Citations(_)) => "citations",
        Some(Content::ToolResult(_)) => "tool_result",
        None => "nothing",
    }
}

const STATES: [&str; 4] = ["THINKING", "SEARCHING", "GENERATING", "EXECUTING_TOOL"];

/// The kinds of frames in order, without adjacent repetitions.
pub fn outline(frames: &[pb::ChatResponse]) -> Vec<&'static str> {
    let mut kinds: Vec<_> = frames.iter().map(frame_kind).collect();
    kinds.dedup();
    kinds
}

pub fn joined_deltas(frames: &[pb::ChatResponse]) -> String {
    frames
        .iter()
        .filter_map(|frame| match &frame.content {
            Some(Content::Delta(delta)) => Some(delta.as_str()),
            _ => None,
        })
        .collect()
}

pub fn error_of(frames: &[pb::ChatResponse]) -> &pb::Error {
    match frames.last().and_then(|frame| frame.content.as_ref()) {
        Some(Content::Error(error)) => error,
        other => panic!("the last frame is {other:?}"),
    }
}

pub fn usage_of(frames: &[pb::ChatResponse]) -> (&pb::Usage, &BTreeMap<String, String>) {
    let usage = frames.iter().find_map(|frame| match &frame.content {
        Some(Content::Usage(usage)) => Some((usage, &frame.metadata)),
        _ => None,
    });
    usage.expect("no usage frame")
}

pub fn assert_contract(frames: &[pb::ChatResponse]) {
    let mut kinds: Vec<_> = frames.iter().map(frame_kind).collect();
    // A status may be repeated while nothing else is sent.
    kinds.dedup_by(|kind, before| kind == before && STATES.contains(kind));
    let last = frames.last().expect("the stream has no frames");
    assert_eq!(kinds[0], "THINKING", "{kinds:?}");
    let (finished, open): (Vec<_>, Vec<_>) =
        frames.iter().partition(|frame| frame.finish_reason() != pb::FinishReason::Null);
    assert_eq!((finished.len(), open.len()), (1, frames.len() - 1), "exactly one frame ends the stream");
    assert_eq!(finished[0].response_id, last.response_id, "the last frame ends the stream");

    // THINKING [SEARCHING [citations]] (GENERATING delta* [EXECUTING_TOOL tool_result* tool_call*])* [usage] (nothing | full_text | error)
    let mut rest = &kinds[1..];
    let mut skip = |kind: &str| {
        let found = rest.first() == Some(&kind);
        if found {
            rest = &rest[1..];
        }
        found
    };
    if skip("SEARCHING") {
        skip("citations");
    }
    let mut called = false;
    while skip("GENERATING") {
        while skip("delta") {}
        if skip("EXECUTING_TOOL") {
            while skip("tool_result") {}
            while skip("tool_call") {
                called = true;
            }
        }
    }
    let has_usage = skip("usage");
    if skip("nothing") {
        assert!(called == has_usage, "tool calls come with usage: {kinds:?}");
        let expected = if called { pb::FinishReason::ToolCalls } else { pb::FinishReason::Continue };
        assert_eq!(last.finish_reason(), expected);
    } else if skip("full_text") {
        assert!(has_usage, "an answer comes with usage: {kinds:?}");
        match &last.content {
            Some(Content::FullText(text)) => assert_eq!(*text, joined_deltas(frames)),
            other => panic!("{other:?}"),
        }
    } else {
        assert!(skip("error"), "{kinds:?}");
        assert_eq!(last.finish_reason(), pb::FinishReason::Error);
    }
    assert!(rest.is_empty(), "{kinds:?}");

    for pair in frames.windows(2) {
        assert_eq!(pair[0].response_id.len(), pair[1].response_id.len(), "response ids have a fixed width");
        assert!(pair[0].response_id < pair[1].response_id, "response ids ascend bytewise");
    }
    for frame in frames {
        assert!(frame.created_at > 1_700_000_000 && frame.event_time.is_some());
        for id in [&frame.response_id, &frame.request_id, &frame.session_id, &frame.trace_id, &frame.prompt_version] {
            assert!(!id.is_empty(), "{frame:?}");
        }
        assert_eq!((&frame.request_id, &frame.session_id), (&last.request_id, &last.session_id));
    }
}
