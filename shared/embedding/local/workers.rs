//! The threads that models compute on.

use std::{
    num::NonZero,
    sync::{Arc, Mutex, PoisonError},
    thread::available_parallelism,
};

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::super::EmbedError;

/// One thread for each core, and no more work under way than there are threads.
///
/// Matrix products share themselves out over the pool that they are called in. At the size of a chat's texts they lose
/// more by that than they gain, so that every thread is a pool of its own and different batches are what runs at once.
/// Tokio's blocking threads are of no use for this: from them, the pool would be the process's.
#[derive(Debug)]
pub(super) struct Workers {
    count: usize,
    idle: Idle,
    /// As many permits as there are workers. Waiting callers are served in order.
    turns: Arc<Semaphore>,
}

/// The workers that have nothing to do.
type Idle = Arc<Mutex<Vec<Arc<ThreadPool>>>>;

/// The right to use a worker, who is idle again when it is dropped.
struct Turn {
    worker: Arc<ThreadPool>,
    idle: Idle,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&self.worker));
    }
}

impl Workers {
    pub(super) fn start() -> Result<Self, ThreadPoolBuildError> {
        let count = available_parallelism().map_or(1, NonZero::get);
        let worker = |number| {
            let builder = ThreadPoolBuilder::new().num_threads(1).thread_name(move |_| format!("embedding-{number}"));
            // Whoever waits for the result learns of a panic by its absence; the default handler would end the process.
            builder.panic_handler(|_| {}).build().map(Arc::new)
        };
        let workers = (0..count).map(worker).collect::<Result<_, _>>()?;
        Ok(Self { count, idle: Arc::new(Mutex::new(workers)), turns: Arc::new(Semaphore::new(count)) })
    }

    /// How many threads there are.
    pub(super) const fn count(&self) -> usize {
        self.count
    }

    /// Runs `work` as soon as a thread is free. What was begun is finished even when the caller goes away.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, EmbedError> + Send + 'static,
    ) -> Result<T, EmbedError> {
        let ended = || EmbedError::Local("its thread ended".to_owned());
        let permit = Arc::clone(&self.turns).acquire_owned().await.map_err(|_| ended())?;
        let worker = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop().ok_or_else(ended)?;
        let turn = Turn { worker: Arc::clone(&worker), idle: Arc::clone(&self.idle), _permit: permit };
        let (result, answer) = oneshot::channel();
        worker.spawn(move || {
            // Held by the work and not by its caller, who may be gone before it ends.
            let _turn = turn;
            // No one listens any more if the caller went away.
            let _ = result.send(work());
        });
        answer.await.map_err(|_| ended())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_of_its_caller_alone() {
        let workers = Workers::start().unwrap();
        for _ in 0..=workers.count() {
            let error = workers.run::<()>(|| panic!("of no importance")).await.unwrap_err();
            assert!(error.to_string().contains("thread ended"), "{error}");
        }
        assert_eq!(workers.run(|| Ok(1)).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn products_are_computed_on_the_thread_that_asks() {
        let workers = Workers::start().unwrap();
        assert_eq!(workers.run(|| Ok(rayon::current_num_threads())).await.unwrap(), 1);
    }
}
