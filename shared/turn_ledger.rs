//! Records which turns facts were extracted from, and which users were erased.
//!
//! Extraction checks and marks a turn in the transaction that writes its facts, under the user's lock of the memory. So a
//! turn that arrives twice is extracted once, and a turn from before an erasure never.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use sqlx::Row as _;

use crate::{
    identity::{RequestId, SessionId, UserId},
    postgres::{ExpiredRows, RoleTransaction},
};

const IS_ERASED_SINCE: &str = "
    select exists (select from forgotten_users
                   where user_digest = sha256(convert_to($1, 'UTF8')) and forgotten_at >= $2) as is_erased";

const IS_EXTRACTED: &str = "
    select exists (select from learned_turns
                   where user_id = $1 and session_id = $2 and request_id = $3) as is_extracted";

/// No turn is delivered again after 30 days, neither by the queue nor by a stream of DynamoDB.
const MARK_EXTRACTED: &str = "
    with old as (
        delete from learned_turns
        where user_id = $1 and (session_id, request_id) in
              (select session_id, request_id from learned_turns
               where user_id = $1 and learned_at < now() - interval '30 days' order by learned_at limit 50)
    )
    insert into learned_turns (user_id, session_id, request_id) values ($1, $2, $3) on conflict do nothing";

/// The clock's time and not `now()`: the transaction may have waited for the user's lock.
const MARK_ERASED: &str = "
    insert into forgotten_users (user_digest, forgotten_at) values (sha256(convert_to($1, 'UTF8')), clock_timestamp())
    on conflict (user_digest) do update set forgotten_at = excluded.forgotten_at";
const ERASE_MARKS: &str = "delete from learned_turns where user_id = $1";
/// Of all users. Skips the row of a user who is erased at the same moment: two erasures would wait for each other.
const SWEEP_ERASED: &str = "
    delete from forgotten_users
    where user_digest in (select user_digest from forgotten_users where forgotten_at < now() - interval '7 days' limit 50
                          for update skip locked)";

const BATCH: u16 = 500;
const DELETE_EXPIRED: &str = "
    delete from learned_turns where user_id = $1 and (session_id, request_id) in (
        select session_id, request_id from learned_turns
        where user_id = $1 and learned_at < $2::timestamptz - interval '30 days' order by learned_at limit $3
        for update skip locked)";
const IS_EMPTY: &str = "select not exists (select from learned_turns where user_id = $1) as is_empty";
/// The policy of the table shows old rows of all users.
const DELETE_OLD_ERASURES: &str = "
    delete from forgotten_users
    where user_digest in (select user_digest from forgotten_users where forgotten_at < $1::timestamptz - interval '7 days'
                          limit $2 for update skip locked)";

/// Marks of learned turns. Waits for no lock.
pub(crate) async fn delete_expired(
    transaction: &mut RoleTransaction,
    user: &UserId,
    now: Timestamp,
) -> Result<ExpiredRows, sqlx::Error> {
    let delete = transaction.query(DELETE_EXPIRED).bind(user.as_str()).bind(now.to_sqlx()).bind(i32::from(BATCH));
    let deleted = delete.execute(&mut **transaction).await?.rows_affected();
    let left = transaction.query(IS_EMPTY).bind(user.as_str()).fetch_one(&mut **transaction).await?;
    Ok(ExpiredRows { deleted, is_partial: deleted >= BATCH.into(), is_empty: left.try_get("is_empty")? })
}

/// Of all users. Waits for no lock.
pub(crate) async fn delete_old_erasures(transaction: &mut RoleTransaction, now: Timestamp) -> Result<u64, sqlx::Error> {
    let delete = transaction.query(DELETE_OLD_ERASURES).bind(now.to_sqlx()).bind(i32::from(BATCH));
    Ok(delete.execute(&mut **transaction).await?.rows_affected())
}

/// Whether the user was erased at `since` or later.
pub(crate) async fn is_erased_since(
    transaction: &mut RoleTransaction,
    user: &UserId,
    since: Timestamp,
) -> Result<bool, sqlx::Error> {
    let query = transaction.query(IS_ERASED_SINCE).bind(user.as_str()).bind(since.to_sqlx());
    query.fetch_one(&mut **transaction).await?.try_get("is_erased")
}

pub(crate) async fn is_extracted(
    transaction: &mut RoleTransaction,
    user: &UserId,
    session: &SessionId,
    request: &RequestId,
) -> Result<bool, sqlx::Error> {
    let query = transaction.query(IS_EXTRACTED).bind(user.as_str()).bind(session.as_str()).bind(request.as_str());
    query.fetch_one(&mut **transaction).await?.try_get("is_extracted")
}

pub(crate) async fn mark_extracted(
    transaction: &mut RoleTransaction,
    user: &UserId,
    session: &SessionId,
    request: &RequestId,
) -> Result<(), sqlx::Error> {
    let query = transaction.query(MARK_EXTRACTED).bind(user.as_str()).bind(session.as_str()).bind(request.as_str());
    query.execute(&mut **transaction).await?;
    Ok(())
}

/// Records that the user was erased, and deletes the marks of their turns.
pub(crate) async fn erase_user(transaction: &mut RoleTransaction, user: &UserId) -> Result<(), sqlx::Error> {
    for statement in [MARK_ERASED, ERASE_MARKS] {
        transaction.query(statement).bind(user.as_str()).execute(&mut **transaction).await?;
    }
    transaction.query(SWEEP_ERASED).execute(&mut **transaction).await?;
    Ok(())
}
