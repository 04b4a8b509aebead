//! The fields that all frames of a stream share.

use bytes::Bytes;
use prost::Message as _;
use uuid::Uuid;

use crate::{
    identity::{RequestId, SessionId, TraceId},
    proto::{
        agent_v1 as pb,
        chat_frame::{ChatFrame, FrameHead},
    },
};

/// More frames than a run can have: each takes at least two bytes of its log.
const MAX_FRAMES: u32 = 1 << 26;

#[derive(Debug, Clone)]
pub(super) struct Envelope {
    session: SessionId,
    head: FrameHead,
}

impl Envelope {
    pub(super) fn new(session: SessionId, request: &RequestId, trace: &TraceId) -> Self {
        let mut buffer = Uuid::encode_buffer();
        Self::with_stream_id(Uuid::now_v7().simple().encode_lower(&mut buffer), session, request, trace)
    }

    /// Of the frame of a refused request, whose ids may be missing or invalid.
    pub(super) fn of_refusal(session: &str, request: &str, trace: &TraceId) -> Self {
        let session = SessionId::parse("session_id", session).unwrap_or_else(|_| SessionId::generate());
        let request = RequestId::parse("request_id", request).unwrap_or_else(|_| RequestId::generate());
        Self::new(session, &request, trace)
    }

    fn with_stream_id(stream_id: &str, session: SessionId, request: &RequestId, trace: &TraceId) -> Self {
        let fields = pb::ChatResponse {
            request_id: request.as_str().to_owned(),
            session_id: session.as_str().to_owned(),
            trace_id: trace.as_str().to_owned(),
            ..Default::default()
        };
        Self { session, head: FrameHead::new(stream_id, &fields.encode_to_vec()) }
    }

    pub(super) fn session(&self) -> &SessionId {
        &self.session
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let stream_id = self.head.stream_id().to_owned();
        let mut bytes = pb::ChatResponse { response_id: stream_id, ..Default::default() }.encode_to_vec();
        bytes.extend_from_slice(self.head.fields());
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let head = pb::ChatResponse::decode(bytes).ok()?;
        let session = SessionId::parse("session_id", &head.session_id).ok()?;
        let request = RequestId::parse("request_id", &head.request_id).ok()?;
        let trace = TraceId::from_call(None, Some(&head.trace_id), "");
        Some(Self::with_stream_id(&head.response_id, session, &request, &trace))
    }

    /// The first frame has number 1.
    pub(super) fn wrap(&self, number: u32, content: Bytes) -> ChatFrame {
        ChatFrame { head: self.head.clone(), number, content }
    }

    /// The number of the frame with this `response_id`; `None` for one that no frame of this stream can have.
    pub(super) fn frame_number(&self, response_id: &str) -> Option<u32> {
        let number = response_id.strip_prefix(self.head.stream_id())?.strip_prefix('-')?;
        let is_hex = number.len() == 8 && number.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let number = u32::from_str_radix(number, 16).ok().filter(|_| is_hex)?;
        (1..=MAX_FRAMES).contains(&number).then_some(number)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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

    fn id_of(envelope: &Envelope, number: u32) -> String {
        format!("{}-{number:08x}", envelope.head.stream_id())
    }

    #[test]
    fn frame_number_is_only_read_from_ids_of_the_stream() {
        let envelope = envelope();
        let id = id_of(&envelope, 0x1f);
        assert_eq!(envelope.frame_number(&id), Some(0x1f));
        for other in
            ["", "x-00000001", &id[..id.len() - 1], &format!("{id}0"), &id.replace("-0", "-+"), &id.replace('f', "F")]
        {
            assert_eq!(envelope.frame_number(other), None, "{other}");
        }
        for number in [0, MAX_FRAMES + 1, u32::MAX] {
            assert_eq!(envelope.frame_number(&id_of(&envelope, number)), None, "{number:x}");
        }
    }

    proptest! {
        #[test]
        fn frame_number_of_any_text_is_that_of_its_id(text in ".{0,60}", number in any::<u32>()) {
            let envelope = envelope();
            prop_assert_eq!(envelope.frame_number(&text), None);
            let suffixed = format!("{}-{text}", envelope.head.stream_id());
            for id in [suffixed, id_of(&envelope, number)] {
                if let Some(number) = envelope.frame_number(&id) {
                    prop_assert_eq!(id_of(&envelope, number), id);
                }
            }
        }
    }
}
