//! The fields that all frames of a stream share.

use std::fmt::Write as _;

use bytes::Bytes;
use prost::Message as _;
use uuid::Uuid;

use crate::{
    identity::{RequestId, SessionId, TraceId},
    proto::{agent_v1 as pb, chat_frame::ChatFrame},
};

/// Encoded once per stream; cloning it shares the bytes.
#[derive(Debug, Clone)]
pub(super) struct Envelope {
    stream_id: String,
    session: SessionId,
    encoded: Bytes,
}

impl Envelope {
    pub(super) fn new(session: SessionId, request: &RequestId, trace: &TraceId) -> Self {
        Self::with_stream_id(Uuid::now_v7().simple().to_string(), session, request, trace)
    }

    fn with_stream_id(stream_id: String, session: SessionId, request: &RequestId, trace: &TraceId) -> Self {
        let encoded = pb::ChatResponse {
            request_id: request.as_str().to_owned(),
            session_id: session.as_str().to_owned(),
            trace_id: trace.as_str().to_owned(),
            ..Default::default()
        };
        Self { stream_id, session, encoded: encoded.encode_to_vec().into() }
    }

    pub(super) fn session(&self) -> &SessionId {
        &self.session
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = pb::ChatResponse { response_id: self.stream_id.clone(), ..Default::default() }.encode_to_vec();
        bytes.extend_from_slice(&self.encoded);
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let head = pb::ChatResponse::decode(bytes).ok()?;
        let session = SessionId::parse("session_id", &head.session_id).ok()?;
        let request = RequestId::parse("request_id", &head.request_id).ok()?;
        let trace = TraceId::from_call(None, Some(&head.trace_id), "");
        Some(Self::with_stream_id(head.response_id, session, &request, &trace))
    }

    /// The first frame has number 1.
    pub(super) fn wrap(&self, number: u32, content: Bytes) -> ChatFrame {
        ChatFrame { response_id: self.response_id(number), envelope: self.encoded.clone(), content }
    }

    /// Fixed width and ascending within the stream, so that a client can name the last frame it received.
    fn response_id(&self, number: u32) -> String {
        let mut id = String::with_capacity(self.stream_id.len() + 9);
        // Writing to a string cannot fail.
        let _ = write!(id, "{}-{number:08x}", self.stream_id);
        id
    }

    /// `None` for an id of another stream.
    pub(super) fn frame_number(&self, response_id: &str) -> Option<u32> {
        let number = response_id.strip_prefix(self.stream_id.as_str())?.strip_prefix('-')?;
        (number.len() == 8).then(|| u32::from_str_radix(number, 16).ok()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope() -> Envelope {
        Envelope::new(
            SessionId::parse("session_id", "s").unwrap(),
            &RequestId::parse("request_id", "r").unwrap(),
            &TraceId::from_call(None, Some("t"), ""),
        )
    }

    #[test]
    fn stored_envelope_restores_the_same_frames() {
        let envelope = envelope();
        let restored = Envelope::from_bytes(&envelope.to_bytes()).unwrap();
        assert_eq!(restored.wrap(7, Bytes::from_static(b"x")), envelope.wrap(7, Bytes::from_static(b"x")));
        assert_eq!(restored.session(), envelope.session());
    }

    #[test]
    fn frame_number_is_only_read_from_ids_of_the_stream() {
        let envelope = envelope();
        let id = envelope.wrap(0x1f, Bytes::new()).response_id;
        assert!(id.ends_with("-0000001f"), "{id}");
        assert_eq!(envelope.frame_number(&id), Some(0x1f));
        for other in ["", "x-00000001", &id[..id.len() - 1], &format!("{id}0")] {
            assert_eq!(envelope.frame_number(other), None, "{other}");
        }
    }
}
