//! Which turns of conversations were learned from, and who had everything forgotten since.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use sqlx::Row as _;

use crate::{
    identity::{RequestId, SessionId, UserId},
    postgres::RoleTransaction,
};

const FORGOTTEN: &str = "
    select exists (select from forgotten_users
                   where user_digest = sha256(convert_to($1, 'UTF8')) and forgotten_at >= $2) as forgotten";

const WAS_LEARNED: &str = "
    select exists (select from learned_turns where user_id = $1 and session_id = $2 and request_id = $3) as learned";

/// No turn comes again after so long, by whichever way.
const MARK: &str = "
    with old as (
        delete from learned_turns
        where user_id = $1 and (session_id, request_id) in
              (select session_id, request_id from learned_turns
               where user_id = $1 and learned_at < now() - interval '30 days' order by learned_at limit 50)
    )
    insert into learned_turns (user_id, session_id, request_id) values ($1, $2, $3) on conflict do nothing";

/// A transaction that waited for the user's lock began earlier than what it waited for ended.
const FORGET: &str = "
    insert into forgotten_users (user_digest, forgotten_at) values (sha256(convert_to($1, 'UTF8')), clock_timestamp())
    on conflict (user_digest) do update set forgotten_at = excluded.forgotten_at";

const SWEEP: &str = "
    delete from forgotten_users
    where user_digest in (select user_digest from forgotten_users where forgotten_at < now() - interval '7 days' limit 50)";

/// Whether the user had everything forgotten at some time or later.
pub(in crate::memory) async fn is_erased_since(
    transaction: &mut RoleTransaction,
    user: &UserId,
    since: Timestamp,
) -> Result<bool, sqlx::Error> {
    let query = transaction.query(FORGOTTEN).bind(user.as_str()).bind(since.to_sqlx());
    query.fetch_one(&mut **transaction).await?.try_get("forgotten")
}

/// Whether facts were learned from a turn.
pub(in crate::memory) async fn is_extracted(
    transaction: &mut RoleTransaction,
    user: &UserId,
    session: &SessionId,
    request: &RequestId,
) -> Result<bool, sqlx::Error> {
    let query = transaction.query(WAS_LEARNED).bind(user.as_str()).bind(session.as_str()).bind(request.as_str());
    query.fetch_one(&mut **transaction).await?.try_get("learned")
}

/// Notes that facts were learned from a turn.
pub(in crate::memory) async fn mark_extracted(
    transaction: &mut RoleTransaction,
    user: &UserId,
    session: &SessionId,
    request: &RequestId,
) -> Result<(), sqlx::Error> {
    let query = transaction.query(MARK).bind(user.as_str()).bind(session.as_str()).bind(request.as_str());
    query.execute(&mut **transaction).await?;
    Ok(())
}

/// Notes that the user has everything forgotten.
pub(in crate::memory) async fn forget(transaction: &mut RoleTransaction, user: &UserId) -> Result<(), sqlx::Error> {
    transaction.query(FORGET).bind(user.as_str()).execute(&mut **transaction).await?;
    transaction.query(SWEEP).execute(&mut **transaction).await?;
    Ok(())
}
