//! A server that is killed again and again in the middle of its answers: no turn that was acknowledged is lost, and none is there
//! twice.

use std::collections::BTreeMap;

use agent_service::proto::agent_v1::{
    self as pb, FinishReason, conversation_service_client::ConversationServiceClient,
};
use sqlx::{Connection as _, Executor as _, PgConnection};

use crate::server::{Answer, Home, Server, USER, eventually, full_text, question, soon};

const TURNS: u32 = 200;
const SESSIONS: u32 = 7;
/// Every so many turns one is killed.
const KILLED: u32 = 12;

/// Numbers that look random and are the same in every run (Park and Miller's generator).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0 * 48_271 % 0x7fff_ffff;
        u32::try_from(self.0 % u64::from(bound)).unwrap()
    }
}

/// Lets the leases of processes that died run out, as time would.
async fn time_passes(home: &Home) {
    let url = agent_service::postgres::embedded::connect_options(&home.data()).unwrap();
    let mut owner = soon("a connection", PgConnection::connect_with(&url)).await.unwrap();
    owner.execute("update runs set lease_until = now() where ended_at is null").await.unwrap();
    owner.execute("update learning_jobs set locked_until = null, due_at = now()").await.unwrap();
}

fn asked(turn: u32) -> pb::ChatRequest {
    pb::ChatRequest {
        request_id: format!("turn-{turn}"),
        session_id: format!("session-{}", turn % SESSIONS),
        ..question(&format!("hello {turn}"))
    }
}

/// Frames until the end, or until so many.
async fn read(server: &Server, request: pb::ChatRequest, most: u32) -> Option<Vec<pb::ChatResponse>> {
    let mut client = server.agent().await;
    let mut answer = Answer::of(soon("an answer", client.stream_chat(request)).await.unwrap());
    let count = std::cell::Cell::new(0);
    let frames = answer
        .until(|frame| {
            count.set(count.get() + 1);
            count.get() > most || frame.finish_reason() != FinishReason::Null
        })
        .await;
    (frames.last()?.finish_reason() != FinishReason::Null).then_some(frames)
}

#[tokio::test]
async fn no_acknowledged_turn_is_lost_or_doubled_by_kills_at_random_frames() {
    let home = Home::new();
    let variables = [("RATE_LIMITS", "off"), ("ADMISSION_TIMEOUT_MS", "20000"), ("DEMO_CHUNK_DELAY_MS", "1")];
    let mut server = home.serving(&variables).await;
    let mut dice = Dice(20_261_125);
    let mut acknowledged = BTreeMap::new();
    for turn in 0..TURNS {
        if dice.below(KILLED) == 0 {
            let seen = read(&server, asked(turn), dice.below(40)).await;
            server.process.kill().await;
            server = home.serving(&variables).await;
            time_passes(&home).await;
            if let Some(frames) = seen {
                acknowledged.insert(turn, full_text(&frames).to_owned());
            }
        }
        let frames = read(&server, asked(turn), u32::MAX).await.unwrap();
        assert_eq!(frames.last().unwrap().finish_reason(), FinishReason::Stop, "{frames:?}");
        let text = full_text(&frames).to_owned();
        // What was acknowledged before the kill is what is replayed after it.
        assert_eq!(acknowledged.entry(turn).or_insert_with(|| text.clone()), &text);
    }

    let mut client = ConversationServiceClient::new(server.channel().await);
    let mut kept = BTreeMap::new();
    for session in 0..SESSIONS {
        let request = pb::GetSessionRequest {
            user_id: USER.to_owned(),
            session_id: format!("session-{session}"),
            page_size: 100,
            ..Default::default()
        };
        let found = soon("a session", client.get_session(request)).await.unwrap().into_inner();
        assert_eq!(found.session.unwrap().running_request_id, "");
        for turn in found.turns {
            let number: u32 = turn.request_id.strip_prefix("turn-").unwrap().parse().unwrap();
            let twice = kept.insert(number, turn.messages[1].content.clone());
            assert!(twice.is_none() && number % SESSIONS == session && !turn.interrupted, "{number}");
        }
    }
    assert_eq!(kept, acknowledged);
    // And each is learned from once, whatever was killed while it was.
    time_passes(&home).await;
    let words: Vec<_> = (0..TURNS).map(|turn| format!("hello {turn}")).collect();
    eventually("every turn is remembered", async || {
        let remembered = server.remembered().await;
        words.iter().all(|said| remembered.contains(said))
    })
    .await;
    let remembered = server.remembered().await;
    assert_eq!(remembered.iter().filter(|content| content.starts_with("hello ")).count(), words.len());
}

#[tokio::test]
async fn a_conversation_is_free_again_when_the_lease_of_a_killed_server_has_run_out() {
    let home = Home::new();
    let variables = [("ADMISSION_TIMEOUT_MS", "20000"), ("DEMO_CHUNK_DELAY_MS", "100")];
    let server = home.serving(&variables).await;
    assert!(read(&server, asked(0), 4).await.is_none());
    server.process.kill().await;
    let server = home.serving(&variables).await;
    let other = || pb::ChatRequest { session_id: "session-0".into(), ..question("hello") };
    let busy = server.agent().await.stream_chat(other()).await.unwrap_err();
    assert_eq!(busy.code(), tonic::Code::Aborted, "{busy:?}");
    time_passes(&home).await;
    let frames = read(&server, other(), u32::MAX).await.unwrap();
    assert_eq!(frames.last().unwrap().finish_reason(), FinishReason::Stop);
}
