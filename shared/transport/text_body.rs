//! Bodies of `grpc-web-text` requests: base64 that may be padded at any place, because clients encode each piece that they send
//! on its own (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md>). tonic-web decodes only a body that was encoded as
//! a whole.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Buf as _, Bytes, BytesMut};
use http::Request;
use http_body::Frame;
use tonic::{Status, body::Body};

/// In the extensions of a request: its body is base64.
#[derive(Debug, Clone, Copy)]
pub(super) struct TextBody;

/// Stands behind tonic-web, which takes the request for a binary one, so that the client gets the error of the decoder itself.
pub(super) fn decode(mut request: Request<Body>) -> Request<Body> {
    match request.extensions_mut().remove::<TextBody>() {
        Some(TextBody) => request.map(|body| Body::new(DecodedBody { body, rest: BytesMut::new() })),
        None => request,
    }
}

struct DecodedBody {
    body: Body,
    /// The begin of a group of four characters.
    rest: BytesMut,
}

impl http_body::Body for DecodedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            let data = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None if self.rest.is_empty() => return Poll::Ready(None),
                None => {
                    self.rest.clear();
                    return Poll::Ready(Some(Err(not_base64())));
                }
            };
            self.rest.extend_from_slice(&data);
            match decode_groups(&mut self.rest) {
                Ok(decoded) if decoded.is_empty() => {}
                Ok(decoded) => return Poll::Ready(Some(Ok(Frame::data(decoded.into())))),
                Err(_) => return Poll::Ready(Some(Err(not_base64()))),
            }
        }
    }
}

/// Takes the complete groups of four characters from `text`.
fn decode_groups(text: &mut BytesMut) -> Result<Vec<u8>, base64::DecodeError> {
    let mut complete = text.split_to(text.len() - text.len() % 4);
    let mut decoded = Vec::with_capacity(complete.len() / 4 * 3);
    while !complete.is_empty() {
        // The padding ends a segment with the group that it is in.
        let padding = complete.iter().position(|byte| *byte == b'=');
        let end = padding.map_or(complete.len(), |padding| padding - padding % 4 + 4);
        STANDARD.decode_vec(&complete[..end], &mut decoded)?;
        complete.advance(end);
    }
    Ok(decoded)
}

fn not_base64() -> Status {
    Status::invalid_argument("the body of the request is not valid base64")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(pieces: &[&[u8]]) -> Result<Vec<u8>, ()> {
        let mut rest = BytesMut::new();
        let mut decoded = Vec::new();
        for piece in pieces {
            rest.extend_from_slice(piece);
            decoded.extend(decode_groups(&mut rest).map_err(drop)?);
        }
        if rest.is_empty() { Ok(decoded) } else { Err(()) }
    }

    proptest! {
        #[test]
        fn segments_decode_wherever_the_body_is_cut(
            segments in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..6),
            cut in 0_usize..400,
        ) {
            let text: String = segments.iter().map(|segment| STANDARD.encode(segment)).collect();
            let (first, second) = text.as_bytes().split_at(cut.min(text.len()));
            prop_assert_eq!(decode(&[first, second]), Ok(segments.concat()));
        }

        #[test]
        fn any_bytes_decode_or_fail(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = decode(&[&bytes]);
        }
    }

    #[test]
    fn misplaced_padding_is_an_error() {
        for text in ["AA=A", "=AAA", "A===", "AAAA=", "AA", "AA==A", "AA==A===", "A-__", "AA A"] {
            assert_eq!(decode(&[text.as_bytes()]), Err(()), "{text}");
        }
    }
}
