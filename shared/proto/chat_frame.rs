//! A `ChatResponse` that is sent without being encoded again.

use std::ops::Range;

use bytes::Bytes;
use prost::{
    bytes::BufMut,
    encoding::{WireType, encode_key, encode_varint},
};
use tonic::codec::EncodeBuf;

use super::codec::EncodeMessage;

const RESPONSE_ID: u32 = 1;
/// Digits of a frame's position, with the dash before them.
const POSITION_BYTES: usize = 13;

/// The place of a frame in its stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FramePosition {
    /// The first frame has number 1.
    pub number: u32,
    /// 0 is the frame itself; the others are repetitions of a status behind it.
    pub repetition: u16,
}

/// A `ChatResponse` in two encoded parts. Protobuf merges concatenated encodings of one message
/// (<https://protobuf.dev/programming-guides/encoding/#last-one-wins>), and no two parts set the same field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatFrame {
    pub head: FrameHead,
    /// Makes the `response_id` of the frame.
    pub position: FramePosition,
    /// All fields besides the head's and the `response_id`.
    pub content: Bytes,
}

/// Id and fields that all frames of a stream share. It is encoded once; clones share the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameHead {
    /// Key and length of the `response_id`, the id of the stream, then the shared fields.
    encoded: Bytes,
    stream_id: Range<usize>,
}

impl FrameHead {
    /// `fields` is an encoded `ChatResponse` with the shared fields.
    #[must_use]
    pub fn new(stream_id: &str, fields: &[u8]) -> Self {
        let mut encoded = Vec::with_capacity(8 + stream_id.len() + fields.len());
        encode_key(RESPONSE_ID, WireType::LengthDelimited, &mut encoded);
        encode_varint((stream_id.len() + POSITION_BYTES) as u64, &mut encoded);
        let begin = encoded.len();
        encoded.put_slice(stream_id.as_bytes());
        let stream_id = begin..encoded.len();
        encoded.put_slice(fields);
        Self { encoded: encoded.into(), stream_id }
    }

    /// The `response_id`s of the stream begin with it.
    #[must_use]
    pub fn stream_id(&self) -> &str {
        // It came from a string.
        str::from_utf8(&self.encoded[self.stream_id.clone()]).unwrap_or_default()
    }

    #[must_use]
    pub fn fields(&self) -> &[u8] {
        &self.encoded[self.stream_id.end..]
    }
}

impl ChatFrame {
    #[cfg(test)]
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.write(&mut bytes);
        bytes
    }

    fn write(&self, buffer: &mut impl BufMut) {
        let (prefix, fields) = self.head.encoded.split_at(self.head.stream_id.end);
        buffer.put_slice(prefix);
        buffer.put_slice(&position_suffix(self.position));
        buffer.put_slice(fields);
        buffer.put_slice(&self.content);
    }
}

/// Fixed width and ascending, so that a client can name the last frame that it received.
fn position_suffix(FramePosition { number, repetition }: FramePosition) -> [u8; POSITION_BYTES] {
    let mut suffix = *b"-000000000000";
    let digits = u64::from(number) << 16 | u64::from(repetition);
    let nibbles = (0..12).map(|index| digits >> (44 - 4 * index) & 0xf);
    for (digit, nibble) in suffix[1..].iter_mut().zip(nibbles) {
        *digit = b"0123456789abcdef"[nibble as usize];
    }
    suffix
}

impl EncodeMessage for ChatFrame {
    fn encode_message(&self, buffer: &mut EncodeBuf<'_>) {
        buffer.reserve(self.head.encoded.len() + POSITION_BYTES + self.content.len());
        self.write(buffer);
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::proto::agent_v1::{ChatResponse, chat_response::Content};

    #[test]
    fn chat_frame_decodes_to_its_merged_parts() {
        let shared = ChatResponse { session_id: "s".into(), request_id: "r".into(), ..Default::default() };
        let content = Some(Content::Delta("Hello".into()));
        let content = ChatResponse { created_at: 7, content, ..Default::default() };
        for (number, repetition, response_id) in [
            (1, 0, "id-000000010000"),
            (0x1f2e_3d4c, 0x5b6a, "id-1f2e3d4c5b6a"),
            (u32::MAX, u16::MAX, "id-ffffffffffff"),
        ] {
            let position = FramePosition { number, repetition };
            let head = FrameHead::new("id", &shared.encode_to_vec());
            let bytes = ChatFrame { head, position, content: content.encode_to_vec().into() }.to_bytes();
            let expected = ChatResponse {
                response_id: response_id.into(),
                session_id: "s".into(),
                request_id: "r".into(),
                ..content.clone()
            };
            assert_eq!(ChatResponse::decode(bytes.as_slice()).unwrap(), expected);
        }
    }
}
