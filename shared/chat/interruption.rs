//! Ends a turn from outside: cancellation, shutdown, a lost client, or an exceeded deadline.

use std::{future::poll_fn, pin::pin, task::Poll};

use futures_util::future::BoxFuture;

use super::event::TurnFailure;

const MAX_CONSECUTIVE_READY: u8 = 64;

/// Polled only where the work is pending, so that it costs nothing while events flow, and after
/// [`MAX_CONSECUTIVE_READY`] ready polls, so that a provider without a pause cannot defer the end.
pub(super) struct Interruption {
    future: BoxFuture<'static, TurnFailure>,
    consecutive_ready: u8,
}

impl Interruption {
    pub(super) fn new(future: impl Future<Output = TurnFailure> + Send + 'static) -> Self {
        Self { future: Box::pin(future), consecutive_ready: 0 }
    }

    /// Interrupted work is dropped.
    pub(super) async fn race<T>(&mut self, work: impl Future<Output = T>) -> Result<T, TurnFailure> {
        let mut work = pin!(work);
        poll_fn(|context| {
            if self.consecutive_ready >= MAX_CONSECUTIVE_READY {
                self.consecutive_ready = 0;
                if let Poll::Ready(failure) = self.future.as_mut().poll(context) {
                    return Poll::Ready(Err(failure));
                }
            }
            match work.as_mut().poll(context) {
                Poll::Ready(output) => {
                    self.consecutive_ready += 1;
                    Poll::Ready(Ok(output))
                }
                Poll::Pending => {
                    self.consecutive_ready = 0;
                    self.future.as_mut().poll(context).map(Err)
                }
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn race_prefers_work_but_interrupts_endless_work() {
        let mut interruption = Interruption::new(ready(TurnFailure::ShuttingDown));
        assert_eq!(interruption.race(ready(1)).await, Ok(1));
        assert_eq!(interruption.race(pending::<()>()).await, Err(TurnFailure::ShuttingDown));
        let mut interruption = Interruption::new(ready(TurnFailure::DeadlineExceeded));
        let mut completed = 0;
        while interruption.race(ready(())).await.is_ok() {
            completed += 1;
        }
        assert_eq!(completed, MAX_CONSECUTIVE_READY);
    }
}
