//! A `ChatResponse` that is sent without being encoded again.

use bytes::Bytes;
use prost::bytes::BufMut;
use tonic::codec::EncodeBuf;

use super::codec::EncodeMessage;

/// A `ChatResponse` in three encoded parts. Protobuf merges concatenated encodings of one message
/// (<https://protobuf.dev/programming-guides/encoding/#last-one-wins>), and no two parts set the same field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatFrame {
    pub response_id: String,
    /// The fields that all frames of a stream share.
    pub envelope: Bytes,
    /// Everything else.
    pub content: Bytes,
}

impl ChatFrame {
    fn write(&self, buffer: &mut impl BufMut) {
        const RESPONSE_ID: u32 = 1;
        prost::encoding::string::encode(RESPONSE_ID, &self.response_id, buffer);
        buffer.put_slice(&self.envelope);
        buffer.put_slice(&self.content);
    }
}

impl EncodeMessage for ChatFrame {
    fn encode_message(&self, buffer: &mut EncodeBuf<'_>) {
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
        let envelope = ChatResponse { session_id: "s".into(), request_id: "r".into(), ..Default::default() };
        let content = Some(Content::Delta("Hello".into()));
        let content = ChatResponse { created_at: 7, content, ..Default::default() };
        let frame = ChatFrame {
            response_id: "id-00000001".into(),
            envelope: envelope.encode_to_vec().into(),
            content: content.encode_to_vec().into(),
        };
        let mut bytes = Vec::new();
        frame.write(&mut bytes);
        let expected = ChatResponse {
            response_id: "id-00000001".into(),
            session_id: "s".into(),
            request_id: "r".into(),
            ..content
        };
        assert_eq!(ChatResponse::decode(bytes.as_slice()).unwrap(), expected);
    }
}
