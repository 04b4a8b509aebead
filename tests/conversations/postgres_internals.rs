use std::{future::poll_fn, pin::pin, str::FromStr as _, task::Poll, time::Duration};

use agent_service::{
    composition::build_embedder,
    conversation::{AdmitOutcome, ConversationStore as _, NewRun, Preemption, RunEnding, SessionSelection},
    erasure::erase_user,
    identity::UserId,
    memory::MemoryEngine,
    postgres::{Database, SqlArgument},
};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UnixStream},
    sync::mpsc,
};

use crate::{
    fixture::{ADMIT_TIMEOUT, chunk, ending, new_run, postgres_store, session, started, turn},
    postgres::{TestDatabase, config, pooled_url},
};

const HANG_TIMEOUT: Duration = Duration::from_secs(60);

fn run(user: &str, session: &str, request: &str) -> NewRun {
    new_run(UserId::parse("user_id", user).unwrap(), session, request)
}

async fn number(connection: &mut PgConnection, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).persistent(false).fetch_one(connection).await.unwrap()
}

async fn until(connection: &mut PgConnection, sql: &'static str, expected: i64) {
    let reached = async {
        while number(connection, sql).await != expected {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(HANG_TIMEOUT, reached).await.expect(sql);
}

#[tokio::test]
async fn admission_of_dropped_caller_is_revoked() {
    let database = TestDatabase::create().await;
    let store = postgres_store(&database.service_url(), ADMIT_TIMEOUT);
    let (mut direct, mut watching) = (database.connect().await, database.connect().await);
    direct.execute("insert into user_usage (user_id) values ('ann')").await.unwrap();
    let mut lock = direct.begin().await.unwrap();
    lock.execute("select from user_usage for update").await.unwrap();
    let asked = run("ann", "s", "r");
    {
        let mut admission = pin!(store.admit(&asked));
        let polled = poll_fn(|context| Poll::Ready(admission.as_mut().poll(context).is_pending())).await;
        assert!(polled);
        let waiting =
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%admit_turn%'
                                                                 and datname = current_database()";
        until(&mut watching, waiting, 1).await;
    }
    lock.rollback().await.unwrap();
    let counted = "select count(*) from user_usage where minute > '-infinity' and requests = 0";
    until(&mut watching, counted, 1).await;
    assert_eq!(number(&mut watching, "select count(*) from runs").await, 0);
    started(store.admit(&run("ann", "s", "r2")).await.unwrap());
}

#[tokio::test]
async fn transaction_dropped_at_any_poll_leaves_its_connection_idle() {
    let database = TestDatabase::create().await;
    let pools = Database::from_config(&config(&[("DATABASE_URL", &database.service_url())]).stores.database).unwrap();
    let pool = pools.pools_with_limit(1).conversations;
    let mut watching = database.connect().await;
    let user = UserId::parse("user_id", "ann").unwrap();
    let open = "select count(*) from pg_stat_activity where state like 'idle in transaction%'
                                                            and datname = current_database()";
    // Leaves an idle connection in the pool, so that the first poll sends `BEGIN`.
    pool.call_function(&user, "pg_backend_pid", &[]).await.unwrap();
    until(&mut watching, open, 0).await;
    for polls in 1.. {
        let has_begun = {
            let mut beginning = pin!(pool.begin(&user));
            let mut left = polls;
            poll_fn(|context| {
                left -= 1;
                match beginning.as_mut().poll(context) {
                    Poll::Ready(begun) => Poll::Ready(begun.is_ok()),
                    Poll::Pending if left == 0 => Poll::Ready(false),
                    Poll::Pending => Poll::Pending,
                }
            })
            .await
        };
        // On the only connection; within an open transaction it would not be committed.
        pool.call_function(&user, "pg_backend_pid", &[]).await.unwrap();
        until(&mut watching, open, 0).await;
        if has_begun {
            break;
        }
    }
}

#[tokio::test]
async fn late_admission_is_revoked() {
    let database = TestDatabase::create().await;
    let store = postgres_store(&database.service_url(), Duration::from_millis(100));
    let mut direct = database.connect().await;
    direct.execute("insert into user_usage (user_id) values ('ann')").await.unwrap();
    let mut lock = direct.begin().await.unwrap();
    lock.execute("select from user_usage for update").await.unwrap();
    let refused = tokio::time::timeout(HANG_TIMEOUT, store.admit(&run("ann", "s", "r"))).await.unwrap();
    // The statement timeout of the database may be first.
    assert!(refused.is_err(), "{refused:?}");
    lock.rollback().await.unwrap();
    let generous = postgres_store(&database.service_url(), ADMIT_TIMEOUT);
    let free = async {
        while !matches!(generous.admit(&run("ann", "s", "r2")).await.unwrap(), AdmitOutcome::Started { .. }) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(HANG_TIMEOUT, free).await.unwrap();
}

#[tokio::test]
async fn locked_user_delays_only_themselves() {
    let database = TestDatabase::create().await;
    let store = postgres_store(&database.service_url(), ADMIT_TIMEOUT);
    let of_ann = |number: usize| run("ann", &format!("s{number}"), &format!("r{number}"));
    let mut leases = Vec::new();
    for number in 0..20 {
        leases.push(started(store.admit(&of_ann(number)).await.unwrap()));
    }
    let mut direct = database.connect().await;
    let mut lock = direct.begin().await.unwrap();
    lock.execute("select from user_usage where user_id = 'ann' for update; select from runs for update").await.unwrap();
    // More calls than the store has connections.
    let more: Vec<_> = (100..140).map(of_ann).collect();
    let mut anns = pin!(futures_util::future::join3(
        futures_util::future::join_all(more.iter().map(|run| store.admit(run))),
        futures_util::future::join_all(leases.iter().map(|lease| store.checkpoint(lease, None))),
        futures_util::future::join_all(leases.iter().map(|lease| store.revoke_admission(lease))),
    ));
    let others: Vec<_> = (0..64).map(|number| run(&format!("user{number}"), "s", "r")).collect();
    let admissions = futures_util::future::join_all(others.iter().map(async |run| {
        let lease = started(store.admit(run).await.unwrap());
        store.checkpoint(&lease, Some(&chunk(1, 1))).await.unwrap();
        store.finish(&lease, &RunEnding { turn: Some(turn(b"x")), ..ending(2) }).await.unwrap();
    }));
    tokio::select! {
        _ = &mut anns => panic!("the calls of a locked user ended before the others"),
        done = tokio::time::timeout(HANG_TIMEOUT, admissions) => drop(done.expect("other users wait")),
    }
    lock.rollback().await.unwrap();
    let (admitted, ..) = tokio::time::timeout(HANG_TIMEOUT, anns).await.unwrap();
    assert!(admitted.iter().any(Result::is_ok), "{admitted:?}");
}

#[tokio::test]
async fn expired_runs_are_swept_after_a_turn_of_their_user() {
    let database = TestDatabase::create().await;
    let store = postgres_store(&database.service_url(), ADMIT_TIMEOUT);
    let mut direct = database.connect().await;
    direct
        .execute(
            "insert into runs (user_id, request_id, session_id, fingerprint, head, holder, lease_until, holds_session,
                               started_at, ended_at)
             select who, 'r' || n, 's' || n, '', '', '', lease_until, false, lease_until,
                    case when n % 4 > 0 then lease_until end
             from generate_series(1, 90) n,
                  lateral (select now() - make_interval(days => case when n <= 80 then 8 else 6 end) as lease_until),
                  unnest('{ann,bob}'::text[]) who;
             insert into run_chunks select user_id, request_id, 1, 1, 'x' from runs",
        )
        .await
        .unwrap();
    // More than one batch of each kind.
    let more = "insert into runs (user_id, request_id, session_id, fingerprint, head, lease_until, holds_session,
                                  started_at, ended_at)
                select 'ann', 'more' || n, 's', '', '', moment, false, moment, case when n % 2 = 0 then moment end
                from generate_series(1, 1000) n, lateral (select now() - interval '8 days' as moment)";
    direct.execute(more).await.unwrap();
    let lease = started(store.admit(&run("ann", "s", "new")).await.unwrap());
    store.finish(&lease, &RunEnding { tokens: 7, ..ending(1) }).await.unwrap();
    until(&mut direct, "select count(*) from runs where user_id = 'ann'", 11).await;
    let frames = "select count(*) from run_chunks where user_id = 'ann'";
    assert_eq!(number(&mut direct, frames).await, 11);
    assert_eq!(number(&mut direct, "select count(*) from runs where user_id = 'bob'").await, 90);
}

#[tokio::test]
async fn complete_learnable_turn_is_queued() {
    let database = TestDatabase::create().await;
    let store = postgres_store(&database.service_url(), ADMIT_TIMEOUT);
    let mut direct = database.connect().await;
    let (mut interrupted, mut private) = (turn(b"x"), turn(b"x"));
    (interrupted.is_complete, private.may_be_learned) = (false, false);
    let ends = [Some(turn(b"x")), Some(interrupted), None, Some(private), Some(turn(b"x"))];
    for (number, turn) in ends.into_iter().enumerate() {
        let lease = started(store.admit(&run("ann", "s", &format!("r{number}"))).await.unwrap());
        let end = RunEnding { turn, ..ending(1) };
        store.finish(&lease, &end).await.unwrap();
        store.finish(&lease, &end).await.unwrap();
    }
    let other = started(store.admit(&run("ann", "t", "t1")).await.unwrap());
    store.finish(&other, &RunEnding { turn: Some(turn(b"x")), ..ending(1) }).await.unwrap();
    let waiting =
        "select coalesce(string_agg(session_id || turn, ' ' order by session_id, turn), '') from learning_jobs";
    let mut waiting = async || sqlx::query_scalar::<_, String>(waiting).fetch_one(&mut direct).await.unwrap();
    assert_eq!(waiting().await, "s1 s4 t1");
    store.delete_sessions(&other.key.user, &SessionSelection::Listed(vec![session("s")])).await.unwrap();
    assert_eq!(waiting().await, "t1");
    store.delete_sessions(&other.key.user, &SessionSelection::All).await.unwrap();
    assert_eq!(waiting().await, "");
}

#[tokio::test]
async fn login_with_only_the_service_role_works() {
    let database = TestDatabase::create().await;
    let mut owner = database.connect().await;
    let login = format!("agent_talks_{}", std::process::id());
    let made = format!("drop role if exists {login}; create role {login} login");
    owner.execute(AssertSqlSafe(made)).await.unwrap();
    let mut url = reqwest::Url::parse(&database.url).unwrap();
    url.set_username(&login).unwrap();
    let url = pooled_url(url.as_str());
    let variables = [("DATABASE_URL", url.as_str()), ("DATABASE_ADMIN_URL", database.url.as_str())];
    Database::from_config(&config(&variables).stores.database).unwrap().migrate().await.unwrap();

    let store = postgres_store(&url, ADMIT_TIMEOUT);
    // More often than Postgres plans a prepared statement again, on each of several connections.
    for round in 0..8 {
        let runs: Vec<_> = (0..4).map(|n| run(&format!("user{n}"), "s", &format!("r{round}"))).collect();
        futures_util::future::join_all(runs.iter().map(async |run| {
            let lease = started(store.admit(run).await.unwrap());
            store.checkpoint(&lease, Some(&chunk(1, 1))).await.unwrap();
            store.finish(&lease, &RunEnding { turn: Some(turn(b"x")), ..ending(2) }).await.unwrap();
        }))
        .await;
    }
    let options = sqlx::postgres::PgConnectOptions::from_str(&url).unwrap().extra_float_digits(None);
    let mut bare = PgConnection::connect_with(&options).await.unwrap();
    let called = "select admit_turn('ann', 's', 'r', '', '', '', true, false, 30, 1, null, null, null, null)";
    let refused = bare.execute(called).await.unwrap_err().to_string();
    assert!(refused.contains("permission denied"), "{refused}");
    assert_eq!(number(&mut owner, "select count(*) from turns").await, 32);
    drop((store, bare));
    owner.execute(AssertSqlSafe(format!("drop owned by {login}; drop role {login}"))).await.unwrap();
}

#[tokio::test]
async fn functions_run_with_the_rights_of_their_caller() {
    let database = TestDatabase::create().await;
    let roles = Database::from_config(&config(&[("DATABASE_URL", &database.service_url())]).stores.database);
    let roles = roles.unwrap().pools();
    let store = postgres_store(&database.service_url(), ADMIT_TIMEOUT);
    let bobs = started(store.admit(&run("bob", "s", "r")).await.unwrap());
    let ann = UserId::parse("user_id", "ann").unwrap();
    let arguments = |user| {
        [
            SqlArgument::Text(user),
            SqlArgument::Text("t"),
            SqlArgument::Text("r2"),
            SqlArgument::Bytes(Some(b"")),
            SqlArgument::Bytes(Some(b"")),
            SqlArgument::Bytes(Some(b"")),
            SqlArgument::Bool(true),
            SqlArgument::Bool(false),
            SqlArgument::Seconds(Duration::from_secs(30)),
            SqlArgument::Seconds(Duration::from_secs(30)),
            SqlArgument::Number(None),
            SqlArgument::Number(None),
            SqlArgument::Number(None),
            SqlArgument::Number(None),
        ]
    };
    let code = |failed: sqlx::Error| failed.into_database_error().unwrap().code().unwrap().into_owned();
    let refused = roles.service.call_function(&ann, "admit_turn", &arguments("bob")).await.map(drop);
    assert_eq!(code(refused.unwrap_err()), "42501");
    let sign_of_life = [
        SqlArgument::Text("bob"),
        SqlArgument::Text("r"),
        SqlArgument::Bytes(Some(bobs.lease_token.as_bytes())),
        SqlArgument::Seconds(Duration::from_secs(30)),
        SqlArgument::Number(None),
        SqlArgument::Number(None),
        SqlArgument::Bytes(None),
    ];
    assert!(roles.service.call_function(&ann, "checkpoint_run", &sign_of_life).await.unwrap().is_empty());
    for role in [&roles.reader, &roles.maintenance] {
        let refused = role.call_function(&ann, "admit_turn", &arguments("ann")).await.map(drop);
        assert_eq!(code(refused.unwrap_err()), "42501");
    }
    for text in ["'; drop table runs; --", "\\", "' || current_user || '", "$1", "中"] {
        let odd = run(text, text, text);
        let lease = started(store.admit(&odd).await.unwrap());
        store.finish(&lease, &RunEnding { turn: Some(turn(b"x")), ..ending(1) }).await.unwrap();
        let listed = store.list_sessions(&odd.key.user, 10, None).await.unwrap();
        assert_eq!(listed[0].id.as_str(), text);
    }
}

#[tokio::test]
async fn run_whose_reader_returns_while_it_is_preempted_is_left_alone() {
    for takes_over in [false, true] {
        let database = TestDatabase::create().await;
        let store = postgres_store(&database.service_url(), ADMIT_TIMEOUT);
        let lease = started(store.admit(&run("ann", "s", "r1")).await.unwrap());
        store.set_read(&lease, false).await.unwrap();
        let (mut direct, mut watching) = (database.connect().await, database.connect().await);
        let mut reader = direct.begin().await.unwrap();
        reader.execute("update runs set unread_since = null").await.unwrap();
        let next = run("ann", "s", "r2");
        let waiting =
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%preempted%'
                                                                   and datname = current_database()";
        let reader_returns = async {
            until(&mut watching, waiting, 1).await;
            reader.commit().await.unwrap();
        };
        let (preempted, ()) = tokio::join!(store.preempt(&next.key, takes_over), reader_returns);
        assert!(matches!(preempted, Ok(Preemption::Refused { .. })), "{preempted:?}");
        store.checkpoint(&lease, None).await.unwrap();
    }
}

/// The path of the server's socket, and a URL through TCP whose port is to be set; `None` for a server without a socket.
fn unix_socket(database: &TestDatabase) -> Option<(String, reqwest::Url)> {
    let mut url = reqwest::Url::parse(&database.url).unwrap();
    let folder = url.query_pairs().find(|(name, value)| name == "host" && value.starts_with('/'))?.1;
    let socket = format!("{folder}/.s.PGSQL.5432");
    url.set_query(Some("sslmode=disable"));
    url.set_host(Some("127.0.0.1")).unwrap();
    Some((socket, url))
}

/// Forwards to Postgres, and cuts a connection instead of passing on the answer to an admission.
async fn cut_answers_to_admissions(socket: String) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = UnixStream::connect(&socket).await.unwrap();
            tokio::spawn(async move {
                let (mut client, mut server) = (client, server);
                let (mut asked, mut answered) = ([0; 65_536], [0; 65_536]);
                let mut is_admission = false;
                loop {
                    tokio::select! {
                        Ok(read @ 1..) = client.read(&mut asked) => {
                            is_admission |= asked[..read].windows(10).any(|window| window == b"admit_turn");
                            server.write_all(&asked[..read]).await.unwrap();
                        }
                        Ok(read @ 1..) = server.read(&mut answered) => {
                            if is_admission {
                                return;
                            }
                            client.write_all(&answered[..read]).await.unwrap();
                        }
                        else => return,
                    }
                }
            });
        }
    });
    port
}

#[tokio::test]
async fn admission_whose_answer_is_lost_is_revoked() {
    let database = TestDatabase::create().await;
    let Some((socket, mut url)) = unix_socket(&database) else { return };
    url.set_port(Some(cut_answers_to_admissions(socket).await)).unwrap();
    let store = postgres_store(url.as_str(), ADMIT_TIMEOUT);
    let refused = store.admit(&run("ann", "s", "r")).await;
    assert!(refused.is_err(), "{refused:?}");
    let mut watching = database.connect().await;
    assert_eq!(number(&mut watching, "select count(*) from runs").await, 0);
    assert_eq!(number(&mut watching, "select count(*) from user_usage where requests = 0").await, 1, "it was admitted");
}

/// Forwards a client's messages to Postgres and reports the type byte of each.
async fn eavesdrop(socket: String) -> (u16, mpsc::UnboundedReceiver<u8>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (heard, hears) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = UnixStream::connect(&socket).await.unwrap().into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
            let heard = heard.clone();
            tokio::spawn(async move {
                // The startup message has no type byte.
                let mut head = vec![0; 4];
                while from_client.read_exact(&mut head).await.is_ok() {
                    let length = u32::from_be_bytes(head[head.len() - 4..].try_into().unwrap());
                    let mut body = vec![0; length as usize - 4];
                    from_client.read_exact(&mut body).await.unwrap();
                    if head.len() == 5 {
                        heard.send(head[0]).unwrap();
                    }
                    to_server.write_all(&[&head[..], &body].concat()).await.unwrap();
                    head.resize(5, 0);
                }
            });
        }
    });
    (port, hears)
}

#[tokio::test]
async fn admit_checkpoint_and_finish_take_one_round_trip() {
    let database = TestDatabase::create().await;
    let Some((socket, mut url)) = unix_socket(&database) else { return };
    let (port, mut hears) = eavesdrop(socket).await;
    url.set_port(Some(port)).unwrap();
    let store = postgres_store(url.as_str(), ADMIT_TIMEOUT);
    store.warm_up().await;
    // Until the connection returns to the pool, which pings it with a lone sync.
    let mut said = async || {
        let mut said = String::new();
        while !said.ends_with('S') {
            said.push(char::from(hears.recv().await.unwrap()));
            if said == "S" {
                said.clear();
            }
        }
        said
    };
    assert_eq!(said().await, "QQS");
    let lease = started(store.admit(&run("ann", "s", "r")).await.unwrap());
    assert_eq!(said().await, "QS");
    for chunk in [Some(&chunk(1, 1)), None] {
        store.checkpoint(&lease, chunk).await.unwrap();
        assert_eq!(said().await, "QS");
    }
    store.finish(&lease, &RunEnding { turn: Some(turn(b"x")), ..ending(2) }).await.unwrap();
    assert_eq!(said().await, "QS");
}

#[tokio::test]
async fn erase_user_deletes_pending_turns_of_the_user() {
    let database = TestDatabase::create().await;
    let config = config(&[("DATABASE_URL", &database.service_url()), ("EMBEDDING_PROVIDER", "hashed")]);
    let pools = Database::from_config(&config.stores.database).unwrap().pools();
    let memory = MemoryEngine::new(config.memory, pools, build_embedder(&config.embedding).unwrap());
    let store = postgres_store(&database.service_url(), ADMIT_TIMEOUT);
    for user in ["ann", "bob"] {
        let lease = started(store.admit(&run(user, "s", "r")).await.unwrap());
        store.store_pending_turn(&lease, b"state", &["c"]).await.unwrap();
        store.finish(&lease, &RunEnding { turn: Some(turn(b"x")), ..ending(1) }).await.unwrap();
    }
    let ann = UserId::parse("user_id", "ann").unwrap();
    assert_eq!(erase_user(&memory, &ann).await.unwrap(), 0);
    let mut direct = database.connect().await;
    for table in ["pending_turns", "pending_calls", "learning_jobs"] {
        let users = AssertSqlSafe(format!("select string_agg(user_id, ' ') from {table}"));
        let users: String = sqlx::query_scalar(users).persistent(false).fetch_one(&mut direct).await.unwrap();
        assert_eq!(users, "bob", "{table}");
    }
    assert_eq!(store.get_session(&ann, &session("s")).await.unwrap().unwrap().turns, 1);
}

const ISOLATION: &str = "
    select concat_ws(' | ', relrowsecurity, relforcerowsecurity,
        (select string_agg(concat_ws(' ', policyname, permissive, roles, cmd, qual, with_check), ', ' order by policyname)
         from pg_policies where tablename = relname),
        (select string_agg(concat_ws(' ', grantee, privilege_type), ', ' order by grantee, privilege_type)
         from information_schema.role_table_grants where table_name = relname and grantee like 'agent\\_%'))
    from pg_class where oid = $1::regclass";

#[tokio::test]
async fn isolate_by_user_isolates_a_table_as_the_others() {
    let database = TestDatabase::create().await;
    let checked = Database::from_config(&config(&[("DATABASE_URL", &database.service_url())]).stores.database).unwrap();
    let mut owner = database.connect().await;
    owner.execute("create table \"Later notes\" (user_id text collate \"C\" not null, note text)").await.unwrap();
    let refused = checked.check().await.unwrap_err().to_string();
    assert!(refused.contains("Later notes"), "{refused}");
    owner.execute("select agent_isolate_by_user('\"Later notes\"')").await.unwrap();
    checked.check().await.unwrap();
    let mut isolation = async |table: &str| {
        sqlx::query_scalar::<_, String>(ISOLATION).bind(table).persistent(false).fetch_one(&mut owner).await.unwrap()
    };
    assert_eq!(isolation("\"Later notes\"").await, isolation("turns").await);

    let pools = checked.pools();
    let [ann, bob] = ["ann", "bob"].map(|user| UserId::parse("user_id", user).unwrap());
    let mut transaction = pools.service.begin(&ann).await.unwrap();
    transaction.execute("insert into \"Later notes\" values ('ann', 'hers')").await.unwrap();
    transaction.commit().await.unwrap();
    for (pool, user, expected) in [(&pools.service, &ann, 1), (&pools.reader, &ann, 1), (&pools.service, &bob, 0)] {
        let mut transaction = pool.begin(user).await.unwrap();
        assert_eq!(number(&mut transaction, "select count(*) from \"Later notes\"").await, expected, "{user}");
    }
    let mut transaction = pools.service.begin(&bob).await.unwrap();
    let foreign = transaction.execute("insert into \"Later notes\" values ('ann', 'not hers')").await.unwrap_err();
    assert!(foreign.to_string().contains("row-level security"), "{foreign}");
    let mut transaction = pools.service.begin(&bob).await.unwrap();
    let called = transaction.execute("select agent_isolate_by_user('turns')").await.unwrap_err().to_string();
    assert!(called.contains("permission denied"), "{called}");
}
