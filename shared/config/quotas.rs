//! Quotas per user, by plan.

use super::EnvReader;

pub(super) const RATE_LIMITS: &str = "RATE_LIMITS";
pub(super) const RATE_LIMITS_PRO: &str = "RATE_LIMITS_PRO";

const EXAMPLE: &str = "requests_per_minute=60,concurrent_streams=4,tokens_per_day=500000";

/// Quotas of one user for chats, across all processes that share a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserQuotas {
    /// Per minute of the clock.
    pub requests_per_minute: u32,
    pub concurrent_streams: u32,
    /// Per day in UTC. The request that crosses it is still answered; the next one is refused.
    pub tokens_per_day: u64,
}

/// Quotas of one user for calls of every kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallQuotas {
    /// Per process, as all quotas here but the last.
    pub calls_per_minute: u32,
    /// Further calls wait for their turn.
    pub concurrent_calls: u32,
    pub exports_per_minute: u32,
    /// Bytes of text. Of writes per day in UTC and across all processes; of queries per process.
    pub embedded_bytes_per_day: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanQuotas {
    pub chats: UserQuotas,
    pub calls: CallQuotas,
}

/// Far above what a person can use, so that only a runaway program meets them.
const STANDARD: PlanQuotas = PlanQuotas {
    chats: UserQuotas { requests_per_minute: 120, concurrent_streams: 16, tokens_per_day: 2_000_000 },
    calls: CallQuotas {
        calls_per_minute: 3_000,
        concurrent_calls: 4,
        exports_per_minute: 10,
        embedded_bytes_per_day: 200_000_000,
    },
};
const PRO: PlanQuotas = PlanQuotas {
    chats: UserQuotas { requests_per_minute: 600, concurrent_streams: 64, tokens_per_day: 20_000_000 },
    calls: CallQuotas {
        calls_per_minute: 12_000,
        concurrent_calls: 8,
        exports_per_minute: 30,
        embedded_bytes_per_day: 2_000_000_000,
    },
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotasByPlan {
    pub standard: PlanQuotas,
    /// For users with `is_pro`.
    pub pro: PlanQuotas,
}

impl QuotasByPlan {
    #[must_use]
    pub fn for_plan(&self, is_pro: bool) -> PlanQuotas {
        if is_pro { self.pro } else { self.standard }
    }

    pub(super) fn read(reader: &mut EnvReader<'_>) -> Option<Self> {
        let standard = reader.text(RATE_LIMITS);
        let pro = reader.text(RATE_LIMITS_PRO);
        if standard.as_deref() == Some("off") {
            if pro.is_some() {
                reader.report(RATE_LIMITS_PRO, "is set, but RATE_LIMITS is off", EXAMPLE);
            }
            return None;
        }
        let mut read = |variable, text: Option<String>, default| {
            let Some(text) = text else { return default };
            parse_quotas(&text, default).unwrap_or_else(|| {
                let problem = "is neither off nor a list of requests_per_minute, concurrent_streams, tokens_per_day, \
                               calls_per_minute, concurrent_calls, exports_per_minute and embedded_bytes_per_day, each \
                               with an integer above zero";
                reader.report(variable, problem, EXAMPLE);
                default
            })
        };
        Some(Self { standard: read(RATE_LIMITS, standard, STANDARD), pro: read(RATE_LIMITS_PRO, pro, PRO) })
    }
}

/// Parses `name=number,…`; quotas that are not listed have their default.
fn parse_quotas(text: &str, default: PlanQuotas) -> Option<PlanQuotas> {
    let mut quotas = default;
    for entry in text.split(',') {
        let (name, number) = entry.split_once('=')?;
        let number: u64 = number.trim().parse().ok().filter(|number| *number > 0)?;
        match name.trim() {
            "requests_per_minute" => quotas.chats.requests_per_minute = number.try_into().ok()?,
            "concurrent_streams" => quotas.chats.concurrent_streams = number.try_into().ok()?,
            "tokens_per_day" => quotas.chats.tokens_per_day = number,
            "calls_per_minute" => quotas.calls.calls_per_minute = number.try_into().ok()?,
            "concurrent_calls" => quotas.calls.concurrent_calls = number.try_into().ok()?,
            "exports_per_minute" => quotas.calls.exports_per_minute = number.try_into().ok()?,
            "embedded_bytes_per_day" => quotas.calls.embedded_bytes_per_day = number,
            _ => return None,
        }
    }
    Some(quotas)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, ConfigErrors};

    fn read(variables: &[(&str, &str)]) -> Result<Option<QuotasByPlan>, ConfigErrors> {
        let value = |name: &str| variables.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned());
        Config::read(&value).map(|config| config.conversations.quotas)
    }

    fn invalid(variables: &[(&str, &str)]) -> Vec<&'static str> {
        read(variables).unwrap_err().0.into_iter().map(|error| error.variable).collect()
    }

    #[test]
    fn quotas_not_listed_have_their_default() {
        assert_eq!(read(&[(RATE_LIMITS, "off")]).unwrap(), None);
        assert_eq!(read(&[]).unwrap(), Some(QuotasByPlan { standard: STANDARD, pro: PRO }));
        let set = read(&[(RATE_LIMITS, "requests_per_minute=3, tokens_per_day=9")]).unwrap().unwrap();
        let chats = UserQuotas { requests_per_minute: 3, tokens_per_day: 9, ..STANDARD.chats };
        assert_eq!(set.for_plan(false), PlanQuotas { chats, ..STANDARD });
        assert_eq!(set.for_plan(true), PRO);
        let text = "calls_per_minute=1,concurrent_calls=2,exports_per_minute=3,embedded_bytes_per_day=4";
        let set = read(&[(RATE_LIMITS_PRO, text)]).unwrap().unwrap();
        let calls =
            CallQuotas { calls_per_minute: 1, concurrent_calls: 2, exports_per_minute: 3, embedded_bytes_per_day: 4 };
        assert_eq!(set.for_plan(true), PlanQuotas { calls, ..PRO });
        for text in
            ["requests_per_minute", "requests_per_minute=0", "calls_per_minute=0", "requests_per_hour=1", "none"]
        {
            assert_eq!(invalid(&[(RATE_LIMITS, text)]), [RATE_LIMITS], "{text}");
        }
        assert_eq!(invalid(&[(RATE_LIMITS, "off"), (RATE_LIMITS_PRO, EXAMPLE)]), [RATE_LIMITS_PRO]);
    }
}
