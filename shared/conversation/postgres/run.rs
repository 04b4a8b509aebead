use sqlx::{Row as _, postgres::PgRow};

use super::{PostgresConversations, Result, StoreError, pending, read_count, read_request_id};
use crate::{
    conversation::{
        pending::PendingTurnDisposition,
        run::{
            FrameChunk, IDEMPOTENCY_WINDOW, LEASE_DURATION, Lease, NewTurn, RunEnding, RunOutcome, RunSignals,
            RunSnapshot, RunState, WATCH_WINDOW,
        },
    },
    identity::{RequestId, SessionId, UserId},
    postgres::{RoleTransaction, SqlArgument},
};

/// Rows of each kind that the end of a run sweeps.
const SWEEP_LIMIT: i64 = 50;

const COUNT_TOKENS: &str = "
    insert into user_usage as u (user_id, day, tokens) values ($1, (now() at time zone 'UTC')::date, $2)
    on conflict (user_id) do update set day = excluded.day,
        tokens = case when u.day = excluded.day then u.tokens else 0 end + excluded.tokens";
const END_RUN: &str = "
    with ended as (
        update runs set ended_at = clock_timestamp(), is_repeatable = $4, holds_session = false
        where user_id = $1 and request_id = $2 and holder = $3 and ended_at is null
        returning user_id, request_id
    ), last_frames as (
        insert into run_chunks (user_id, request_id, first_frame, frame_count, frames)
        select user_id, request_id, $5, $6, $7 from ended where $6 > 0
        on conflict (user_id, request_id, first_frame)
            do update set frame_count = excluded.frame_count, frames = excluded.frames
    ), profile as (
        insert into user_profiles (user_id, profile) select user_id, $8 from ended where $8 is not null
        on conflict (user_id) do update set profile = excluded.profile
    ), expired as (
        (select request_id from runs where user_id = $1 and ended_at < now() - make_interval(secs => $9)
         order by ended_at limit $10)
        union all
        (select request_id from runs
         where user_id = $1 and ended_at is null and lease_until < now() - make_interval(secs => $9) limit $10)
    ), swept as (
        delete from runs where user_id = $1 and request_id in (select request_id from expired) and request_id <> $2
    )
    select from ended";
const HAS_ENDED: &str =
    "select from runs where user_id = $1 and request_id = $2 and holder = $3 and ended_at is not null";
const INSERT_TURN: &str = "
    with session as (
        insert into sessions as s (user_id, session_id, title, turns, created_at, updated_at)
        select $1, $2, $3, 1, moment, moment from clock_timestamp() as moment
        on conflict (user_id, session_id) do update set turns = s.turns + 1, updated_at = excluded.updated_at
        returning turns, updated_at
    ), to_learn as (
        insert into learning_jobs (user_id, session_id, turn) select $1, $2, turns from session where $8
        on conflict do nothing
    )
    insert into turns (user_id, session_id, seq, request_id, record, tokens, is_complete, created_at)
    select $1, $2, turns, $4, $5, $6, $7, updated_at from session";

/// Marks the run for a second longer than the window, so that not every poll writes.
const FOLLOW: &str = "
    with watched as (
        update runs set watched_until = clock_timestamp() + make_interval(secs => $3 + 1)
        where user_id = $1 and request_id = $2 and ended_at is null
              and coalesce(watched_until < clock_timestamp() + make_interval(secs => $3), true)
    )
    select head, ended_at is not null as has_ended, lease_until > clock_timestamp() and holder is not null as is_alive
    from runs
    where user_id = $1 and request_id = $2
          and coalesce(ended_at, lease_until) > clock_timestamp() - make_interval(secs => $4)";
const CHUNKS_AFTER: &str = "
    select first_frame, frame_count, frames from run_chunks
    where user_id = $1 and request_id = $2 and first_frame + frame_count - 1 > $3
    order by first_frame";

const CANCEL: &str = "
    update runs set is_cancelled = true
    where user_id = $1 and session_id = $2 and ended_at is null and lease_until > clock_timestamp()
          and case when $3::text is null then holds_session else request_id = $3 end
    returning request_id";

impl PostgresConversations {
    pub(super) async fn checkpoint_run(&self, lease: &Lease, chunk: Option<&FrameChunk>) -> Result<RunSignals> {
        let arguments = [
            SqlArgument::Text(lease.key.user.as_str()),
            SqlArgument::Text(lease.key.request.as_str()),
            SqlArgument::Bytes(Some(lease.lease_token.as_bytes())),
            SqlArgument::Seconds(LEASE_DURATION),
            SqlArgument::Number(chunk.map(|chunk| chunk.first.into())),
            SqlArgument::Number(chunk.map(|chunk| chunk.count.into())),
            SqlArgument::Bytes(chunk.map(|chunk| &*chunk.frames)),
        ];
        let row = self.database.call_function(&lease.key.user, "checkpoint_run", &arguments).await?;
        let row = row.ok_or(StoreError::LeaseLost)?;
        Ok(RunSignals { is_cancelled: row.try_get("cancelled")?, is_watched: row.try_get("watched")? })
    }

    pub(super) async fn finish_run(&self, lease: &Lease, ending: &RunEnding) -> Result<()> {
        let database = self.database.with_statement_timeout(self.timeouts.finish);
        let mut transaction = database.begin(&lease.key.user).await?;
        let tokens = transaction.query(COUNT_TOKENS).bind(lease.key.user.as_str()).bind(i64::from(ending.tokens));
        tokens.execute(&mut *transaction).await?;
        if !end_run(&mut transaction, lease, ending).await? {
            if has_ended(&mut transaction, lease).await? {
                return Ok(());
            }
            transaction.commit().await?;
            return Err(StoreError::LeaseLost);
        }
        if let Some(turn) = &ending.turn {
            insert_turn(&mut transaction, lease, turn).await?;
        }
        match &ending.resumed_turn {
            Some((turn, PendingTurnDisposition::Done)) => pending::delete_resumed(&mut transaction, turn).await?,
            Some((turn, PendingTurnDisposition::Reopened)) => pending::reopen(&mut transaction, turn).await?,
            None => {}
        }
        Ok(transaction.commit().await?)
    }

    pub(super) async fn snapshot_run(
        &self,
        user: &UserId,
        request: &RequestId,
        after: u32,
    ) -> Result<Option<RunSnapshot>> {
        let mut transaction = self.database.begin(user).await?;
        let follow = transaction.query(FOLLOW).bind(user.as_str()).bind(request.as_str());
        let follow = follow.bind(WATCH_WINDOW.as_secs_f64()).bind(IDEMPOTENCY_WINDOW.as_secs_f64());
        let Some(run) = follow.fetch_optional(&mut *transaction).await? else { return Ok(None) };
        // The run before its frames, so that all frames of an ended run are read.
        let chunks = transaction.query(CHUNKS_AFTER).bind(user.as_str()).bind(request.as_str()).bind(i64::from(after));
        let chunks = chunks.fetch_all(&mut *transaction).await?;
        transaction.commit().await?;
        let state = match (run.try_get("has_ended")?, run.try_get("is_alive")?) {
            (true, _) => RunState::Ended,
            (false, true) => RunState::Running,
            (false, false) => RunState::Lost,
        };
        let chunks = chunks.iter().map(read_chunk).collect::<Result<_, _>>()?;
        Ok(Some(RunSnapshot { state, head: run.try_get("head")?, chunks }))
    }

    pub(super) async fn cancel_run(
        &self,
        user: &UserId,
        session: &SessionId,
        request: Option<&RequestId>,
    ) -> Result<Option<RequestId>> {
        let mut transaction = self.database.begin(user).await?;
        let cancel = transaction.query(CANCEL).bind(user.as_str()).bind(session.as_str());
        let cancelled = cancel.bind(request.map(RequestId::as_str)).fetch_optional(&mut *transaction).await?;
        transaction.commit().await?;
        cancelled.map(|row| read_request_id(&row, "request_id")).transpose()
    }
}

/// False if the run did not have its lease.
async fn end_run(transaction: &mut RoleTransaction, lease: &Lease, ending: &RunEnding) -> Result<bool> {
    let end = transaction.query(END_RUN).bind(lease.key.user.as_str()).bind(lease.key.request.as_str());
    let end = end.bind(lease.lease_token.as_bytes()).bind(ending.outcome == RunOutcome::Repeatable);
    let chunk = &ending.chunk;
    let end = end.bind(i64::from(chunk.first)).bind(i64::from(chunk.count)).bind(&*chunk.frames);
    let end = end.bind(ending.profile.as_deref()).bind(IDEMPOTENCY_WINDOW.as_secs_f64()).bind(SWEEP_LIMIT);
    Ok(end.fetch_optional(&mut **transaction).await?.is_some())
}

async fn has_ended(transaction: &mut RoleTransaction, lease: &Lease) -> Result<bool> {
    let ended = transaction.query(HAS_ENDED).bind(lease.key.user.as_str()).bind(lease.key.request.as_str());
    let ended = ended.bind(lease.lease_token.as_bytes()).fetch_optional(&mut **transaction).await?;
    Ok(ended.is_some())
}

async fn insert_turn(transaction: &mut RoleTransaction, lease: &Lease, turn: &NewTurn) -> Result<()> {
    let insert = transaction.query(INSERT_TURN).bind(lease.key.user.as_str()).bind(lease.key.session.as_str());
    let insert = insert.bind(&turn.provisional_title).bind(lease.key.request.as_str()).bind(&*turn.record);
    let insert = insert.bind(i64::from(turn.tokens)).bind(turn.is_complete);
    insert.bind(turn.is_complete && turn.may_be_learned).execute(&mut **transaction).await?;
    Ok(())
}

fn read_chunk(row: &PgRow) -> Result<FrameChunk> {
    let (first, count) = (read_count(row, "first_frame")?, read_count(row, "frame_count")?);
    Ok(FrameChunk { first, count, frames: row.try_get("frames")? })
}
