//! Everything held of one user, as a stream.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::{Stream, future::BoxFuture, stream::BoxStream};
use tonic::Status;

use super::{call::RpcCall, memory::record, status};
use crate::{
    memory::{ExportedMemory, MemoryError},
    proto::agent_v1 as pb,
};

/// The memories of an export. Where it can not go on it ends with a status, so that a part is never taken for the whole.
pub struct MemoryRecordStream {
    records: BoxStream<'static, Result<ExportedMemory, MemoryError>>,
    /// The server stops.
    over: BoxFuture<'static, ()>,
    call: RpcCall,
    ended: bool,
}

impl MemoryRecordStream {
    pub(super) fn new(
        records: BoxStream<'static, Result<ExportedMemory, MemoryError>>,
        over: BoxFuture<'static, ()>,
        call: RpcCall,
    ) -> Self {
        Self { records, over, call, ended: false }
    }
}

impl Stream for MemoryRecordStream {
    type Item = Result<pb::MemoryRecord, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        if this.over.as_mut().poll(context).is_ready() {
            this.ended = true;
            return Poll::Ready(Some(Err(this.call.fail(status::stopping()))));
        }
        // After a panic the stream is never polled again, so that no broken state can be seen.
        let next = catch_unwind(AssertUnwindSafe(|| this.records.as_mut().poll_next(context)));
        let next = match next {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(next)) => next,
            Err(_panic) => Some(Err(MemoryError::Internal)),
        };
        Poll::Ready(match next {
            Some(Ok(ExportedMemory { memory, history })) => Some(Ok(record(memory, history))),
            Some(Err(error)) => {
                this.ended = true;
                let status = this.call.span().in_scope(|| status::memory_failure(&error));
                Some(Err(this.call.fail(status)))
            }
            None => {
                this.ended = true;
                this.call.succeed();
                None
            }
        })
    }
}
