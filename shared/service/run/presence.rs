//! The readers of a run: one that nobody reads ends after its grace period, or gives way to a new request of its session.
//!
//! While nobody in this process reads it, the store knows, and says whether another process reads it or wants its session.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::log::{FrameLog, ReaderChange};
use crate::{
    chat::TurnFailure,
    conversation::{ConversationStore, Lease, ReaderSignals},
};

/// How late a run sees that another process wants its session, or that a reader there has left.
const POLL_INTERVAL: Duration = Duration::from_millis(300);

/// Why the run has to stop.
pub(super) async fn wait_until_unwanted(
    store: Arc<dyn ConversationStore>,
    lease: Lease,
    log: Arc<FrameLog>,
    grace: Duration,
) -> TurnFailure {
    loop {
        log.wait_until_unread().await;
        if let Some(failure) = wait_without_reader(&*store, &lease, &log, grace).await {
            return failure;
        }
        announce_reader(&*store, &lease, &log).await;
    }
}

/// `None` if a reader came back.
async fn wait_without_reader(
    store: &dyn ConversationStore,
    lease: &Lease,
    log: &FrameLog,
    grace: Duration,
) -> Option<TurnFailure> {
    let mut grace_end = Instant::now() + grace;
    while !log.is_preempted() {
        // Never dropped half-way: a late write must not overtake that of the next reader.
        let signals = store.set_read(lease, false).await.unwrap_or_else(|error| {
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
async fn announce_reader(store: &dyn ConversationStore, lease: &Lease, log: &FrameLog) {
    while let Err(error) = store.set_read(lease, true).await {
        tracing::debug!(%error, "the store does not know that somebody reads the run");
        if timeout(POLL_INTERVAL, log.wait_until_unread()).await.is_ok() {
            return;
        }
        sleep(POLL_INTERVAL).await;
    }
}
