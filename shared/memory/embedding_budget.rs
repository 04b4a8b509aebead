//! The bytes of text that a user may have embedded on one day. The database counts them, so that they hold across processes.

use std::time::Duration;

use jiff::{Timestamp, ToSpan as _, tz::TimeZone};

use super::MemoryError;
use crate::{identity::UserId, postgres::RoleTransaction};

/// Changes nothing if the budget does not suffice. Its transaction takes no other lock, because a turn locks the row first.
const RESERVE: &str = include_str!("store/sql/reserve_embedded_bytes.sql");
const RELEASE: &str = "
    update user_usage set embedded_bytes = greatest(embedded_bytes - $2, 0)
    where user_id = $1 and embedded_on = (clock_timestamp() at time zone 'UTC')::date";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbeddingBudget {
    /// `None` = unlimited.
    bytes_per_day: Option<u64>,
}

impl EmbeddingBudget {
    #[must_use]
    pub fn unlimited() -> Self {
        Self { bytes_per_day: None }
    }

    #[must_use]
    pub fn bytes_per_day(bytes: u64) -> Self {
        Self { bytes_per_day: Some(bytes) }
    }

    /// Reserves the budget for texts before they are embedded.
    pub(super) async fn reserve(
        self,
        transaction: &mut RoleTransaction,
        user: &UserId,
        texts: impl IntoIterator<Item = &str>,
    ) -> Result<Reservation, sqlx::Error> {
        let nothing = Ok(Reservation::Made { bytes: 0 });
        let Some(bytes_per_day) = self.bytes_per_day else { return nothing };
        let bytes: u64 = texts.into_iter().map(|text| text.len() as u64).sum();
        if bytes > bytes_per_day {
            return Ok(Reservation::TooLarge { bytes_per_day });
        }
        let bytes = sql_bytes(bytes);
        if bytes == 0 {
            return nothing;
        }
        let reserve = transaction.query(RESERVE).bind(user.as_str()).bind(bytes).bind(sql_bytes(bytes_per_day));
        let reserved = reserve.execute(&mut **transaction).await?;
        Ok(if reserved.rows_affected() == 0 {
            Reservation::Exceeded { bytes_per_day }
        } else {
            Reservation::Made { bytes }
        })
    }
}

#[must_use = "bytes that are not embedded are released"]
#[derive(Debug, Clone, Copy)]
pub(super) enum Reservation {
    Made {
        bytes: i64,
    },
    Exceeded {
        bytes_per_day: u64,
    },
    /// For any day.
    TooLarge {
        bytes_per_day: u64,
    },
}

impl Reservation {
    /// The reserved bytes.
    pub(super) fn bytes(self) -> Result<i64, MemoryError> {
        let (bytes_per_day, retry_after) = match self {
            Self::Made { bytes } => return Ok(bytes),
            Self::Exceeded { bytes_per_day } => (bytes_per_day, Some(until_tomorrow())),
            Self::TooLarge { bytes_per_day } => (bytes_per_day, None),
        };
        Err(MemoryError::EmbeddingBudgetExceeded { bytes_per_day, retry_after })
    }
}

pub(super) async fn release(transaction: &mut RoleTransaction, user: &UserId, bytes: i64) -> Result<(), sqlx::Error> {
    let query = transaction.query(RELEASE).bind(user.as_str()).bind(bytes);
    query.execute(&mut **transaction).await?;
    Ok(())
}

fn sql_bytes(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn until_tomorrow() -> Duration {
    const DAY: Duration = Duration::from_hours(24);
    let now = Timestamp::now().to_zoned(TimeZone::UTC);
    let tomorrow = now.start_of_day().and_then(|today| today.checked_add(1.day()));
    tomorrow.map_or(DAY, |tomorrow| tomorrow.duration_since(&now).try_into().unwrap_or(DAY))
}
