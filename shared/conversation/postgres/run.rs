use sqlx::{Row as _, postgres::PgRow};

use super::{PostgresConversations, Result, StoreError, read_count, read_request_id};
use crate::{
    conversation::{
        pending::PendingTurnDisposition,
        run::{
            FrameChunk, FramePage, IDEMPOTENCY_WINDOW, LEASE_DURATION, Lease, RunEnding, RunOutcome, RunSignals,
            RunSnapshot, RunState, WATCH_WINDOW,
        },
    },
    identity::{RequestId, SessionId, UserId},
    postgres::SqlArgument,
};

/// Marks the run for a second longer than the window, so that not every poll writes.
const FOLLOW: &str = "
    with watched as (
        update runs set watched_until = clock_timestamp() + make_interval(secs => $3 + 1)
        where user_id = $1 and request_id = $2 and ended_at is null and $5
              and coalesce(watched_until < clock_timestamp() + make_interval(secs => $3), true)
    )
    select head, ended_at is not null as has_ended, lease_until > clock_timestamp() and holder is not null as is_alive,
           (select coalesce(max(first_frame + frame_count - 1), 0)
            from run_chunks where user_id = $1 and request_id = $2) as stored
    from runs
    where user_id = $1 and request_id = $2
          and coalesce(ended_at, lease_until) > clock_timestamp() - make_interval(secs => $4)";
/// A page of chunks: those that begin within its bytes, cut at its end. `octet_length` reads no chunk, and `substring` of a
/// chunk only the begin. A run in progress has many short chunks, so that their number is limited as well.
const CHUNKS: &str = "
    with chunks as (
        select first_frame, frame_count, frames, case when first_frame = $4 then $5::int else 0 end as skipped
        from run_chunks
        where user_id = $1 and request_id = $2 and first_frame + frame_count - 1 > $3
        order by first_frame limit 256
    ), positions as (
        select *, sum(octet_length(frames) - skipped)
                  over (order by first_frame rows between unbounded preceding and 1 preceding) as preceding
        from chunks
    )
    select first_frame, frame_count, substring(frames from skipped + 1 for ($6 - coalesce(preceding, 0))::int) as frames
    from positions
    where coalesce(preceding, 0) < $6::int8
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
        let rows = self.database.call_function(&lease.key.user, "checkpoint_run", &arguments).await?;
        let row = rows.first().ok_or(StoreError::LeaseLost)?;
        Ok(RunSignals { is_cancelled: row.try_get("cancelled")? })
    }

    pub(super) async fn finish_run(&self, lease: &Lease, ending: &RunEnding) -> Result<()> {
        let database = self.database.with_statement_timeout(self.timeouts.finish);
        let rows = database.call_function(&lease.key.user, "finish_turn", &finish_arguments(lease, ending)).await?;
        let row = rows.first().ok_or(StoreError::Malformed("the end of a run"))?;
        match row.try_get("outcome")? {
            "ended" | "repeated" => Ok(()),
            "lost" => Err(StoreError::LeaseLost),
            _ => Err(StoreError::Malformed("the end of a run")),
        }
    }

    pub(super) async fn snapshot_run(
        &self,
        user: &UserId,
        request: &RequestId,
        page: &FramePage,
    ) -> Result<Option<RunSnapshot>> {
        let mut transaction = self.database.begin(user).await?;
        let follow = transaction.query(FOLLOW).bind(user.as_str()).bind(request.as_str());
        let follow = follow.bind(WATCH_WINDOW.as_secs_f64()).bind(IDEMPOTENCY_WINDOW.as_secs_f64());
        let follow = follow.bind(page.marks_reader);
        let Some(run) = follow.fetch_optional(&mut *transaction).await? else { return Ok(None) };
        // The run before its frames, so that all frames of an ended run are read.
        let bytes = |count: usize| i64::from(i32::try_from(count).unwrap_or(i32::MAX));
        let chunks = transaction.query(CHUNKS).bind(user.as_str()).bind(request.as_str()).bind(i64::from(page.after));
        let chunks = chunks.bind(i64::from(page.chunk)).bind(bytes(page.offset)).bind(bytes(page.limit));
        let chunks = chunks.fetch_all(&mut *transaction).await?;
        transaction.commit().await?;
        let state = match (run.try_get("has_ended")?, run.try_get("is_alive")?) {
            (true, _) => RunState::Ended,
            (false, true) => RunState::Running,
            (false, false) => RunState::Lost,
        };
        let chunks = chunks.iter().map(read_chunk).collect::<Result<_, _>>()?;
        Ok(Some(RunSnapshot { state, head: run.try_get("head")?, stored: read_count(&run, "stored")?, chunks }))
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

/// In the order of the parameters of `finish_turn`.
fn finish_arguments<'a>(lease: &'a Lease, ending: &'a RunEnding) -> [SqlArgument<'a>; 17] {
    let (chunk, turn) = (&ending.chunk, ending.turn.as_ref());
    let (pending_turn, reopened_call) = match &ending.resumed_turn {
        Some((turn, PendingTurnDisposition::Done)) => (Some(&*turn.turn), None),
        Some((turn, PendingTurnDisposition::Reopened)) => (Some(&*turn.turn), Some(&*turn.last_call)),
        None => (None, None),
    };
    [
        SqlArgument::Text(lease.key.user.as_str()),
        SqlArgument::Text(lease.key.session.as_str()),
        SqlArgument::Text(lease.key.request.as_str()),
        SqlArgument::Bytes(Some(lease.lease_token.as_bytes())),
        SqlArgument::Bool(ending.outcome == RunOutcome::Repeatable),
        SqlArgument::Number(Some(ending.tokens.into())),
        SqlArgument::Number(Some(chunk.first.into())),
        SqlArgument::Number(Some(chunk.count.into())),
        SqlArgument::Bytes(Some(&chunk.frames)),
        SqlArgument::Bytes(ending.profile.as_deref()),
        SqlArgument::Bytes(turn.map(|turn| &*turn.record)),
        SqlArgument::OptionalText(turn.map(|turn| &*turn.provisional_title)),
        SqlArgument::Number(turn.map(|turn| turn.tokens.into())),
        SqlArgument::Bool(turn.is_some_and(|turn| turn.is_complete)),
        SqlArgument::Bool(turn.is_some_and(|turn| turn.is_complete && turn.may_be_learned)),
        SqlArgument::OptionalText(pending_turn),
        SqlArgument::OptionalText(reopened_call),
    ]
}

fn read_chunk(row: &PgRow) -> Result<FrameChunk> {
    let (first, count) = (read_count(row, "first_frame")?, read_count(row, "frame_count")?);
    Ok(FrameChunk { first, count, frames: row.try_get("frames")? })
}
