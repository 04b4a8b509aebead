use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use sqlx::{Row as _, postgres::PgRow};

use super::{PostgresConversations, Result, StoreError, UserRow, read_count, read_request_id};
use crate::{
    conversation::session::{History, Session, SessionCursor, SessionSelection, SessionUpdate, StoredTurn, Summary},
    identity::{RequestId, SessionId, UserId},
};

const SUMMARY: &str = "select summary, summary_through from sessions where user_id = $1 and session_id = $2";
const LAST_TURNS: &str = "select * from last_turns($1, $2, $3, $4, null)";

const SESSIONS: &str = "
    select session_id, title, created_at, updated_at, turns,
           (select request_id from runs r where r.user_id = $1 and r.session_id = s.session_id and r.holds_session
                                                and r.lease_until > clock_timestamp()) as running
    from sessions s
    where user_id = $1 and ($3::timestamptz is null or (updated_at, session_id) < ($3, $4 collate \"C\"))
    order by updated_at desc, session_id desc limit $2";
const SESSION: &str = "
    select session_id, title, created_at, updated_at, turns,
           (select request_id from runs r where r.user_id = $1 and r.session_id = $2 and r.holds_session
                                                and r.lease_until > clock_timestamp()) as running
    from sessions where user_id = $1 and session_id = $2";
const TURNS: &str = "
    select seq, request_id, record, tokens, is_complete, created_at from turns
    where user_id = $1 and session_id = $2 and seq < $3 order by seq desc limit $4";

const SET_TITLE: &str = "
    update sessions set title = $3, title_is_provisional = false where user_id = $1 and session_id = $2";
const SET_GENERATED_TITLE: &str = "
    update sessions set title = $3, title_is_provisional = false
    where user_id = $1 and session_id = $2 and title_is_provisional";
/// A summary that covers more turns than there are is of a deleted session of the same id.
const SET_SUMMARY: &str = "
    update sessions set summary = $3, summary_through = $4
    where user_id = $1 and session_id = $2 and summary_through < $4 and turns >= $4";

/// In lock order. Chunks go with their runs, calls with their pending turns, turns with their sessions.
const DELETE_LISTED: [&str; 4] = [
    "delete from learning_jobs where user_id = $1 and session_id = any($2)",
    "delete from runs where user_id = $1 and session_id = any($2)",
    "delete from pending_turns where user_id = $1 and session_id = any($2)",
    "delete from sessions where user_id = $1 and session_id = any($2)",
];
const DELETE_ALL: [&str; 4] = [
    "delete from learning_jobs where user_id = $1",
    "delete from runs where user_id = $1",
    "delete from pending_turns where user_id = $1",
    "delete from sessions where user_id = $1",
];
/// The use of quotas stays: deletion must not reset them.
const DELETE_USER: [&str; 2] = [
    "delete from user_profiles where user_id = $1",
    "delete from user_usage where user_id = $1
        and (requests = 0 or minute < date_trunc('minute', clock_timestamp(), 'UTC'))
        and (tokens = 0 or day < (clock_timestamp() at time zone 'UTC')::date)
        and (embedded_bytes = 0 or embedded_on < (clock_timestamp() at time zone 'UTC')::date)",
];

impl PostgresConversations {
    pub(super) async fn read_history(&self, user: &UserId, session: &SessionId, max_tokens: u32) -> Result<History> {
        let (user_id, session_id) = (user.as_str(), session.as_str());
        let mut transaction = self.database.begin(user).await?;
        let summary = transaction.query(SUMMARY).bind(user_id).bind(session_id);
        let Some(row) = summary.fetch_optional(&mut *transaction).await? else { return Ok(History::default()) };
        let through: i64 = row.try_get("summary_through")?;
        let turns = transaction.query(LAST_TURNS).bind(user_id).bind(session_id);
        let turns = turns.bind(through).bind(i64::from(max_tokens)).fetch_all(&mut *transaction).await?;
        transaction.commit().await?;
        read_history(&row, &turns)
    }

    pub(super) async fn read_profile(&self, user: &UserId) -> Result<Option<Vec<u8>>> {
        let mut transaction = self.database.begin(user).await?;
        let query = transaction.query("select profile from user_profiles where user_id = $1").bind(user.as_str());
        let row = query.fetch_optional(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(row.map(|row| row.try_get("profile")).transpose()?)
    }

    pub(super) async fn read_sessions(
        &self,
        user: &UserId,
        limit: usize,
        after: Option<&SessionCursor>,
    ) -> Result<Vec<Session>> {
        let mut transaction = self.database.begin(user).await?;
        let list = transaction.query(SESSIONS).bind(user.as_str()).bind(sql_limit(limit));
        let list = list.bind(after.map(|after| after.updated_at.to_sqlx())).bind(after.map(|after| after.id.as_str()));
        let rows = list.fetch_all(&mut *transaction).await?;
        transaction.commit().await?;
        rows.iter().map(read_session).collect()
    }

    pub(super) async fn read_session(&self, user: &UserId, session: &SessionId) -> Result<Option<Session>> {
        let mut transaction = self.database.begin(user).await?;
        let query = transaction.query(SESSION).bind(user.as_str()).bind(session.as_str());
        let row = query.fetch_optional(&mut *transaction).await?;
        transaction.commit().await?;
        row.as_ref().map(read_session).transpose()
    }

    pub(super) async fn read_turns(
        &self,
        user: &UserId,
        session: &SessionId,
        before: Option<u32>,
        limit: usize,
    ) -> Result<Vec<StoredTurn>> {
        let mut transaction = self.database.begin(user).await?;
        let turns = transaction.query(TURNS).bind(user.as_str()).bind(session.as_str());
        let turns = turns.bind(before.map_or(i64::MAX, i64::from)).bind(sql_limit(limit));
        let rows = turns.fetch_all(&mut *transaction).await?;
        transaction.commit().await?;
        rows.iter().map(read_turn).collect()
    }

    pub(super) async fn set_title(&self, user: &UserId, session: &SessionId, title: &str) -> Result<Option<Session>> {
        let mut transaction = self.database.begin(user).await?;
        let set = transaction.query(SET_TITLE).bind(user.as_str()).bind(session.as_str()).bind(title);
        set.execute(&mut *transaction).await?;
        let query = transaction.query(SESSION).bind(user.as_str()).bind(session.as_str());
        let row = query.fetch_optional(&mut *transaction).await?;
        transaction.commit().await?;
        row.as_ref().map(read_session).transpose()
    }

    pub(super) async fn apply_update(&self, user: &UserId, session: &SessionId, update: &SessionUpdate) -> Result<()> {
        let mut transaction = self.database.begin(user).await?;
        let query = match update {
            SessionUpdate::Title(title) => {
                transaction.query(SET_GENERATED_TITLE).bind(user.as_str()).bind(session.as_str()).bind(title)
            }
            SessionUpdate::Summary(summary) => {
                let query = transaction.query(SET_SUMMARY).bind(user.as_str()).bind(session.as_str());
                query.bind(&summary.text).bind(i64::from(summary.through))
            }
        };
        query.execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }

    pub(super) async fn delete_selected(&self, user: &UserId, sessions: &SessionSelection) -> Result<u32> {
        let mut transaction = self.database.with_statement_timeout(self.timeouts.delete).begin(user).await?;
        let row = UserRow::lock(&mut transaction, user).await?;
        let mut deleted_sessions = 0;
        match sessions {
            SessionSelection::Listed(ids) => {
                let ids: Vec<&str> = ids.iter().map(SessionId::as_str).collect();
                for statement in DELETE_LISTED {
                    let delete = transaction.query(statement).bind(user.as_str()).bind(&ids);
                    deleted_sessions = delete.execute(&mut *transaction).await?.rows_affected();
                }
            }
            SessionSelection::All => {
                for statement in DELETE_ALL {
                    let delete = transaction.query(statement).bind(user.as_str());
                    deleted_sessions = delete.execute(&mut *transaction).await?.rows_affected();
                }
                for statement in DELETE_USER {
                    transaction.query(statement).bind(user.as_str()).execute(&mut *transaction).await?;
                }
            }
        }
        row.remove_if_new(&mut transaction).await?;
        transaction.commit().await?;
        Ok(u32::try_from(deleted_sessions).unwrap_or(u32::MAX))
    }
}

fn sql_limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

fn read_time(row: &PgRow, column: &str) -> Result<Timestamp, sqlx::Error> {
    Ok(row.try_get::<jiff_sqlx::Timestamp, _>(column)?.to_jiff())
}

/// `turns` latest first.
pub(super) fn read_history(session: &PgRow, turns: &[PgRow]) -> Result<History> {
    let through = read_count(session, "summary_through")?;
    let text: Option<String> = session.try_get("summary")?;
    Ok(History {
        turns: turns.iter().rev().map(read_turn).collect::<Result<_, _>>()?,
        summary: text.map(|text| Summary { text, through }),
    })
}

fn read_session(row: &PgRow) -> Result<Session> {
    let id = SessionId::parse("session_id", row.try_get("session_id")?);
    let running: Option<&str> = row.try_get("running")?;
    let running = running.map(|request| RequestId::parse("running", request)).transpose();
    Ok(Session {
        id: id.map_err(|_| StoreError::Malformed("a session id"))?,
        title: row.try_get("title")?,
        created_at: read_time(row, "created_at")?,
        updated_at: read_time(row, "updated_at")?,
        turns: read_count(row, "turns")?,
        running: running.map_err(|_| StoreError::Malformed("a request id"))?,
    })
}

fn read_turn(row: &PgRow) -> Result<StoredTurn> {
    Ok(StoredTurn {
        seq: read_count(row, "seq")?,
        request: read_request_id(row, "request_id")?,
        record: row.try_get("record")?,
        tokens: read_count(row, "tokens")?,
        is_complete: row.try_get("is_complete")?,
        created_at: read_time(row, "created_at")?,
    })
}
