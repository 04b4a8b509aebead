//! What is kept of conversations: turns, titles, summaries.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use sqlx::{Row as _, postgres::PgRow};

use super::{DELETION_TIMEOUT, PostgresConversations, StoreError, count, request_id, session_id};
use crate::{
    conversation::{History, Session, SessionCursor, SessionSelection, SessionUpdate, StoredTurn, Summary},
    identity::{RequestId, SessionId, UserId},
};

const SUMMARY: &str = "select summary, summary_through from sessions where user_id = $1 and session_id = $2";
/// Walks back from the last turn and stops where the tokens are spent: nothing is read of a long conversation's beginning. A
/// turn counts as one token at least, so that there is an end in any case.
const LAST_TURNS: &str = "
    with recursive last (seq, spent) as (
        (select seq, tokens from turns where user_id = $1 and session_id = $2 and seq > $3 order by seq desc limit 1)
        union all
        select t.seq, last.spent + greatest(t.tokens, 1)
        from last join turns t on t.user_id = $1 and t.session_id = $2 and t.seq = last.seq - 1
        where t.seq > $3 and last.spent + greatest(t.tokens, 1) <= $4
    )
    select seq, request_id, record, tokens, is_complete, created_at
    from turns where user_id = $1 and session_id = $2 and seq >= (select min(seq) from last)
    order by seq";

const LIST: &str = "
    select session_id, title, created_at, updated_at, turns,
           (select request_id from runs r where r.user_id = $1 and r.session_id = s.session_id and r.holds_session
                                                and r.lease_until > clock_timestamp()) as running
    from sessions s
    where user_id = $1 and ($3::timestamptz is null or (updated_at, session_id) < ($3, $4 collate \"C\"))
    order by updated_at desc, session_id desc limit $2";
const ONE: &str = "
    select session_id, title, created_at, updated_at, turns,
           (select request_id from runs r where r.user_id = $1 and r.session_id = $2 and r.holds_session
                                                and r.lease_until > clock_timestamp()) as running
    from sessions where user_id = $1 and session_id = $2";
const TURNS: &str = "
    select seq, request_id, record, tokens, is_complete, created_at from turns
    where user_id = $1 and session_id = $2 and seq < $3 order by seq desc limit $4";

const RENAME: &str = "
    update sessions set title = $3, title_is_provisional = false where user_id = $1 and session_id = $2";
const NOTE_TITLE: &str = "
    update sessions set title = $3, title_is_provisional = false
    where user_id = $1 and session_id = $2 and title_is_provisional";
/// One that reaches further than the conversation is of another one, which was deleted.
const NOTE_SUMMARY: &str = "
    update sessions set summary = $3, summary_through = $4
    where user_id = $1 and session_id = $2 and summary_through < $4 and turns >= $4";

/// Turns go with their sessions, frames with their runs, calls with their turns.
const DELETE_SESSIONS: [&str; 4] = [
    "delete from learning_jobs where user_id = $1 and ($2::text[] is null or session_id = any($2))",
    "delete from runs where user_id = $1 and ($2::text[] is null or session_id = any($2))",
    "delete from pending_turns where user_id = $1 and ($2::text[] is null or session_id = any($2))",
    "delete from sessions where user_id = $1 and ($2::text[] is null or session_id = any($2))",
];
/// What counts against a limit at the moment stays, which is numbers alone: or to delete were a way around the limit.
const DELETE_USER: [&str; 2] = [
    "delete from user_profiles where user_id = $1",
    "delete from user_usage where user_id = $1
        and (requests = 0 or minute < date_trunc('minute', clock_timestamp(), 'UTC'))
        and (tokens = 0 or day < (clock_timestamp() at time zone 'UTC')::date)",
];

impl PostgresConversations {
    pub(super) async fn last_turns(
        &self,
        user: &UserId,
        session: &SessionId,
        max_tokens: u32,
    ) -> Result<History, StoreError> {
        let (user_id, session_id) = (user.as_str(), session.as_str());
        let mut transaction = self.database.begin(user).await?;
        let summary = transaction.query(SUMMARY).bind(user_id).bind(session_id);
        let Some(row) = summary.fetch_optional(&mut *transaction).await? else { return Ok(History::default()) };
        let through = count(&row, "summary_through")?;
        let text: Option<String> = row.try_get("summary")?;
        let turns = transaction.query(LAST_TURNS).bind(user_id).bind(session_id);
        let turns = turns.bind(i64::from(through)).bind(i64::from(max_tokens)).fetch_all(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(History {
            turns: turns.iter().map(turn).collect::<Result<_, _>>()?,
            summary: text.map(|text| Summary { text, through }),
        })
    }

    pub(super) async fn list(
        &self,
        user: &UserId,
        limit: usize,
        after: Option<&SessionCursor>,
    ) -> Result<Vec<Session>, StoreError> {
        let mut transaction = self.database.begin(user).await?;
        let list = transaction.query(LIST).bind(user.as_str()).bind(sql_limit(limit));
        let list = list.bind(after.map(|after| after.updated_at.to_sqlx())).bind(after.map(|after| after.id.as_str()));
        let rows = list.fetch_all(&mut *transaction).await?;
        transaction.commit().await?;
        rows.iter().map(listed).collect()
    }

    pub(super) async fn one(&self, user: &UserId, session: &SessionId) -> Result<Option<Session>, StoreError> {
        let mut transaction = self.database.begin(user).await?;
        let one = transaction.query(ONE).bind(user.as_str()).bind(session.as_str());
        let row = one.fetch_optional(&mut *transaction).await?;
        transaction.commit().await?;
        row.as_ref().map(listed).transpose()
    }

    pub(super) async fn turns_before(
        &self,
        user: &UserId,
        session: &SessionId,
        before: Option<u32>,
        limit: usize,
    ) -> Result<Vec<StoredTurn>, StoreError> {
        let mut transaction = self.database.begin(user).await?;
        let turns = transaction.query(TURNS).bind(user.as_str()).bind(session.as_str());
        let turns = turns.bind(before.map_or(i64::MAX, i64::from)).bind(sql_limit(limit));
        let rows = turns.fetch_all(&mut *transaction).await?;
        transaction.commit().await?;
        rows.iter().map(turn).collect()
    }

    pub(super) async fn give_title(
        &self,
        user: &UserId,
        session: &SessionId,
        title: &str,
    ) -> Result<Option<Session>, StoreError> {
        let mut transaction = self.database.begin(user).await?;
        let rename = transaction.query(RENAME).bind(user.as_str()).bind(session.as_str()).bind(title);
        rename.execute(&mut *transaction).await?;
        let one = transaction.query(ONE).bind(user.as_str()).bind(session.as_str());
        let row = one.fetch_optional(&mut *transaction).await?;
        transaction.commit().await?;
        row.as_ref().map(listed).transpose()
    }

    pub(super) async fn keep_finding(
        &self,
        user: &UserId,
        session: &SessionId,
        finding: &SessionUpdate,
    ) -> Result<(), StoreError> {
        let mut transaction = self.database.begin(user).await?;
        let note = match finding {
            SessionUpdate::Title(title) => {
                transaction.query(NOTE_TITLE).bind(user.as_str()).bind(session.as_str()).bind(title)
            }
            SessionUpdate::Summary(summary) => {
                let note = transaction.query(NOTE_SUMMARY).bind(user.as_str()).bind(session.as_str());
                note.bind(&summary.text).bind(i64::from(summary.through))
            }
        };
        note.execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }

    pub(super) async fn delete_sessions(&self, user: &UserId, sessions: &SessionSelection) -> Result<u32, StoreError> {
        let ids: Option<Vec<&str>> = match sessions {
            SessionSelection::Listed(ids) => Some(ids.iter().map(SessionId::as_str).collect()),
            SessionSelection::All => None,
        };
        let mut transaction = self.begin_locked(user, DELETION_TIMEOUT).await?;
        let mut deleted = 0;
        for statement in DELETE_SESSIONS {
            let delete = transaction.query(statement).bind(user.as_str()).bind(ids.as_deref());
            deleted = delete.execute(&mut *transaction).await?.rows_affected();
        }
        if ids.is_none() {
            for statement in DELETE_USER {
                transaction.query(statement).bind(user.as_str()).execute(&mut *transaction).await?;
            }
        }
        transaction.commit().await?;
        Ok(u32::try_from(deleted).unwrap_or(u32::MAX))
    }
}

fn sql_limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

fn time(row: &PgRow, column: &str) -> Result<Timestamp, sqlx::Error> {
    Ok(row.try_get::<jiff_sqlx::Timestamp, _>(column)?.to_jiff())
}

fn listed(row: &PgRow) -> Result<Session, StoreError> {
    let running: Option<&str> = row.try_get("running")?;
    Ok(Session {
        id: session_id(row, "session_id")?,
        title: row.try_get("title")?,
        created_at: time(row, "created_at")?,
        updated_at: time(row, "updated_at")?,
        turns: count(row, "turns")?,
        running: running
            .map(|request| RequestId::parse("running", request))
            .transpose()
            .map_err(|_| StoreError::Malformed("the id of a request"))?,
    })
}

fn turn(row: &PgRow) -> Result<StoredTurn, StoreError> {
    Ok(StoredTurn {
        seq: count(row, "seq")?,
        request: request_id(row, "request_id")?,
        record: row.try_get("record")?,
        tokens: count(row, "tokens")?,
        is_complete: row.try_get("is_complete")?,
        created_at: time(row, "created_at")?,
    })
}
