//! A circuit breaker: a provider that is dead costs nothing.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerSettings {
    /// Failures in a row that open it; 0 = it never opens.
    pub failures: u32,
    /// How long it stays open before one call is let through again.
    pub cooldown: Duration,
}

/// Lets calls through until too many in a row have failed. Then it refuses them for a while; after that it lets one call
/// through at a time, and the first that is answered closes it.
#[derive(Debug)]
pub struct CircuitBreaker {
    settings: BreakerSettings,
    state: Mutex<BreakerState>,
}

#[derive(Debug, Default)]
struct BreakerState {
    /// In a row.
    failures: u32,
    /// When it opened; `None` = it is closed.
    opened_at: Option<Instant>,
    /// Whether a call is under way that shows whether the provider is back.
    is_probing: bool,
}

/// The breaker is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many calls in a row have failed; none is made for {0:?}")]
pub struct CircuitOpen(
    /// Until a call is let through again; zero where one is under way that shows whether that helps.
    pub Duration,
);

impl CircuitBreaker {
    /// A closed breaker.
    #[must_use]
    pub fn new(settings: BreakerSettings) -> Self {
        Self { settings, state: Mutex::default() }
    }

    /// Lets a call through.
    ///
    /// # Errors
    /// The breaker is open.
    pub fn admit(self: &Arc<Self>) -> Result<Permit, CircuitOpen> {
        let mut state = self.state();
        let is_probe = match state.opened_at {
            None => false,
            Some(opened) => {
                let rest = self.settings.cooldown.saturating_sub(opened.elapsed());
                if !rest.is_zero() || state.is_probing {
                    return Err(CircuitOpen(rest));
                }
                state.is_probing = true;
                true
            }
        };
        Ok(Permit { breaker: self.clone(), is_probe })
    }

    fn state(&self) -> MutexGuard<'_, BreakerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that was let through. One that is dropped without a word was cancelled, which says nothing about the provider.
#[derive(Debug)]
#[must_use]
pub struct Permit {
    breaker: Arc<CircuitBreaker>,
    is_probe: bool,
}

impl Permit {
    /// The provider has begun to answer. That closes an open breaker; but until an answer is complete, a single failure
    /// opens it again.
    pub fn answer_began(&mut self) {
        if std::mem::take(&mut self.is_probe) {
            let mut state = self.breaker.state();
            state.opened_at = None;
            state.is_probing = false;
            state.failures = self.breaker.settings.failures.saturating_sub(1);
        }
    }

    /// The call succeeded.
    pub fn succeeded(mut self) {
        self.answer_began();
        let mut state = self.breaker.state();
        // A call from before it opened says nothing about now.
        if state.opened_at.is_none() {
            state.failures = 0;
        }
    }

    /// The call failed in a way that others will, too.
    pub fn failed(mut self) {
        let mut state = self.breaker.state();
        if std::mem::take(&mut self.is_probe) {
            state.is_probing = false;
            state.opened_at = Some(Instant::now());
        } else if state.opened_at.is_none() {
            state.failures = state.failures.saturating_add(1);
            let most = self.breaker.settings.failures;
            if most > 0 && state.failures >= most {
                state.opened_at = Some(Instant::now());
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.is_probe {
            self.breaker.state().is_probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const COOLDOWN: Duration = Duration::from_secs(10);

    fn breaker(failures: u32) -> Arc<CircuitBreaker> {
        Arc::new(CircuitBreaker::new(BreakerSettings { failures, cooldown: COOLDOWN }))
    }

    fn fail(breaker: &Arc<CircuitBreaker>, times: usize) {
        for _ in 0..times {
            breaker.admit().unwrap().failed();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_after_failures_in_a_row_and_lets_one_call_through_after_a_while() {
        let breaker = breaker(3);
        fail(&breaker, 2);
        breaker.admit().unwrap().succeeded();
        fail(&breaker, 3);
        assert_eq!(breaker.admit().unwrap_err(), CircuitOpen(COOLDOWN));
        advance(COOLDOWN).await;
        let probe = breaker.admit().unwrap();
        assert_eq!(breaker.admit().unwrap_err(), CircuitOpen(Duration::ZERO), "one at a time");
        probe.failed();
        assert_eq!(breaker.admit().unwrap_err(), CircuitOpen(COOLDOWN), "it begins anew");
        advance(COOLDOWN).await;
        breaker.admit().unwrap().succeeded();
        fail(&breaker, 2);
        assert!(breaker.admit().is_ok(), "it counts from the beginning");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_is_cancelled_says_nothing_and_makes_room_for_the_next() {
        let breaker = breaker(1);
        drop(breaker.admit().unwrap());
        fail(&breaker, 1);
        advance(COOLDOWN).await;
        drop(breaker.admit().unwrap());
        assert!(breaker.admit().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_that_always_breaks_off_stays_out() {
        let breaker = breaker(3);
        fail(&breaker, 3);
        advance(COOLDOWN).await;
        let mut probe = breaker.admit().unwrap();
        probe.answer_began();
        assert!(breaker.admit().is_ok(), "others need not wait for the end of the first answer");
        probe.failed();
        assert!(breaker.admit().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn calls_from_before_it_opened_change_nothing_and_zero_means_never() {
        let breaker = breaker(2);
        let (slow, slower) = (breaker.admit().unwrap(), breaker.admit().unwrap());
        fail(&breaker, 2);
        advance(COOLDOWN / 2).await;
        slow.failed();
        slower.succeeded();
        assert_eq!(breaker.admit().unwrap_err(), CircuitOpen(COOLDOWN / 2));
        let never = self::breaker(0);
        fail(&never, 100);
        assert!(never.admit().is_ok());
    }
}
