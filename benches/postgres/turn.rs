use agent_service::proto::agent_v1 as pb;

use crate::{
    BenchResult,
    counting_proxy::CountingProxy,
    database::Postgres,
    service::BenchService,
    work::{Operation, measure},
};

/// Turns that the user has before those that are measured.
const SIZES: [(usize, &str); 2] = [(20, "20 turns"), (500, "500 turns")];
const TURNS_OF_A_SESSION: usize = 10;
const QUESTION: &str = "What is the difference between eigenvalues and eigenvectors?";

/// Turns in demo mode, some in each session, one after the other.
struct KeptTurns {
    sessions: &'static str,
}

impl Operation for KeptTurns {
    async fn repeat(&self, service: &BenchService, first: usize, count: usize) -> BenchResult<()> {
        let mut agent = service.agent();
        for number in first..first + count {
            let request = pb::ChatRequest {
                user_id: "ann".to_owned(),
                session_id: format!("{}-{}", self.sessions, number / TURNS_OF_A_SESSION),
                input: Some(pb::chat_request::Input::Message(QUESTION.to_owned())),
                ..Default::default()
            };
            let mut request = tonic::Request::new(request);
            // A recall has budgets of its own.
            request.metadata_mut().insert("x-recall", "off".parse()?);
            let mut frames = agent.stream_chat(request).await?.into_inner();
            let mut last = None;
            while let Some(frame) = frames.message().await? {
                last = frame.content;
            }
            if !matches!(last, Some(pb::chat_response::Content::FullText(_))) {
                return Err(format!("turn {number} ends with {last:?}").into());
            }
        }
        Ok(())
    }
}

pub async fn run(postgres: &Postgres) -> BenchResult<()> {
    for (turns, size) in SIZES {
        let database = format!("turns_{turns}");
        postgres.create(&database).await?;
        let proxy = CountingProxy::start(postgres.socket()).await?;
        let service = BenchService::start(&proxy, &database).await?;
        KeptTurns { sessions: "earlier" }.repeat(&service, 0, turns).await?;
        service.stop().await?;
        drop(proxy);
        measure(postgres, &database, &KeptTurns { sessions: "measured" }, ("kept turn", size)).await?;
    }
    Ok(())
}
