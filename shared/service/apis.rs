//! Assembles the gRPC services from the parts that they share.

use std::{sync::Arc, time::Duration};

use tokio::sync::Semaphore;

use super::{
    admission::Admission, agent::AgentApi, call::RpcContext, conversation::ConversationApi, drain::Drain,
    limits::UserLimits, memory::MemoryApi, open_streams::OpenStreams, run::RunRegistry,
};
use crate::{
    chat::Assistant,
    config::{ChatRefusals, QuotasByPlan},
    identity::Authenticator,
};

pub struct ApiParts {
    pub assistant: Assistant,
    pub authenticator: Authenticator,
    /// `None` = unlimited.
    pub quotas: Option<QuotasByPlan>,
    /// Time that a run goes on without a reader.
    pub resume_grace: Duration,
    pub max_concurrent_streams: usize,
    pub refusals: ChatRefusals,
    /// After which a silent chat repeats its last status; `None` = never.
    pub status_interval: Option<Duration>,
}

#[derive(Clone)]
pub struct Apis {
    pub agent: AgentApi,
    pub memory: MemoryApi,
    pub conversation: ConversationApi,
    pub drain: Drain,
}

impl Apis {
    #[must_use]
    pub fn new(parts: ApiParts) -> Self {
        let ApiParts {
            assistant,
            authenticator,
            quotas,
            resume_grace,
            max_concurrent_streams,
            refusals,
            status_interval,
        } = parts;
        let drain = Drain::default();
        let memory = assistant.memory.clone();
        let store = assistant.conversations.clone();
        let limits = Arc::new(UserLimits::new(quotas));
        let context = RpcContext {
            authenticator: Arc::new(authenticator),
            limits: limits.clone(),
            drain: drain.clone(),
            profiles: store.clone(),
        };
        let runs = store.map(|store| RunRegistry::new(store, resume_grace, drain.clone()));
        let admission = Admission {
            assistant: Arc::new(assistant),
            runs: runs.clone(),
            limits,
            streams: OpenStreams::new(max_concurrent_streams),
            permits: Arc::new(Semaphore::new(max_concurrent_streams.min(Semaphore::MAX_PERMITS))),
        };
        Self {
            agent: AgentApi::new(admission, memory.clone(), context.clone(), refusals, status_interval),
            memory: MemoryApi::new(memory, context.clone()),
            conversation: ConversationApi::new(runs, context),
            drain,
        }
    }
}
