//! How long to wait before a call is made again.

use std::time::Duration;

/// Before the second attempt, and twice as long before each that follows.
const INITIAL_BACKOFF: Duration = Duration::from_millis(250);
/// Longest wait that nobody asked for.
const MAX_BACKOFF: Duration = Duration::from_secs(8);
/// What is added at most to a wait that the provider asks for, as a share of it and in all.
const RETRY_AFTER_JITTER: f64 = 0.1;
const RETRY_AFTER_MARGIN: Duration = Duration::from_millis(250);

/// How long to wait after the `attempt`-th failure (from 1): at least as long as the provider asks for. Callers that failed
/// together do not come back together, because a part is left to chance ("equal jitter", Brooker, "Exponential Backoff And
/// Jitter", 2015).
#[must_use]
pub fn backoff_delay(attempt: u32, asked: Option<Duration>) -> Duration {
    let chance = fastrand::f64();
    match asked {
        Some(asked) => asked + (asked.mul_f64(RETRY_AFTER_JITTER) + RETRY_AFTER_MARGIN).mul_f64(chance),
        None => {
            let whole = INITIAL_BACKOFF.saturating_mul(1 << attempt.saturating_sub(1).min(16)).min(MAX_BACKOFF);
            whole.mul_f64((1.0 + chance) / 2.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_within_bounds_and_are_never_shorter_than_asked() {
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
    fn a_part_is_left_to_chance() {
        let waits: std::collections::HashSet<_> = (0..20).map(|_| backoff_delay(1, None)).collect();
        assert!(waits.len() > 1);
    }
}
