//! A person at a chat, and the page that they use.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use agent_service::proto::agent_v1::{
    self as pb, agent_service_client::AgentServiceClient, conversation_service_client::ConversationServiceClient,
    memory_service_client::MemoryServiceClient,
};
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    common::{BenchResult, milliseconds, request},
    load::Target,
};

const ROUND: Duration = Duration::from_secs(1);
const RETRIEVALS: usize = 5;

/// Milliseconds of each kind of call.
#[derive(Default)]
pub struct Latencies {
    by_call: BTreeMap<&'static str, Vec<f64>>,
    pub refused: usize,
}

impl Latencies {
    pub fn calls(&mut self) -> impl Iterator<Item = (&'static str, &mut Vec<f64>)> {
        self.by_call.iter_mut().map(|(call, latencies)| (*call, latencies))
    }

    pub fn latencies(&mut self, call: &'static str) -> &mut Vec<f64> {
        self.by_call.entry(call).or_default()
    }

    fn add<T>(&mut self, call: &'static str, began: Instant, result: Result<T, tonic::Status>) {
        match result {
            Ok(_) => self.latencies(call).push(milliseconds(began.elapsed())),
            Err(status) => {
                self.refused += 1;
                eprintln!("{call} of the ordinary client failed: {status}");
            }
        }
    }
}

pub async fn run(address: &str, user: &str, span: Duration, memories: usize) -> BenchResult<Latencies> {
    let target = Target::connect(address).await?;
    let mut memory = MemoryServiceClient::new(target.channel(0));
    let mut conversations = ConversationServiceClient::new(target.channel(0));
    let mut agent = AgentServiceClient::new(target.channel(0));
    let notes =
        (0..memories).map(|number| note(&format!("In week {number} I worked on the chain rule and on limits.")));
    let notes = pb::AddMemoriesRequest { user_id: user.to_owned(), memories: notes.collect() };
    memory.add_memories(notes).await?;

    let mut latencies = Latencies::default();
    let (began, mut rounds, mut number) = (Instant::now(), interval(ROUND), 0);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while began.elapsed() < span {
        rounds.tick().await;
        number += 1;
        chat(&mut agent, user, &mut latencies).await;
        for _ in 0..RETRIEVALS {
            let query_text = format!("What did I work on in week {number}?");
            let query = pb::MemoryQuery { user_id: user.to_owned(), query_text, ..Default::default() };
            let called = Instant::now();
            latencies.add("RetrieveMemory", called, agent.retrieve_memory(query).await);
        }
        let memories = vec![note(&format!("In lesson {number} I asked about integrals."))];
        let added = pb::AddMemoriesRequest { user_id: user.to_owned(), memories };
        let called = Instant::now();
        latencies.add("AddMemories of one", called, memory.add_memories(added).await);
        let listed = pb::ListSessionsRequest { user_id: user.to_owned(), page_size: 20, ..Default::default() };
        let called = Instant::now();
        latencies.add("ListSessions", called, conversations.list_sessions(listed).await);
    }
    Ok(latencies)
}

async fn chat(agent: &mut AgentServiceClient<tonic::transport::Channel>, user: &str, latencies: &mut Latencies) {
    let request = pb::ChatRequest { user_id: user.to_owned(), ..request() };
    let (called, mut has_first) = (Instant::now(), false);
    let read = async {
        let mut frames = agent.stream_chat(request).await?.into_inner();
        while frames.message().await?.is_some() {
            if !has_first {
                latencies.add("StreamChat, first frame", called, Ok(()));
                has_first = true;
            }
        }
        Ok(())
    };
    let read = read.await;
    latencies.add("StreamChat, whole turn", called, read);
}

fn note(content: &str) -> pb::MemoryInput {
    pb::MemoryInput { content: content.to_owned(), ..Default::default() }
}
