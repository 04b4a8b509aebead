//! The fields that all frames of a stream share.

use bytes::Bytes;
use prost::Message as _;
use uuid::Uuid;

use crate::{
    identity::{RequestId, SessionId, TraceId},
    proto::{
        agent_v1 as pb,
        chat_frame::{ChatFrame, FrameHead, FramePosition},
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

    pub(super) fn wrap(&self, position: FramePosition, content: Bytes) -> ChatFrame {
        ChatFrame { head: self.head.clone(), position, content }
    }

    /// The position of the frame with this `response_id`; `None` for one that no frame of this stream can have.
    pub(super) fn position(&self, response_id: &str) -> Option<FramePosition> {
        parse_position(response_id.strip_prefix(self.head.stream_id())?.strip_prefix('-')?)
    }

    /// The number of a frame by its `response_id`, whatever stream it belongs to. 0 = no frame has such an id.
    pub(super) fn frame_number(response_id: &str) -> u32 {
        let position = response_id.rsplit_once('-').and_then(|(_, digits)| parse_position(digits));
        position.unwrap_or_default().number
    }
}

fn parse_position(digits: &str) -> Option<FramePosition> {
    if !digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let (number, repetition) = match digits.len() {
        12 => digits.split_at(8),
        // Of a stream that a server without heartbeats began.
        8 => (digits, "0"),
        _ => return None,
    };
    let number = u32::from_str_radix(number, 16).ok().filter(|number| *number <= MAX_FRAMES)?;
    let position = FramePosition { number, repetition: u16::from_str_radix(repetition, 16).ok()? };
    // Before the first frame there are repetitions only.
    (position != FramePosition::default()).then_some(position)
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
        let position = FramePosition { number: 7, repetition: 2 };
        assert_eq!(
            restored.wrap(position, Bytes::from_static(b"x")),
            envelope.wrap(position, Bytes::from_static(b"x"))
        );
        assert_eq!(restored.session(), envelope.session());
    }

    /// As a client reads it.
    fn id_of(envelope: &Envelope, number: u32, repetition: u16) -> String {
        let frame = envelope.wrap(FramePosition { number, repetition }, Bytes::new());
        pb::ChatResponse::decode(frame.to_bytes().as_slice()).unwrap().response_id
    }

    #[test]
    fn position_is_only_read_from_ids_of_the_stream() {
        let envelope = envelope();
        let id = id_of(&envelope, 0x1f, 3);
        assert_eq!(envelope.position(&id), Some(FramePosition { number: 0x1f, repetition: 3 }));
        let earlier = envelope.position(&format!("{}-0000001f", envelope.head.stream_id()));
        assert_eq!(earlier, Some(FramePosition { number: 0x1f, repetition: 0 }));
        let cut = &id[..id.len() - 1];
        for other in ["", "x-000000010000", cut, &format!("{id}0"), &id.replace("-0", "-+"), &id.replace('f', "F")] {
            assert_eq!(envelope.position(other), None, "{other}");
        }
        assert_eq!((Envelope::frame_number(&id), Envelope::frame_number("x")), (0x1f, 0));
        let before_first_frame = FramePosition { number: 0, repetition: 1 };
        assert_eq!(envelope.position(&id_of(&envelope, 0, 1)), Some(before_first_frame));
        for number in [0, MAX_FRAMES + 1, u32::MAX] {
            assert_eq!(envelope.position(&id_of(&envelope, number, 0)), None, "{number:x}");
        }
    }

    #[test]
    fn ids_have_a_fixed_width_and_ascend_with_their_positions() {
        let envelope = envelope();
        let positions = [(1, 0), (1, 1), (1, 2), (1, u16::MAX), (2, 0), (0xff, 0), (0x100, 0), (u32::MAX, u16::MAX)];
        let ids = positions.map(|(number, repetition)| id_of(&envelope, number, repetition));
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1] && pair[0].len() == pair[1].len()), "{ids:?}");
    }

    proptest! {
        #[test]
        fn position_of_any_text_is_that_of_its_id(text in ".{0,60}", number in any::<u32>(), repetition in any::<u16>()) {
            let envelope = envelope();
            prop_assert_eq!(envelope.position(&text), None);
            let suffixed = format!("{}-{text}", envelope.head.stream_id());
            for id in [suffixed, id_of(&envelope, number, repetition)] {
                if let Some(FramePosition { number, repetition }) = envelope.position(&id) {
                    prop_assert!(id_of(&envelope, number, repetition).starts_with(&id));
                }
            }
        }
    }
}
