use std::time::Duration;

use super::{DatabaseConfig, EntryPoint, EnvReader, QuotasByPlan};

pub(super) const CONVERSATIONS: &str = "CONVERSATIONS";
pub(super) const RESUME_GRACE_SECONDS: &str = "RESUME_GRACE_SECONDS";
pub(super) const MAX_CONCURRENT_STREAMS: &str = "MAX_CONCURRENT_STREAMS";

#[derive(Debug, Clone)]
pub struct ConversationsConfig {
    pub store: ConversationStoreConfig,
    /// Grace period of a run without a reader; zero = it stops at once.
    pub resume_grace: Duration,
    /// `None` = users have no quotas.
    pub quotas: Option<QuotasByPlan>,
    /// Per process.
    pub max_concurrent_streams: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConversationStoreConfig {
    Off,
    /// The database of the memories.
    Postgres,
    DynamoDb {
        table: String,
        turn_delivery: TurnDelivery,
    },
}

/// How finished turns reach fact extraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnDelivery {
    /// A server queues its turns in the database of the memories and learns from them itself.
    Queue,
    /// The function `remember` reads the stream of the table.
    Stream,
}

impl ConversationsConfig {
    pub(super) fn read(reader: &mut EnvReader<'_>, database: &DatabaseConfig, entry_point: EntryPoint) -> Self {
        let max_streams = reader.integer(MAX_CONCURRENT_STREAMS, 1, 1_000_000, "2000").unwrap_or(2_000);
        Self {
            store: read_store(reader, database, entry_point),
            resume_grace: reader.seconds(RESUME_GRACE_SECONDS, 15.0, false),
            quotas: QuotasByPlan::read(reader),
            max_concurrent_streams: usize::try_from(max_streams).unwrap_or(usize::MAX),
        }
    }
}

fn read_store(
    reader: &mut EnvReader<'_>,
    database: &DatabaseConfig,
    entry_point: EntryPoint,
) -> ConversationStoreConfig {
    let has_database = match database {
        DatabaseConfig::Embedded { .. } => true,
        DatabaseConfig::Postgres { is_read_only, .. } => !is_read_only,
        DatabaseConfig::Absent => false,
    };
    let Some(text) = reader.text(CONVERSATIONS) else {
        return if has_database { ConversationStoreConfig::Postgres } else { ConversationStoreConfig::Off };
    };
    if let Some(table) = text.strip_prefix("dynamodb://") {
        // The naming rule of DynamoDB tables.
        let is_name = (3..=255).contains(&table.len())
            && table.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'));
        if !is_name {
            let problem = "names no valid table: expected 3 to 255 letters, digits, _ - . after dynamodb://";
            reader.report(CONVERSATIONS, problem, "dynamodb://agent-conversations");
        }
        let turn_delivery = match entry_point {
            EntryPoint::Server => TurnDelivery::Queue,
            EntryPoint::Function => TurnDelivery::Stream,
        };
        return ConversationStoreConfig::DynamoDb { table: table.to_owned(), turn_delivery };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, ConfigErrors};

    fn read(entry_point: EntryPoint, value: Option<&str>) -> Result<ConversationStoreConfig, ConfigErrors> {
        let value = |name: &str| value.filter(|_| name == CONVERSATIONS).map(str::to_owned);
        Config::read_for(entry_point, &value).map(|config| config.conversations.store)
    }

    #[test]
    fn store_defaults_to_the_database_if_there_is_one() {
        assert_eq!(read(EntryPoint::Server, None).unwrap(), ConversationStoreConfig::Postgres);
        assert_eq!(read(EntryPoint::Function, None).unwrap(), ConversationStoreConfig::Off);
        assert_eq!(read(EntryPoint::Server, Some("off")).unwrap(), ConversationStoreConfig::Off);
        assert!(read(EntryPoint::Function, Some("postgres")).is_err());
        for invalid in ["redis", "dynamodb://a b"] {
            let ConfigErrors(errors) = read(EntryPoint::Server, Some(invalid)).unwrap_err();
            assert_eq!(errors.iter().map(|error| error.variable).collect::<Vec<_>>(), [CONVERSATIONS], "{invalid}");
        }
    }

    #[test]
    fn only_a_server_queues_turns_that_are_stored_in_dynamodb() {
        for (entry_point, expected) in
            [(EntryPoint::Server, TurnDelivery::Queue), (EntryPoint::Function, TurnDelivery::Stream)]
        {
            let store = read(entry_point, Some("dynamodb://conversations")).unwrap();
            let ConversationStoreConfig::DynamoDb { table, turn_delivery } = store else { panic!("{store:?}") };
            assert_eq!((table.as_str(), turn_delivery), ("conversations", expected));
        }
    }
}
