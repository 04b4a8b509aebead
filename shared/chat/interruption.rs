//! What ends a turn from outside: the server stops, or the way in has no more time.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::Poll,
};

use super::TurnFailure;

/// Work that is ready is done this many times in a row before anybody looks whether it is to end.
const MAX_CONSECUTIVE_READY: u8 = 64;

/// A future that ends a turn when it resolves. It is looked at where the turn waits, and now and then where it never does: a
/// provider that sends without a pause does not hold up the end.
pub(super) struct Interruption<I> {
    future: Pin<Box<I>>,
    ready: u8,
}

impl<I: Future<Output = TurnFailure>> Interruption<I> {
    pub(super) fn new(future: I) -> Self {
        Self { future: Box::pin(future), ready: 0 }
    }

    /// Does some work unless the interruption comes first. Most often the work is asked first, so that an interruption costs
    /// nothing while there is something to do.
    pub(super) async fn unless<T>(&mut self, work: impl Future<Output = T>) -> Result<T, TurnFailure> {
        let mut work = pin!(work);
        poll_fn(|context| {
            if self.ready >= MAX_CONSECUTIVE_READY {
                self.ready = 0;
                if let Poll::Ready(failure) = self.future.as_mut().poll(context) {
                    return Poll::Ready(Err(failure));
                }
            }
            match work.as_mut().poll(context) {
                Poll::Ready(done) => {
                    self.ready += 1;
                    Poll::Ready(Ok(done))
                }
                Poll::Pending => {
                    self.ready = 0;
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
    async fn work_is_done_first_but_not_for_ever() {
        let mut interruption = Interruption::new(ready(TurnFailure::ShuttingDown));
        assert_eq!(interruption.unless(ready(1)).await, Ok(1));
        assert_eq!(interruption.unless(pending::<()>()).await, Err(TurnFailure::ShuttingDown));
        let mut interruption = Interruption::new(ready(TurnFailure::DeadlineExceeded));
        let mut done = 0;
        while interruption.unless(ready(())).await.is_ok() {
            done += 1;
        }
        assert_eq!(done, MAX_CONSECUTIVE_READY);
    }
}
