//! Bounds the bytes of incomplete messages on one connection. tonic reserves the whole length of a message when it has read its
//! head, so that a few bytes on each of many streams would reserve gigabytes.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use http::Request;
use http_body::{Frame, SizeHint};
use tonic::{Status, body::Body};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::transport::{connection_slot::ConnectionSlot, services::MAX_MESSAGE_BYTES};

/// A gateway sends the messages of all its users over one connection, each within moments.
const MAX_BYTES: usize = 128 * 1024 * 1024;
/// Before a call on the connection is authenticated: health checks and reflection.
const MAX_UNAUTHENTICATED_BYTES: usize = 1024 * 1024;
/// Compression flag and length of a message.
const HEAD_BYTES: usize = 5;
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// In the extensions of each request of a connection.
#[derive(Clone)]
pub(super) struct MessageBudget {
    reserved: Arc<AtomicUsize>,
    slot: ConnectionSlot,
}

impl MessageBudget {
    pub(super) fn new(slot: ConnectionSlot) -> Self {
        Self { reserved: Arc::default(), slot }
    }

    /// Of the whole connection, after the reservation. It is refused beyond the bound; no call waits for another one, because
    /// the data of a waiting call would fill the window of the connection.
    fn reserve(&self, bytes: usize) -> Result<(), Status> {
        let limit = if self.slot.is_authenticated() { MAX_BYTES } else { MAX_UNAUTHENTICATED_BYTES };
        let reserved = self.reserved.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if reserved <= limit {
            return Ok(());
        }
        self.release(bytes);
        let message = format!(
            "a message of {bytes} bytes does not fit: the incomplete messages of this connection have {} bytes, the limit is {limit} \
             bytes",
            reserved - bytes
        );
        let details = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
        Err(Status::with_error_details(tonic::Code::ResourceExhausted, message, details))
    }

    fn release(&self, bytes: usize) {
        self.reserved.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Stands behind tonic-web, so that the status is not wrapped in another.
pub(super) fn limit(mut request: Request<Body>) -> Request<Body> {
    match request.extensions_mut().remove::<MessageBudget>() {
        Some(budget) => {
            request.map(|body| Body::new(BudgetedBody { body, budget, messages: MessageReader::default() }))
        }
        None => request,
    }
}

struct BudgetedBody {
    body: Body,
    budget: MessageBudget,
    messages: MessageReader,
}

/// Follows the heads of length-prefixed messages.
#[derive(Debug, Default)]
struct MessageReader {
    head: [u8; HEAD_BYTES],
    head_length: usize,
    /// Of the current message.
    missing: usize,
    /// Of the current message, in the budget.
    reserved: usize,
}

impl MessageReader {
    /// Calls `reserve` with the length of each message whose head is complete, and `release` with that of each that is.
    fn read(
        &mut self,
        mut data: &[u8],
        mut reserve: impl FnMut(usize) -> Result<(), Status>,
        mut release: impl FnMut(usize),
    ) -> Result<(), Status> {
        while !data.is_empty() {
            if self.missing > 0 {
                let part = self.missing.min(data.len());
                data.advance(part);
                self.missing -= part;
            } else {
                self.head[self.head_length] = data.get_u8();
                self.head_length += 1;
                if self.head_length < HEAD_BYTES {
                    continue;
                }
                let [_, length @ ..] = self.head;
                let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                self.head_length = 0;
                // tonic refuses a longer message before it reserves anything.
                if length <= MAX_MESSAGE_BYTES {
                    reserve(length)?;
                    self.reserved = length;
                }
                self.missing = length;
            }
            if self.missing == 0 && self.head_length == 0 {
                release(std::mem::take(&mut self.reserved));
            }
        }
        Ok(())
    }
}

impl http_body::Body for BudgetedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            let budget = &this.budget;
            let read = this.messages.read(data, |bytes| budget.reserve(bytes), |bytes| budget.release(bytes));
            if let Err(status) = read {
                this.body = Body::empty();
                return Poll::Ready(Some(Err(status)));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for BudgetedBody {
    fn drop(&mut self) {
        self.budget.release(self.messages.reserved);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(length: usize) -> Vec<u8> {
        let length = u32::try_from(length).unwrap();
        [&[0][..], &length.to_be_bytes(), &vec![7; length as usize]].concat()
    }

    /// The lengths that were reserved and released while these pieces were read.
    fn read(pieces: &[&[u8]]) -> (Vec<usize>, Vec<usize>) {
        let mut reader = MessageReader::default();
        let (mut reserved, mut released) = (Vec::new(), Vec::new());
        for piece in pieces {
            let reserve = |bytes| {
                reserved.push(bytes);
                Ok(())
            };
            reader.read(piece, reserve, |bytes| released.push(bytes)).unwrap();
        }
        (reserved, released)
    }

    proptest! {
        #[test]
        fn each_message_is_reserved_once_wherever_it_is_cut(
            lengths in prop::collection::vec(0_usize..40, 0..6),
            cut in 0_usize..300,
        ) {
            let bytes: Vec<u8> = lengths.iter().flat_map(|length| frame(*length)).collect();
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            prop_assert_eq!(read(&[first, second]), (lengths.clone(), lengths));
        }
    }

    #[test]
    fn declared_length_is_reserved_at_its_head() {
        let head = |length: u32| [&[0][..], &length.to_be_bytes()].concat();
        let declared = head(50 * 1024 * 1024);
        assert!(read(&[&declared[..4]]).0.is_empty());
        assert_eq!(read(&[&declared]), (vec![MAX_MESSAGE_BYTES], vec![]));
        assert_eq!(read(&[&head(u32::MAX), b"xxx"]), (vec![], vec![]), "tonic refuses it");
    }
}
