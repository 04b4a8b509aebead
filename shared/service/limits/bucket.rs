use std::time::Duration;

pub(super) const MINUTE: Duration = Duration::from_mins(1);
pub(super) const DAY: Duration = Duration::from_hours(24);

/// `amount` units at once, and as many again over each period.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    amount: u64,
    period: Duration,
}

impl Rate {
    pub(super) fn per_minute(amount: u32) -> Self {
        Self { amount: amount.into(), period: MINUTE }
    }

    pub(super) fn per_day(amount: u64) -> Self {
        Self { amount, period: DAY }
    }

    /// The time in which as many units come back. It is rounded down, so that exactly `amount` units fit into a full bucket.
    fn refill_time(self, units: u64) -> Duration {
        let nanoseconds = self.period.as_nanos() * u128::from(units) / u128::from(self.amount.max(1));
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

/// A token bucket, stored as the time at which it will be full again (GCRA). A full bucket is equal to a new one. Times are
/// relative to the start of the process.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Bucket {
    full_at: Duration,
}

impl Bucket {
    /// Takes all of the units, or none and returns the time to wait for them. More units than fit into the bucket never come.
    pub(super) fn take(&mut self, now: Duration, rate: Rate, units: u64) -> Result<(), Duration> {
        if units > rate.amount {
            return Err(rate.period);
        }
        let full_at = self.full_at.max(now).saturating_add(rate.refill_time(units));
        match full_at.saturating_sub(now).checked_sub(rate.period) {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => {
                self.full_at = full_at;
                Ok(())
            }
        }
    }

    /// Takes units that are spent already, although there may not be as many. The next one comes within a period, however many
    /// they are.
    pub(super) fn charge(&mut self, now: Duration, rate: Rate, units: u64) {
        let full_at = self.full_at.max(now).saturating_add(rate.refill_time(units));
        self.full_at = full_at.min(now.saturating_add(rate.period * 2));
    }

    pub(super) fn require_left(&self, now: Duration, rate: Rate) -> Result<(), Duration> {
        Self { full_at: self.full_at }.take(now, rate, 1)
    }

    pub(super) fn is_full(&self, now: Duration) -> bool {
        self.full_at <= now
    }

    /// The share of the bucket that is taken, in millionths; above a million after a charge.
    pub(super) fn used_millionths(&self, now: Duration, period: Duration) -> u64 {
        let used = self.full_at.saturating_sub(now).as_nanos() * 1_000_000 / period.as_nanos().max(1);
        u64::try_from(used).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1_000);

    #[test]
    fn bucket_holds_its_amount_and_refills_over_its_period() {
        for amount in [1, 3, 7, 3_000] {
            let (mut bucket, rate) = (Bucket::default(), Rate::per_minute(amount));
            for taken in 0..amount {
                assert_eq!(bucket.take(START, rate, 1), Ok(()), "{taken} of {amount}");
            }
            let wait = bucket.take(START, rate, 1).unwrap_err();
            assert!(!wait.is_zero() && wait <= MINUTE / amount, "{wait:?} of {amount}");
            assert_eq!(bucket.take(START + wait, rate, 1), Ok(()), "{amount}");
            assert!(bucket.take(START + wait, rate, 1).is_err(), "{amount}");
            assert_eq!(bucket.take(START + wait + MINUTE, rate, u64::from(amount)), Ok(()), "{amount}");
        }
    }

    #[test]
    fn refused_units_take_nothing() {
        let (mut bucket, rate) = (Bucket::default(), Rate::per_day(100));
        assert_eq!(bucket.take(START, rate, 60), Ok(()));
        assert_eq!(bucket.take(START, rate, 101), Err(DAY), "never");
        assert_eq!(bucket.take(START, rate, 50), Err(DAY / 10));
        assert_eq!(bucket.take(START, rate, 40), Ok(()));
        assert_eq!(bucket.used_millionths(START, DAY), 1_000_000);
    }

    #[test]
    fn charge_beyond_the_amount_delays_the_next_unit() {
        let (mut bucket, rate) = (Bucket::default(), Rate::per_day(100));
        assert_eq!(bucket.require_left(START, rate), Ok(()));
        bucket.charge(START, rate, 150);
        assert_eq!(bucket.require_left(START, rate), Err(DAY * 51 / 100));
        assert_eq!(bucket.require_left(START + DAY * 51 / 100, rate), Ok(()));
        assert!(!bucket.is_full(START + DAY) && bucket.is_full(START + DAY * 3 / 2));
    }
}
