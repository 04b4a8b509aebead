//! A server that is killed repeatedly during answers: acknowledged turns are stored exactly once.

use std::collections::BTreeMap;

use agent_service::proto::agent_v1::{
    self as pb, FinishReason, conversation_service_client::ConversationServiceClient,
};
use sqlx::Executor as _;

use crate::{
    process::{Sandbox, eventually, within_timeout},
    server::{ChatStream, Server, USER, full_text, question},
};

const TURNS: u32 = 200;
const SESSIONS: u32 = 7;
/// On average, one of this many turns is killed.
const KILLED: u32 = 12;

/// Park and Miller's generator: every run is the same.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0 * 48_271 % 0x7fff_ffff;
        u32::try_from(self.0 % u64::from(bound)).unwrap()
    }
}

async fn expire_leases(sandbox: &Sandbox) {
    let mut admin = sandbox.connect_as_owner().await;
    admin.execute("update runs set lease_until = now() where ended_at is null").await.unwrap();
    admin.execute("update learning_jobs set locked_until = null, due_at = now()").await.unwrap();
}

fn turn_request(turn: u32) -> pb::ChatRequest {
    pb::ChatRequest {
        request_id: format!("turn-{turn}"),
        session_id: format!("session-{}", turn % SESSIONS),
        ..question(&format!("hello {turn}"))
    }
}

/// All frames, or `None` if the answer has more than `most`.
async fn read(server: &Server, request: pb::ChatRequest, most: u32) -> Option<Vec<pb::ChatResponse>> {
    let mut client = server.agent().await;
    let mut answer = ChatStream::new(within_timeout("an answer", client.stream_chat(request)).await.unwrap());
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
async fn acknowledged_turns_survive_kills_exactly_once() {
    let sandbox = Sandbox::new();
    let variables = [("RATE_LIMITS", "off"), ("ADMISSION_TIMEOUT_MS", "20000"), ("DEMO_CHUNK_DELAY_MS", "1")];
    let mut server = sandbox.start_serving(&variables).await;
    let mut random = Random(20_261_125);
    let mut acknowledged = BTreeMap::new();
    for turn in 0..TURNS {
        if random.below(KILLED) == 0 {
            let frames_before_kill = read(&server, turn_request(turn), random.below(40)).await;
            server.process.kill().await;
            server = sandbox.start_serving(&variables).await;
            expire_leases(&sandbox).await;
            if let Some(frames) = frames_before_kill {
                acknowledged.insert(turn, full_text(&frames).to_owned());
            }
        }
        let frames = read(&server, turn_request(turn), u32::MAX).await.unwrap();
        assert_eq!(frames.last().unwrap().finish_reason(), FinishReason::Stop, "{frames:?}");
        let text = full_text(&frames).to_owned();
        // The answer acknowledged before the kill is replayed after it.
        assert_eq!(acknowledged.entry(turn).or_insert_with(|| text.clone()), &text);
    }

    let mut client = ConversationServiceClient::new(server.channel().await);
    let mut stored = BTreeMap::new();
    for session in 0..SESSIONS {
        let request = pb::GetSessionRequest {
            user_id: USER.to_owned(),
            session_id: format!("session-{session}"),
            page_size: 100,
            ..Default::default()
        };
        let found = within_timeout("a session", client.get_session(request)).await.unwrap().into_inner();
        assert_eq!(found.session.unwrap().running_request_id, "");
        for turn in found.turns {
            let number: u32 = turn.request_id.strip_prefix("turn-").unwrap().parse().unwrap();
            let twice = stored.insert(number, turn.messages[1].content.clone());
            assert!(twice.is_none() && number % SESSIONS == session && !turn.interrupted, "{number}");
        }
    }
    assert_eq!(stored, acknowledged);
    // Each turn is learned once, even if its extraction was killed.
    expire_leases(&sandbox).await;
    let words: Vec<_> = (0..TURNS).map(|turn| format!("hello {turn}")).collect();
    eventually("every turn is remembered", async || {
        let remembered = server.remembered().await;
        words.iter().all(|text| remembered.contains(text))
    })
    .await;
    let remembered = server.remembered().await;
    assert_eq!(remembered.iter().filter(|content| content.starts_with("hello ")).count(), words.len());
}

#[tokio::test]
async fn conversation_of_killed_server_is_free_after_its_restart() {
    let sandbox = Sandbox::new();
    let variables = [("ADMISSION_TIMEOUT_MS", "20000"), ("DEMO_CHUNK_DELAY_MS", "100")];
    let server = sandbox.start_serving(&variables).await;
    assert!(read(&server, turn_request(0), 4).await.is_none());
    server.process.kill().await;
    let server = sandbox.start_serving(&variables).await;
    let other = || pb::ChatRequest { session_id: "session-0".into(), ..question("hello") };
    let frames = read(&server, other(), u32::MAX).await.unwrap();
    assert_eq!(frames.last().unwrap().finish_reason(), FinishReason::Stop);
}
