//! From the bytes of a response to the JSON chunks in it.

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
    super::{ModelError, ModelErrorKind},
    chunk::Chunk,
};
use crate::error::with_causes;

/// Most bytes of a stream from one event to the next: far above any chunk of text, far below what hurts.
const MAX_EVENT_BYTES: usize = 1024 * 1024;

const TOO_LARGE: &str = "an event is too large";

/// Ends the last event where a server forgets the empty line, which the parser would otherwise drop. Two line ends,
/// because the first one may only end the line.
const FINAL_BLANK_LINE: Bytes = Bytes::from_static(b"\n\n");

/// The chunks of one response.
pub(super) struct SseChunks {
    sses: Pin<Box<dyn Stream<Item = Result<Sse, Error>> + Send>>,
    /// Bytes that came since the last event; shared with the stream that counts them.
    since_event: Arc<AtomicUsize>,
    done: bool,
}

impl SseChunks {
    /// Reads a byte stream, however it is cut into pieces.
    pub(super) fn new<E>(bytes: impl Stream<Item = Result<Bytes, E>> + Send + 'static) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let since_event = Arc::new(AtomicUsize::new(0));
        let counter = since_event.clone();
        let bounded = bytes.map_err(io::Error::other).chain(stream::iter([Ok(FINAL_BLANK_LINE)])).map(move |piece| {
            let piece = piece?;
            // The piece itself is of bounded size and may hold many events: what counts is what came before it.
            if counter.fetch_add(piece.len(), Ordering::Relaxed) > MAX_EVENT_BYTES {
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, TOO_LARGE));
            }
            Ok(piece)
        });
        Self { sses: Box::pin(SseByteStream::new(bounded)), since_event, done: false }
    }

    /// The next chunk; `None` at `[DONE]` or where the response ends.
    pub(super) async fn next(&mut self) -> Result<Option<Chunk>, ModelError> {
        while let Some(sse) = self.sses.next().await {
            self.since_event.store(0, Ordering::Relaxed);
            let data = match sse {
                Ok(sse) => sse.data.unwrap_or_default(),
                Err(Error::Body(error)) => return Err(stream_error(&*error)),
                Err(error) => return Err(ModelError::new(ModelErrorKind::Malformed, error.to_string())),
            };
            match data.trim() {
                // Some servers keep a connection alive by empty events or a bare `:ping`.
                "" => {}
                ping if ping.starts_with(':') => {}
                "[DONE]" => {
                    self.done = true;
                    return Ok(None);
                }
                json => return Chunk::parse(json.as_bytes()).map(Some),
            }
        }
        Ok(None)
    }

    /// Reads what is left, which is of no interest.
    pub(super) async fn drain(&mut self) {
        while let Some(Ok(_)) = self.sses.next().await {}
    }

    /// Whether the server said that the answer is complete.
    pub(super) fn is_done(&self) -> bool {
        self.done
    }
}

/// Why the bytes ended early: the connection broke, or we gave up.
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
        fn any_cut_of_an_answer_comes_to_the_same(at in prop::collection::vec(any::<usize>(), 0..40)) {
            let expected = ("线性代数 🎓".to_owned(), "Ok(Finished(Stop))".to_owned());
            prop_assert_eq!(outcome(cut(ANSWER.as_bytes(), &at)), expected);
        }

        #[test]
        fn any_cut_of_any_bytes_comes_to_the_same_as_the_whole(
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
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let _ = whole(&bytes);
        }
    }

    #[test]
    fn one_byte_at_a_time_is_as_good_as_the_whole() {
        let pieces = ANSWER.bytes().map(|byte| Bytes::copy_from_slice(&[byte])).collect();
        assert_eq!(outcome(pieces), ("线性代数 🎓".to_owned(), "Ok(Finished(Stop))".to_owned()));
    }

    #[tokio::test]
    async fn an_event_that_never_ends_is_cut_off() {
        let piece = Bytes::from(vec![b'x'; 64 * 1024]);
        let pieces = std::iter::once(Bytes::from_static(b"data: ")).chain(std::iter::repeat_n(piece, 100)).collect();
        assert_eq!(parse_pieces(pieces).await.1, "Err(Malformed)");
    }
}
