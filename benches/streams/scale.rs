//! Latency of the conversation store for users with few and many turns, and among many users.

use std::time::{Duration, Instant};

use agent_service::{
    conversation::{
        AdmitOutcome, ConversationStore, FrameChunk, NewRun, NewTurn, PostgresConversations, RunEnding, RunKey,
        RunOutcome, SessionSelection, StoreError,
    },
    identity::{RequestId, SessionId, UserId},
    postgres::{Database, embedded},
};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::runtime::Runtime;

use crate::{
    common::BenchResult,
    report::{median, number},
    table::Table,
};

pub struct Plan {
    /// Turns of one user, ten a session.
    pub turns: &'static [u32],
    /// Users with ten turns each, besides.
    pub users: u32,
    pub calls: u32,
}

const COLUMNS: [&str; 6] = ["admission", "end", "history", "sessions", "turns", "deletion"];

pub fn run(runtime: &Runtime, plan: &Plan) -> BenchResult<()> {
    let data = tempfile::tempdir()?;
    runtime.block_on(async {
        let config = agent_service::config::Config::read(&|name| match name {
            "AGENT_DATA_DIR" => data.path().to_str().map(str::to_owned),
            _ => None,
        })?;
        let database = Database::from_config(&config.stores.database)?;
        let _running = database.open(std::sync::Arc::new(|_| {})).await?;
        let store = PostgresConversations::with_deadlines(
            &database.pools().conversations,
            Duration::from_secs(600),
            Duration::from_secs(20),
        );
        let caption = format!("Embedded Postgres, the median of {} calls; milliseconds.", plan.calls);
        let columns: Vec<&str> = ["user"].into_iter().chain(COLUMNS).collect();
        let table = Table::new("streams/scale", caption, &columns);
        let row = |name: String, figures: &[f64; 6]| {
            table.row([name].into_iter().chain(figures.iter().map(|figure| number(*figure))));
        };
        let mut connection = PgConnection::connect_with(&embedded::connect_options(data.path())?).await?;
        for (number, &turns) in plan.turns.iter().enumerate() {
            let user = format!("user-{number}");
            seed(&mut connection, &user, turns).await?;
            row(format!("with {turns} turns"), &measure(&store, &user, plan.calls).await?);
        }
        for number in 0..plan.users {
            seed(&mut connection, &format!("many-{number}"), 10).await?;
        }
        row(format!("one of {} users", plan.users), &measure(&store, "many-0", plan.calls.min(8)).await?);
        Ok(())
    })
}

async fn seed(connection: &mut PgConnection, user: &str, turns: u32) -> BenchResult<()> {
    // `user` is no input: it is made by the caller above.
    let rows = format!(
        "begin; set local synchronous_commit = off;
         insert into user_usage (user_id) values ('{user}');
         insert into sessions (user_id, session_id, title, turns, created_at, updated_at)
         select '{user}', 's' || n, 'Title', 10, moment, moment
         from generate_series(1, {turns} / 10) n, lateral (select now() - make_interval(secs => n) as moment) t;
         insert into turns (user_id, session_id, seq, request_id, record, tokens, is_complete, created_at)
         select '{user}', 's' || n, seq, 'r' || n || '-' || seq, convert_to(repeat(sha512(n::text::bytea)::text, 8), 'UTF8'),
                300, true, now()
         from generate_series(1, {turns} / 10) n, generate_series(1, 10) seq;
         insert into runs (user_id, request_id, session_id, fingerprint, head, holder, lease_until, holds_session, started_at,
                           ended_at)
         select user_id, request_id, session_id, sha256(request_id::bytea), sha512(request_id::bytea), '\\x00', now(), false,
                now(), now()
         from turns where user_id = '{user}';
         insert into run_chunks (user_id, request_id, first_frame, frame_count, frames)
         select user_id, request_id, 1, 100, convert_to(repeat(sha512(request_id::bytea)::text, 40), 'UTF8')
         from turns where user_id = '{user}';
         commit"
    );
    connection.execute(AssertSqlSafe(rows)).await?;
    Ok(())
}

async fn measure(store: &impl ConversationStore, user: &str, calls: u32) -> BenchResult<[f64; 6]> {
    let user = UserId::parse("user_id", user)?;
    let mut times: [Vec<f64>; 6] = Default::default();
    for call in 0..calls {
        let session = SessionId::parse("session_id", &format!("s{}", call + 1))?;
        let run = NewRun {
            key: RunKey { user: user.clone(), session: session.clone(), request: RequestId::generate() },
            fingerprint: [7; 32],
            head: vec![7; 60],
            takes_session: true,
            resumes: false,
            quotas: None,
            history_budget: Some(6_000),
        };
        let AdmitOutcome::Started { lease, .. } = timed(&mut times[0], store.admit(&run)).await? else {
            return Err("a turn was not admitted".into());
        };
        timed(&mut times[1], store.finish(&lease.take(), &ending())).await?;
        timed(&mut times[2], store.load_history(&user, &session, 6_000)).await?;
        timed(&mut times[3], store.list_sessions(&user, 20, None)).await?;
        timed(&mut times[4], store.list_turns(&user, &session, None, 20)).await?;
        let selection = SessionSelection::Listed(vec![session]);
        timed(&mut times[5], store.delete_sessions(&user, &selection)).await?;
    }
    Ok(times.map(median))
}

async fn timed<T>(times: &mut Vec<f64>, call: impl Future<Output = Result<T, StoreError>>) -> BenchResult<T> {
    let began = Instant::now();
    let result = call.await?;
    times.push(began.elapsed().as_secs_f64() * 1e3);
    Ok(result)
}

fn ending() -> RunEnding {
    RunEnding {
        chunk: FrameChunk { first: 1, count: 100, frames: b"a frame of an answer ".repeat(700) },
        outcome: RunOutcome::Final,
        turn: Some(NewTurn {
            record: b"a record of a turn ".repeat(100),
            tokens: 300,
            is_complete: true,
            provisional_title: "Title".to_owned(),
            may_be_learned: true,
        }),
        tokens: 300,
        resumed_turn: None,
        profile: None,
    }
}
