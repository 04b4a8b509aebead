//! The stream of `ExportMemories`.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::{Stream, future::BoxFuture, stream::BoxStream};
use tonic::Status;

use super::{call::RpcCall, convert, error::RpcError as _, limits::OpenStream};
use crate::{
    language::Language,
    memory::{ExportedMemory, MemoryError},
    proto::agent_v1 as pb,
};

/// An export that fails ends with an error status, so that a part is never taken for the whole.
pub struct MemoryRecordStream {
    memories: BoxStream<'static, Result<ExportedMemory, MemoryError>>,
    /// Ends the export early.
    interrupted: BoxFuture<'static, Status>,
    rpc: RpcCall,
    language: Language,
    has_ended: bool,
    _open: Option<OpenStream>,
}

impl MemoryRecordStream {
    pub(super) fn new(
        memories: BoxStream<'static, Result<ExportedMemory, MemoryError>>,
        interrupted: BoxFuture<'static, Status>,
        rpc: RpcCall,
        language: Language,
        open: Option<OpenStream>,
    ) -> Self {
        Self { memories, interrupted, rpc, language, has_ended: false, _open: open }
    }
}

impl Stream for MemoryRecordStream {
    type Item = Result<pb::MemoryRecord, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.has_ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready(status) = this.interrupted.as_mut().poll(context) {
            this.has_ended = true;
            return Poll::Ready(Some(Err(this.rpc.fail(status))));
        }
        // After a panic the stream is never polled again, so that no broken state is seen.
        let next = match catch_unwind(AssertUnwindSafe(|| this.memories.as_mut().poll_next(context))) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(next)) => next,
            Err(_panic) => Some(Err(MemoryError::Internal)),
        };
        Poll::Ready(match next {
            Some(Ok(ExportedMemory { memory, history })) => Some(Ok(convert::memory_record(memory, history))),
            Some(Err(error)) => {
                this.has_ended = true;
                let status = this.rpc.span().in_scope(|| error.status(this.language));
                Some(Err(this.rpc.fail(status)))
            }
            None => {
                this.has_ended = true;
                this.rpc.succeed();
                None
            }
        })
    }
}
