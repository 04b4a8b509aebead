//! Quotas per user, by plan.

use super::EnvReader;

pub(super) const RATE_LIMITS: &str = "RATE_LIMITS";
pub(super) const RATE_LIMITS_PRO: &str = "RATE_LIMITS_PRO";

const EXAMPLE: &str = "requests_per_minute=60,concurrent_streams=4,tokens_per_day=500000";

/// Quotas of one user across all processes that share a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserQuotas {
    /// Per minute of the clock.
    pub requests_per_minute: u32,
    pub concurrent_streams: u32,
    /// Per day in UTC. The request that crosses it is still answered; the next one is refused.
    pub tokens_per_day: u64,
}

/// Far above what a person can use, so that only a runaway program meets them.
const STANDARD: UserQuotas = UserQuotas { requests_per_minute: 120, concurrent_streams: 16, tokens_per_day: 2_000_000 };
const PRO: UserQuotas = UserQuotas { requests_per_minute: 600, concurrent_streams: 64, tokens_per_day: 20_000_000 };

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotasByPlan {
    pub standard: UserQuotas,
    /// For users with `is_pro`.
    pub pro: UserQuotas,
}

impl QuotasByPlan {
    #[must_use]
    pub fn for_plan(&self, is_pro: bool) -> UserQuotas {
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
                let problem = "is neither off nor a list of requests_per_minute, concurrent_streams and tokens_per_day, \
                               each with an integer above zero";
                reader.report(variable, problem, EXAMPLE);
                default
            })
        };
        Some(Self { standard: read(RATE_LIMITS, standard, STANDARD), pro: read(RATE_LIMITS_PRO, pro, PRO) })
    }
}

/// Parses `name=number,…`; quotas that are not listed have their default.
fn parse_quotas(text: &str, default: UserQuotas) -> Option<UserQuotas> {
    let mut quotas = default;
    for entry in text.split(',') {
        let (name, number) = entry.split_once('=')?;
        let number: u64 = number.trim().parse().ok().filter(|number| *number > 0)?;
        match name.trim() {
            "requests_per_minute" => quotas.requests_per_minute = number.try_into().ok()?,
            "concurrent_streams" => quotas.concurrent_streams = number.try_into().ok()?,
            "tokens_per_day" => quotas.tokens_per_day = number,
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
        assert_eq!(set.for_plan(false), UserQuotas { requests_per_minute: 3, tokens_per_day: 9, ..STANDARD });
        assert_eq!(set.for_plan(true), PRO);
        for text in ["requests_per_minute", "requests_per_minute=0", "requests_per_hour=1", "none"] {
            assert_eq!(invalid(&[(RATE_LIMITS, text)]), [RATE_LIMITS], "{text}");
        }
        assert_eq!(invalid(&[(RATE_LIMITS, "off"), (RATE_LIMITS_PRO, EXAMPLE)]), [RATE_LIMITS_PRO]);
    }
}
