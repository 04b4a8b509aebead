//! Reads JSON chunks from the server-sent events of a response.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use sse_stream::{Error, Sse, SseByteStream};

use super::{
    super::error::{ModelError, ModelErrorKind},
    chunk::Chunk,
};
use crate::error::with_causes;

/// Far above any chunk of text, and small enough to be buffered per stream.
const MAX_EVENT_BYTES: usize = 1024 * 1024;

const TOO_LARGE: &str = "an event is too large";

/// Appended to the body: without a blank line the parser drops the last event, and some servers omit it. The first line end may
/// only end a line.
const FINAL_BLANK_LINE: Bytes = Bytes::from_static(b"\n\n");

pub(super) struct SseChunks {
    events: Pin<Box<dyn Stream<Item = Result<Sse, Error>> + Send>>,
    /// Shared with the byte stream that counts.
    bytes_since_event: Arc<AtomicUsize>,
    is_done: bool,
}

impl SseChunks {
    pub(super) fn new<E>(bytes: impl Stream<Item = Result<Bytes, E>> + Send + 'static) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let bytes_since_event = Arc::new(AtomicUsize::new(0));
        let counter = bytes_since_event.clone();
        let bounded = bytes.map_err(io::Error::other).chain(stream::iter([Ok(FINAL_BLANK_LINE)])).map(move |piece| {
            let piece = piece?;
            // A piece has a bounded size and may hold many events, so only the bytes before it count.
            if counter.fetch_add(piece.len(), Ordering::Relaxed) > MAX_EVENT_BYTES {
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, TOO_LARGE));
            }
            Ok(piece)
        });
        Self { events: Box::pin(SseByteStream::new(bounded)), bytes_since_event, is_done: false }
    }

    /// `None` at `[DONE]` or at the end of the response.
    pub(super) async fn next(&mut self) -> Result<Option<Chunk>, ModelError> {
        while let Some(event) = self.events.next().await {
            self.bytes_since_event.store(0, Ordering::Relaxed);
            let data = match event {
                Ok(event) => event.data.unwrap_or_default(),
                Err(Error::Body(error)) => return Err(stream_error(&*error)),
                Err(error) => return Err(ModelError::new(ModelErrorKind::Malformed, error.to_string())),
            };
            match data.trim() {
                // Keep-alives of some servers: empty events, or a bare `:ping`.
                "" => {}
                ping if ping.starts_with(':') => {}
                "[DONE]" => {
                    self.is_done = true;
                    return Ok(None);
                }
                json => return Chunk::parse(json.as_bytes()).map(Some),
            }
        }
        Ok(None)
    }

    pub(super) async fn drain(&mut self) {
        while let Some(Ok(_)) = self.events.next().await {}
    }

    pub(super) fn is_done(&self) -> bool {
        self.is_done
    }
}

fn stream_error(error: &(dyn std::error::Error + 'static)) -> ModelError {
    let detail = with_causes(error);
    let kind = if detail.contains(TOO_LARGE) { ModelErrorKind::Malformed } else { ModelErrorKind::Truncated };
    ModelError::new(kind, detail)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::parse_pieces, *};

    fn outcome(pieces: Vec<Bytes>) -> (String, String) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(parse_pieces(pieces))
    }

    fn whole(bytes: &[u8]) -> (String, String) {
        outcome(vec![Bytes::copy_from_slice(bytes)])
    }

    fn cut(bytes: &[u8], at: &[usize]) -> Vec<Bytes> {
        let mut at: Vec<_> = at.iter().map(|at| at % (bytes.len() + 1)).chain([0, bytes.len()]).collect();
        at.sort_unstable();
        at.windows(2).map(|w| Bytes::copy_from_slice(&bytes[w[0]..w[1]])).collect()
    }

    const ANSWER: &str = concat!(
        ": comment\r\n\r\n",
        "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\r\n\r\n",
        "data:{\"choices\":[{\"delta\":{\"content\":\"线性\"}}]}\n\n",
        "data:\n\n",
        "data: :ping\r\r",
        "event: message\ndata: {\"choices\":[{\"delta\":{\"content\":\"代数 🎓\"}}]}\n\n",
        "data: {\"choices\":[],\"usage\":{}}\n\n",
        "data: [DONE]",
    );

    proptest! {
        #[test]
        fn any_split_of_an_answer_parses_alike(at in prop::collection::vec(any::<usize>(), 0..40)) {
            let expected = ("线性代数 🎓".to_owned(), "Ok(Finished(Stop))".to_owned());
            prop_assert_eq!(outcome(cut(ANSWER.as_bytes(), &at)), expected);
        }

        #[test]
        fn any_split_of_any_bytes_parses_alike(
            lines in prop::collection::vec(
                prop_oneof![
                    Just("data: {\"choices\":[{\"delta\":{\"content\":\"数\"}}]}".as_bytes().to_vec()),
                    Just(b"data: [DONE]".to_vec()),
                    Just(b"data: {\"error\": \"x\"}".to_vec()),
                    Just(b":".to_vec()), Just(b"\n".to_vec()), Just(b"\r".to_vec()), Just(b"\r\n".to_vec()),
                    Just("\u{feff}".as_bytes().to_vec()), Just(b"id: 1".to_vec()), Just(b"retry: x".to_vec()),
                    prop::collection::vec(any::<u8>(), 0..20),
                ],
                0..24,
            ),
            at in prop::collection::vec(any::<usize>(), 0..40),
        ) {
            let bytes = lines.concat();
            prop_assert_eq!(outcome(cut(&bytes, &at)), whole(&bytes));
        }

        #[test]
        fn no_bytes_cause_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let _ = whole(&bytes);
        }
    }

    #[test]
    fn single_bytes_parse_like_the_whole() {
        let pieces = ANSWER.bytes().map(|byte| Bytes::copy_from_slice(&[byte])).collect();
        assert_eq!(outcome(pieces), ("线性代数 🎓".to_owned(), "Ok(Finished(Stop))".to_owned()));
    }

    #[tokio::test]
    async fn endless_event_is_malformed() {
        let piece = Bytes::from(vec![b'x'; 64 * 1024]);
        let pieces = std::iter::once(Bytes::from_static(b"data: ")).chain(std::iter::repeat_n(piece, 100)).collect();
        assert_eq!(parse_pieces(pieces).await.1, "Err(Malformed)");
    }
}
