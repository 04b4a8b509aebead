//! Encodings share tokio's blocking threads with other work. A runtime that is dropped waits for running ones, unless it
//! ends by `shutdown_background`.

use std::{num::NonZero, sync::Arc, thread::available_parallelism};

use tokio::{sync::Semaphore, task::spawn_blocking};

use super::super::EmbedError;

/// At most one blocking thread for each core, because an encoding keeps its core busy. First come, first served.
#[derive(Debug)]
pub(super) struct Workers {
    count: usize,
    permits: Arc<Semaphore>,
}

impl Workers {
    pub(super) fn new() -> Self {
        let count = available_parallelism().map_or(1, NonZero::get);
        Self { count, permits: Arc::new(Semaphore::new(count)) }
    }

    pub(super) const fn count(&self) -> usize {
        self.count
    }

    /// Work that has begun goes on when the caller is dropped, and holds its permit until it ends.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, EmbedError> + Send + 'static,
    ) -> Result<T, EmbedError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let running = spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        // A panic's message may hold the text.
        running.await.map_err(|_| EmbedError::Local("the encoder's thread ended".to_owned()))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn panic_of_work_fails_its_caller_alone() {
        let workers = Workers::new();
        for _ in 0..=workers.count() {
            let error = workers.run::<()>(|| panic!("secret")).await.unwrap_err();
            assert!(error.to_string().contains("thread ended") && !error.to_string().contains("secret"), "{error}");
        }
        assert_eq!(workers.run(|| Ok(1)).await.unwrap(), 1);
    }
}
