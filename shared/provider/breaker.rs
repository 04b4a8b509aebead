//! Circuit breaker: calls to a failing provider are rejected at once.
//!
//! A provider may fail because of what one user sends. So failures of one user alone reject that user only; more than one
//! failure of others are the provider's.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::config::BreakerSettings;

/// Closed: admits all calls. Open, after too many consecutive failures: rejects all calls until the cooldown is over. Half-open:
/// admits one probe at a time, and the first one that is answered closes the circuit.
#[derive(Debug)]
pub struct CircuitBreaker {
    settings: BreakerSettings,
    keys: RandomState,
    state: Mutex<BreakerState>,
}

#[derive(Debug, Default)]
struct BreakerState {
    /// Consecutive.
    failures: u32,
    /// The callers whose calls failed.
    failed: FailedCallers,
    /// `None` = closed.
    opened_at: Option<Instant>,
    /// While the call that probes after the cooldown has not been answered.
    is_probing: bool,
}

/// A digest of the user, with a random key; `None` is the service itself.
type Caller = Option<u64>;

/// A single one may be due to what another user sends.
const MIN_OTHER_FAILURES: u32 = 2;

#[derive(Debug, Default)]
enum FailedCallers {
    #[default]
    None,
    One {
        caller: Caller,
        /// Failures of other callers.
        others: u32,
    },
}

impl FailedCallers {
    fn add(&mut self, caller: Caller) {
        match self {
            Self::None => *self = Self::One { caller, others: 0 },
            Self::One { caller: first, others } if *first != caller => *others = others.saturating_add(1),
            Self::One { .. } => {}
        }
    }

    fn rejects(&self, caller: Caller) -> bool {
        !matches!(self, Self::One { caller: first, others } if *first != caller && *others < MIN_OTHER_FAILURES)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the circuit is open for {0:?}: too many consecutive failures")]
pub struct CircuitOpen(
    /// Time left of the cooldown; zero while a probe is in progress.
    pub Duration,
);

impl CircuitBreaker {
    #[must_use]
    pub fn new(settings: BreakerSettings) -> Self {
        Self { settings, keys: RandomState::new(), state: Mutex::default() }
    }

    /// `user`: `None` for a call that no user has caused.
    pub fn admit(self: &Arc<Self>, user: Option<&str>) -> Result<CallPermit, CircuitOpen> {
        let mut state = self.state();
        let caller = user.map(|user| self.keys.hash_one(user));
        let (is_probe, holds_probe) = match state.opened_at {
            None => (false, false),
            // Its answer tells whether the provider fails others as well.
            Some(_) if !state.failed.rejects(caller) => (true, false),
            Some(opened) => {
                let rest = self.settings.cooldown.saturating_sub(opened.elapsed());
                if !rest.is_zero() || state.is_probing {
                    return Err(CircuitOpen(rest));
                }
                state.is_probing = true;
                (true, true)
            }
        };
        Ok(CallPermit { breaker: self.clone(), caller, is_probe, holds_probe })
    }

    fn state(&self) -> MutexGuard<'_, BreakerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Dropping it without a result means cancellation, which does not count.
#[derive(Debug)]
#[must_use]
pub struct CallPermit {
    breaker: Arc<CircuitBreaker>,
    caller: Caller,
    /// Admitted while the circuit was open.
    is_probe: bool,
    /// Has set `is_probing`, which no other permit may clear.
    holds_probe: bool,
}

impl CallPermit {
    fn release_probe(&mut self, state: &mut BreakerState) {
        if std::mem::take(&mut self.holds_probe) {
            state.is_probing = false;
        }
    }

    /// Records the first part of an answer, which closes an open circuit. Until an answer is complete, a single failure opens it
    /// again.
    pub fn answer_began(&mut self) {
        if std::mem::take(&mut self.is_probe) {
            let breaker = self.breaker.clone();
            let mut state = breaker.state();
            self.release_probe(&mut state);
            state.opened_at = None;
            state.failures = self.breaker.settings.failures.saturating_sub(1);
            state.failed = FailedCallers::None;
        }
    }

    pub fn succeeded(mut self) {
        self.answer_began();
        let mut state = self.breaker.state();
        // A call from before the circuit opened proves nothing.
        if state.opened_at.is_none() {
            state.failures = 0;
            state.failed = FailedCallers::None;
        }
    }

    /// The call failed in a way that affects other calls too.
    pub fn failed(mut self) {
        let breaker = self.breaker.clone();
        let mut state = breaker.state();
        self.release_probe(&mut state);
        if std::mem::take(&mut self.is_probe) {
            state.opened_at = Some(Instant::now());
            state.failed.add(self.caller);
        } else if state.opened_at.is_none() {
            state.failures = state.failures.saturating_add(1);
            state.failed.add(self.caller);
            let most = self.breaker.settings.failures;
            if most > 0 && state.failures >= most {
                state.opened_at = Some(Instant::now());
            }
        }
    }
}

impl Drop for CallPermit {
    fn drop(&mut self) {
        if self.holds_probe {
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
            breaker.admit(None).unwrap().failed();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_of_one_user_reject_that_user_only() {
        let breaker = breaker(3);
        let (ann, bob) = ("ann", "bob");
        let admit = |user| breaker.admit(Some(user));
        for _ in 0..3 {
            admit(ann).unwrap().failed();
        }
        assert!(admit(ann).is_err());
        let (first, second) = (admit(bob).unwrap(), admit(bob).unwrap());
        drop(second);
        assert!(admit(ann).is_err(), "a cancelled call proves nothing");
        first.succeeded();
        admit(ann).unwrap().failed();
        admit(ann).unwrap().failed();
        admit(ann).unwrap().failed();
        assert!(admit(ann).is_err() && breaker.admit(None).is_ok());
        admit(bob).unwrap().failed();
        assert!(admit(ann).is_err());
        admit(bob).expect("a single failure of another user may be due to that one").failed();
        for caller in [Some(ann), Some(bob), None] {
            assert!(breaker.admit(caller).is_err(), "two users failed, so the provider does: {caller:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn call_of_another_user_admits_no_second_probe() {
        let breaker = breaker(2);
        let (ann, bob) = (Some("ann"), Some("bob"));
        for _ in 0..2 {
            breaker.admit(ann).unwrap().failed();
        }
        advance(COOLDOWN).await;
        let probe = breaker.admit(ann).unwrap();
        drop(breaker.admit(bob).unwrap());
        assert_eq!(breaker.admit(ann).unwrap_err(), CircuitOpen(Duration::ZERO), "after a cancelled call");
        breaker.admit(bob).unwrap().failed();
        advance(COOLDOWN).await;
        assert_eq!(breaker.admit(ann).unwrap_err(), CircuitOpen(Duration::ZERO), "after a failed call");
        drop(probe);
        assert!(breaker.admit(ann).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn circuit_opens_after_failures_and_probes_after_cooldown() {
        let breaker = breaker(3);
        fail(&breaker, 2);
        breaker.admit(None).unwrap().succeeded();
        fail(&breaker, 3);
        assert_eq!(breaker.admit(None).unwrap_err(), CircuitOpen(COOLDOWN));
        advance(COOLDOWN).await;
        let probe = breaker.admit(None).unwrap();
        assert_eq!(breaker.admit(None).unwrap_err(), CircuitOpen(Duration::ZERO), "one at a time");
        probe.failed();
        assert_eq!(breaker.admit(None).unwrap_err(), CircuitOpen(COOLDOWN), "the cooldown starts again");
        advance(COOLDOWN).await;
        breaker.admit(None).unwrap().succeeded();
        fail(&breaker, 2);
        assert!(breaker.admit(None).is_ok(), "the count starts again");
    }

    #[tokio::test(start_paused = true)]
    async fn cancelled_probe_does_not_count_and_admits_the_next() {
        let breaker = breaker(1);
        drop(breaker.admit(None).unwrap());
        fail(&breaker, 1);
        advance(COOLDOWN).await;
        drop(breaker.admit(None).unwrap());
        assert!(breaker.admit(None).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn probe_that_fails_after_its_start_reopens_the_circuit() {
        let breaker = breaker(3);
        fail(&breaker, 3);
        advance(COOLDOWN).await;
        let mut probe = breaker.admit(None).unwrap();
        probe.answer_began();
        assert!(breaker.admit(None).is_ok(), "other calls need not wait for the end of the answer");
        probe.failed();
        assert!(breaker.admit(None).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn late_results_do_not_count_and_zero_disables_breaker() {
        let breaker = breaker(2);
        let (slow, slower) = (breaker.admit(None).unwrap(), breaker.admit(None).unwrap());
        fail(&breaker, 2);
        advance(COOLDOWN / 2).await;
        slow.failed();
        slower.succeeded();
        assert_eq!(breaker.admit(None).unwrap_err(), CircuitOpen(COOLDOWN / 2));
        let never = self::breaker(0);
        fail(&never, 100);
        assert!(never.admit(None).is_ok());
    }
}
