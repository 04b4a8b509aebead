//! Exponential backoff with jitter.

use std::time::Duration;

/// Before the second attempt; doubled before each further one.
const INITIAL_BACKOFF: Duration = Duration::from_millis(250);
/// A provider may ask for a longer wait.
const MAX_BACKOFF: Duration = Duration::from_secs(8);
/// Added to a wait that the provider asks for: up to this share of it, plus up to `RETRY_AFTER_MARGIN`.
const RETRY_AFTER_JITTER: f64 = 0.1;
const RETRY_AFTER_MARGIN: Duration = Duration::from_millis(250);

/// The wait after the `attempt`-th failure (from 1), at least `retry_after`. A random part keeps callers that failed together
/// from retrying together ("equal jitter", Brooker, "Exponential Backoff And Jitter", 2015).
#[must_use]
pub fn backoff_delay(attempt: u32, retry_after: Option<Duration>) -> Duration {
    let random = fastrand::f64();
    match retry_after {
        Some(wait) => wait + (wait.mul_f64(RETRY_AFTER_JITTER) + RETRY_AFTER_MARGIN).mul_f64(random),
        None => {
            let whole = INITIAL_BACKOFF.saturating_mul(1 << attempt.saturating_sub(1).min(16)).min(MAX_BACKOFF);
            whole.mul_f64((1.0 + random) / 2.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_within_bounds_and_honors_retry_after() {
        for _ in 0..1000 {
            for (attempt, whole) in [(1, 250), (2, 500), (3, 1000), (4, 2000), (10, 8000), (u32::MAX, 8000)] {
                let whole = Duration::from_millis(whole);
                let wait = backoff_delay(attempt, None);
                assert!((whole / 2..=whole).contains(&wait), "{attempt}: {wait:?}");
            }
            let asked = Duration::from_secs(2);
            assert!((asked..=asked.mul_f64(1.1) + RETRY_AFTER_MARGIN).contains(&backoff_delay(1, Some(asked))));
        }
    }

    #[test]
    fn backoff_has_jitter() {
        let waits: std::collections::HashSet<_> = (0..20).map(|_| backoff_delay(1, None)).collect();
        assert!(waits.len() > 1);
    }
}
