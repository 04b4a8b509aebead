//! The readers of a run: one that nobody reads ends after its grace period, or gives way to a new request of its session.
//!
//! While nobody in this process reads it, the store knows, and says whether another process reads it or wants its session.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::log::{FrameLog, ReaderChange};
use crate::{
    chat::TurnFailure,
    conversation::{ReaderSignals, StoreError},
};

/// How late a run sees that another process wants its session, or that a reader there has left.
const POLL_INTERVAL: Duration = Duration::from_millis(300);

/// Why the run has to stop. `set_read` is that of the store, for the run's lease.
pub(super) async fn wait_until_unwanted<F: Future<Output = Result<ReaderSignals, StoreError>>>(
    set_read: impl Fn(bool) -> F,
    log: Arc<FrameLog>,
    grace: Duration,
) -> TurnFailure {
    loop {
        log.wait_until_unread().await;
        if let Some(failure) = wait_without_reader(&set_read, &log, grace).await {
            return failure;
        }
        announce_reader(&set_read, &log).await;
    }
}

/// `None` if a reader came back.
async fn wait_without_reader<F: Future<Output = Result<ReaderSignals, StoreError>>>(
    set_read: &impl Fn(bool) -> F,
    log: &FrameLog,
    grace: Duration,
) -> Option<TurnFailure> {
    let mut grace_end = Instant::now() + grace;
    while !log.is_preempted() {
        // Never dropped half-way: a late write must not overtake that of the next reader.
        let signals = set_read(false).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "the store does not know that nobody reads the run");
            ReaderSignals::default()
        });
        if signals.is_preempted {
            return Some(TurnFailure::Preempted);
        }
        let next_poll = Instant::now() + POLL_INTERVAL;
        if signals.is_watched {
            grace_end = next_poll.max(Instant::now() + grace);
        } else if Instant::now() >= grace_end {
            return Some(TurnFailure::Abandoned);
        }
        match timeout_at(next_poll.min(grace_end), log.wait_for_reader_or_preemption()).await {
            Ok(ReaderChange::Came) => return None,
            Ok(ReaderChange::Preempted) => break,
            Err(_) => {}
        }
    }
    Some(TurnFailure::Preempted)
}

/// Otherwise a new request of the session would stop a run that is read.
async fn announce_reader<F: Future<Output = Result<ReaderSignals, StoreError>>>(
    set_read: &impl Fn(bool) -> F,
    log: &FrameLog,
) {
    while let Err(error) = set_read(true).await {
        tracing::debug!(%error, "the store does not know that somebody reads the run");
        if timeout(POLL_INTERVAL, log.wait_until_unread()).await.is_ok() {
            return;
        }
        sleep(POLL_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const GRACE: Duration = Duration::from_secs(2);

    /// The signals of a store, and what it was told.
    #[derive(Default)]
    struct Signals {
        now: Mutex<ReaderSignals>,
        told: Mutex<Vec<bool>>,
    }

    impl Signals {
        fn set_read(
            self: &Arc<Self>,
        ) -> impl Fn(bool) -> std::future::Ready<Result<ReaderSignals, StoreError>> + use<> {
            let signals = self.clone();
            move |is_read| {
                signals.told.lock().unwrap().push(is_read);
                std::future::ready(Ok(*signals.now.lock().unwrap()))
            }
        }
    }

    fn unwanted(signals: &Arc<Signals>, log: &Arc<FrameLog>) -> tokio::task::JoinHandle<(TurnFailure, Duration)> {
        let (set_read, log, started) = (signals.set_read(), log.clone(), Instant::now());
        tokio::spawn(async move { (wait_until_unwanted(set_read, log, GRACE).await, started.elapsed()) })
    }

    #[tokio::test(start_paused = true)]
    async fn run_is_abandoned_after_a_grace_that_every_reader_restarts() {
        let (signals, log) = (Arc::default(), FrameLog::example());
        let reader = log.read_from_start();
        let unwanted = unwanted(&signals, &log);
        sleep(3 * GRACE).await;
        drop(reader);
        sleep(GRACE / 2).await;
        let reader = log.read_from_start();
        sleep(GRACE).await;
        drop(reader);
        let (failure, after) = unwanted.await.unwrap();
        assert!(matches!(failure, TurnFailure::Abandoned), "{failure:?}");
        assert_eq!(after, 3 * GRACE + GRACE / 2 + GRACE + GRACE);
        assert_eq!(signals.told.lock().unwrap().iter().filter(|is_read| **is_read).count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn reader_of_another_process_keeps_the_run() {
        let (signals, log) = (Arc::<Signals>::default(), FrameLog::example());
        signals.now.lock().unwrap().is_watched = true;
        let unwanted = unwanted(&signals, &log);
        sleep(10 * GRACE).await;
        assert!(!unwanted.is_finished());
        signals.now.lock().unwrap().is_watched = false;
        let (failure, after) = unwanted.await.unwrap();
        assert!(matches!(failure, TurnFailure::Abandoned), "{failure:?}");
        assert!((10 * GRACE..=11 * GRACE + POLL_INTERVAL).contains(&after), "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn run_without_a_reader_is_preempted_by_another_process() {
        let (signals, log) = (Arc::<Signals>::default(), FrameLog::example());
        let unwanted = unwanted(&signals, &log);
        sleep(GRACE / 2).await;
        signals.now.lock().unwrap().is_preempted = true;
        let (failure, after) = unwanted.await.unwrap();
        assert!(matches!(failure, TurnFailure::Preempted), "{failure:?}");
        assert!(after <= GRACE / 2 + POLL_INTERVAL, "{after:?}");
    }
}
