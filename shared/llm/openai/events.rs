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

/// Ends the last event where a server forgets the empty line, which the parser would otherwise drop. Two line ends,
/// because the first one may only end the line.
const END: Bytes = Bytes::from_static(b"\n\n");

/// The chunks of one response.
pub(super) struct Events {
    sses: Pin<Box<dyn Stream<Item = Result<Sse, Error>> + Send>>,
    /// Bytes that came since the last event; shared with the stream that counts them.
    since_event: Arc<AtomicUsize>,
    done: bool,
}

impl Events {
    /// Reads a byte stream, however it is cut into pieces.
    pub(super) fn new<E>(bytes: impl Stream<Item = Result<Bytes, E>> + Send + 'static) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let since_event = Arc::new(AtomicUsize::new(0));
        let counter = since_event.clone();
        let bounded = bytes.map_err(io::Error::other).chain(stream::iter([Ok(END)])).map(move |piece| {
            let piece = piece?;
            // The piece itself is of bounded size and may hold many events: what counts is what came before it.
            if counter.fetch_add(piece.len(), Ordering::Relaxed) > MAX_EVENT_BYTES {
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, "an event is too large"));
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
                Err(Error::Body(error)) => return Err(ModelError::new(ModelErrorKind::Cut, with_causes(&*error))),
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
                json => return Chunk::parse(json).map(Some),
            }
        }
        Ok(None)
    }

    /// Reads what is left, which is of no interest.
    pub(super) async fn rest(&mut self) {
        while let Some(Ok(_)) = self.sses.next().await {}
    }

    /// Whether the server said that the answer is complete.
    pub(super) fn done(&self) -> bool {
        self.done
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    async fn contents(pieces: Vec<Bytes>) -> Result<(Vec<String>, bool), ModelError> {
        let mut events = Events::new(stream::iter(pieces.into_iter().map(Ok::<_, io::Error>)));
        let mut contents = Vec::new();
        while let Some(chunk) = events.next().await? {
            contents.extend(chunk.choices.into_iter().flatten().filter_map(|choice| choice.delta?.content));
        }
        Ok((contents, events.done()))
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
        fn any_cut_of_the_bytes_gives_the_same_chunks(cuts in prop::collection::vec(0..ANSWER.len(), 0..40)) {
            let mut cuts = cuts;
            cuts.extend([0, ANSWER.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|w| Bytes::copy_from_slice(&ANSWER.as_bytes()[w[0]..w[1]])).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (contents, done) = runtime.block_on(contents(pieces)).unwrap();
            prop_assert_eq!(contents.concat(), "线性代数 🎓");
            prop_assert!(done);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _ = runtime.block_on(contents(vec![Bytes::from(bytes)]));
        }
    }

    #[tokio::test]
    async fn one_byte_at_a_time_is_as_good_as_the_whole() {
        let pieces = ANSWER.bytes().map(|byte| Bytes::copy_from_slice(&[byte])).collect();
        assert_eq!(contents(pieces).await.unwrap(), (vec![String::new(), "线性".into(), "代数 🎓".into()], true));
    }

    #[tokio::test]
    async fn an_event_that_never_ends_is_cut_off() {
        let piece = Bytes::from(vec![b'x'; 64 * 1024]);
        let pieces = std::iter::once(Bytes::from_static(b"data: ")).chain(std::iter::repeat_n(piece, 100)).collect();
        assert_eq!(contents(pieces).await.unwrap_err().kind, ModelErrorKind::Cut);
    }
}
