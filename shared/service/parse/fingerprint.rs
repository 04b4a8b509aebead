//! The fingerprint of a chat request, by which a repeated `request_id` is distinguished from a reused one (idempotency).

use bytes::{BufMut, buf::UninitSlice};
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use crate::proto::agent_v1 as pb;

/// SHA-256 of the request's canonical encoding: maps are ordered and unknown fields are absent, so that a retry which the
/// client encoded again has the same fingerprint. Stores compare it for the whole idempotency window; the encoding must not
/// change between versions.
pub(super) fn fingerprint(request: &pb::ChatRequest) -> [u8; 32] {
    let mut hasher = HashingBuffer { hasher: Sha256::new(), scratch: [0; SCRATCH_BYTES] };
    request.encode_raw(&mut hasher);
    hasher.hasher.finalize().into()
}

/// Enough for the tags, lengths and numbers between strings, which are hashed where they are.
const SCRATCH_BYTES: usize = 64;

/// Hashes an encoding while it is written, because a request may have megabytes.
struct HashingBuffer {
    hasher: Sha256,
    scratch: [u8; SCRATCH_BYTES],
}

#[expect(unsafe_code, reason = "prost encodes into a BufMut, and hashing a copy would double a request of megabytes")]
// SAFETY: `chunk_mut` always returns the whole of `scratch`, which is initialized, so that `advance_mut` never claims bytes
// that were not there.
unsafe impl BufMut for HashingBuffer {
    fn remaining_mut(&self) -> usize {
        usize::MAX
    }

    unsafe fn advance_mut(&mut self, count: usize) {
        self.hasher.update(&self.scratch[..count]);
    }

    fn chunk_mut(&mut self) -> &mut UninitSlice {
        UninitSlice::new(&mut self.scratch)
    }

    fn put_slice(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn fingerprint_is_the_hash_of_the_encoding(
            message in ".{0,300}",
            history in prop::collection::vec((".{0,100}", any::<i32>()), 0..5),
        ) {
            let history = history.into_iter().map(|(content, number)| pb::ChatMessage {
                content,
                metadata: [(number.to_string(), "x".to_owned())].into(),
                ..Default::default()
            });
            let request = pb::ChatRequest {
                user_id: "ann".to_owned(),
                history: history.collect(),
                config: Some(pb::ChatConfig { temperature: Some(0.5), max_tokens: Some(7), ..Default::default() }),
                input: Some(pb::chat_request::Input::Message(message)),
                ..Default::default()
            };
            let expected: [u8; 32] = Sha256::digest(request.encode_to_vec()).into();
            prop_assert_eq!(fingerprint(&request), expected);
        }
    }
}
