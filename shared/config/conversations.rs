//! Where conversations are kept, and what their users may use.

use std::time::Duration;

use super::{DatabaseConfig, EnvReader};
use crate::conversation::UserQuotas;

pub(super) const CONVERSATIONS: &str = "CONVERSATIONS";
pub(super) const RESUME_GRACE_SECONDS: &str = "RESUME_GRACE_SECONDS";
pub(super) const RATE_LIMITS: &str = "RATE_LIMITS";
pub(super) const RATE_LIMITS_PRO: &str = "RATE_LIMITS_PRO";
pub(super) const MAX_CONCURRENT_STREAMS: &str = "MAX_CONCURRENT_STREAMS";

const EXAMPLE: &str = "requests_per_minute=60,concurrent_streams=4,tokens_per_day=500000";

/// Where conversations are kept, and what their users may use.
#[derive(Debug, Clone)]
pub struct ConversationsConfig {
    /// Where they are kept.
    pub store: ConversationStoreConfig,
    /// How long an answer goes on whose client is lost; zero = it stops at once.
    pub resume_grace: Duration,
    /// What users may use; `None` = as much as they like.
    pub quotas: Option<QuotasByPlan>,
    /// Most answers of one process at the same time.
    pub max_concurrent_streams: usize,
}

/// Where conversations are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConversationStoreConfig {
    /// Nowhere: nothing of a chat is kept.
    Off,
    /// In the database of the memories.
    Postgres,
    /// In a table of DynamoDB.
    DynamoDb {
        /// Its name.
        table: String,
    },
}

/// What users may use, by their plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotasByPlan {
    /// Of everybody else.
    pub standard: UserQuotas,
    /// Of users with `is_pro`.
    pub pro: UserQuotas,
}

impl QuotasByPlan {
    /// The limits of a user.
    #[must_use]
    pub fn for_plan(&self, is_pro: bool) -> UserQuotas {
        if is_pro { self.pro } else { self.standard }
    }
}

/// Far above what a person can do, so that only a program that has gone wild meets them.
const STANDARD: UserQuotas = UserQuotas { requests_per_minute: 120, concurrent_streams: 16, tokens_per_day: 2_000_000 };
const PRO: UserQuotas = UserQuotas { requests_per_minute: 600, concurrent_streams: 64, tokens_per_day: 20_000_000 };

impl ConversationsConfig {
    pub(super) fn read(reader: &mut EnvReader<'_>, memory: &DatabaseConfig) -> Self {
        let grace = reader.seconds(RESUME_GRACE_SECONDS, 15.0, false);
        let max_streams = reader.integer(MAX_CONCURRENT_STREAMS, 1, 1_000_000, "2000").unwrap_or(2_000);
        Self {
            store: read_store(reader, memory),
            resume_grace: grace,
            quotas: read_limits(reader),
            max_concurrent_streams: usize::try_from(max_streams).unwrap_or(usize::MAX),
        }
    }
}

fn read_store(reader: &mut EnvReader<'_>, memory: &DatabaseConfig) -> ConversationStoreConfig {
    let has_database = match memory {
        DatabaseConfig::Embedded { .. } => true,
        DatabaseConfig::Postgres { is_read_only: only_reads, .. } => !only_reads,
        DatabaseConfig::Absent => false,
    };
    let Some(text) = reader.text(CONVERSATIONS) else {
        return if has_database { ConversationStoreConfig::Postgres } else { ConversationStoreConfig::Off };
    };
    if let Some(table) = text.strip_prefix("dynamodb://") {
        // The rule of AWS for names of tables.
        let is_name = (3..=255).contains(&table.len())
            && table.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'));
        if !is_name {
            let problem = "names no table: 3 to 255 letters, digits, and _ - . after dynamodb://";
            reader.report(CONVERSATIONS, problem, "dynamodb://agent-conversations");
        }
        return ConversationStoreConfig::DynamoDb { table: table.to_owned() };
    }
    match text.as_str() {
        "off" => ConversationStoreConfig::Off,
        "postgres" if has_database => ConversationStoreConfig::Postgres,
        "postgres" => {
            reader.report(CONVERSATIONS, "is postgres, but DATABASE_URL is not set", "off");
            ConversationStoreConfig::Off
        }
        _ => {
            reader.report(CONVERSATIONS, "is not one of postgres, dynamodb://TABLE, off", "postgres");
            ConversationStoreConfig::Off
        }
    }
}

fn read_limits(reader: &mut EnvReader<'_>) -> Option<QuotasByPlan> {
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
        limits(&text, default).unwrap_or_else(|| {
            let problem = "is not off, nor a list of requests_per_minute, concurrent_streams and tokens_per_day, each with \
                           a whole number above zero";
            reader.report(variable, problem, EXAMPLE);
            default
        })
    };
    Some(QuotasByPlan { standard: read(RATE_LIMITS, standard, STANDARD), pro: read(RATE_LIMITS_PRO, pro, PRO) })
}

/// Limits as a list of `name=number`; those that are not named are as by default.
fn limits(text: &str, default: UserQuotas) -> Option<UserQuotas> {
    let mut limits = default;
    for entry in text.split(',') {
        let (name, number) = entry.split_once('=')?;
        let number: u64 = number.trim().parse().ok().filter(|number| *number > 0)?;
        match name.trim() {
            "requests_per_minute" => limits.requests_per_minute = number.try_into().ok()?,
            "concurrent_streams" => limits.concurrent_streams = number.try_into().ok()?,
            "tokens_per_day" => limits.tokens_per_day = number,
            _ => return None,
        }
    }
    Some(limits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, ConfigErrors, EntryPoint};

    fn read(place: EntryPoint, variables: &[(&str, &str)]) -> Result<ConversationsConfig, ConfigErrors> {
        let value = |name: &str| variables.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned());
        Config::read_for(place, &value).map(|config| config.conversations)
    }

    fn wrong(variables: &[(&str, &str)]) -> Vec<&'static str> {
        let mistakes = read(EntryPoint::Server, variables).unwrap_err();
        mistakes.0.into_iter().map(|mistake| mistake.variable).collect()
    }

    #[test]
    fn conversations_are_kept_where_there_is_a_database_unless_it_is_said_otherwise() {
        let store = |place, variables: &[_]| read(place, variables).unwrap().store;
        assert_eq!(store(EntryPoint::Server, &[]), ConversationStoreConfig::Postgres);
        assert_eq!(store(EntryPoint::Function, &[]), ConversationStoreConfig::Off);
        assert_eq!(store(EntryPoint::Server, &[(CONVERSATIONS, "off")]), ConversationStoreConfig::Off);
        assert_eq!(wrong(&[(CONVERSATIONS, "redis")]), [CONVERSATIONS]);
        assert_eq!(wrong(&[(CONVERSATIONS, "dynamodb://a b")]), [CONVERSATIONS]);
        assert!(read(EntryPoint::Function, &[(CONVERSATIONS, "postgres")]).is_err());
    }

    #[test]
    fn limits_are_named_one_by_one_and_the_rest_is_as_by_default() {
        let limits = |variables: &[_]| read(EntryPoint::Server, variables).unwrap().quotas;
        assert_eq!(limits(&[(RATE_LIMITS, "off")]), None);
        assert_eq!(limits(&[]).unwrap(), QuotasByPlan { standard: STANDARD, pro: PRO });
        let set = limits(&[(RATE_LIMITS, "requests_per_minute=3, tokens_per_day=9")]).unwrap();
        assert_eq!(set.for_plan(false), UserQuotas { requests_per_minute: 3, tokens_per_day: 9, ..STANDARD });
        assert_eq!(set.for_plan(true), PRO);
        for text in ["requests_per_minute", "requests_per_minute=0", "requests_per_hour=1", "none"] {
            assert_eq!(wrong(&[(RATE_LIMITS, text)]), [RATE_LIMITS], "{text}");
        }
        assert_eq!(wrong(&[(RATE_LIMITS, "off"), (RATE_LIMITS_PRO, EXAMPLE)]), [RATE_LIMITS_PRO]);
    }
}
