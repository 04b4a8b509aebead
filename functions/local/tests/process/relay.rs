//! A proxy of `AddMemories` that stops forwarding after a number of calls.

use std::{sync::Mutex, time::Duration};

use agent_service::proto::agent_v1::{
    self as pb,
    memory_service_client::MemoryServiceClient,
    memory_service_server::{MemoryService, MemoryServiceServer},
};
use tokio::{net::TcpListener, sync::watch};
use tonic::{
    Code, Request, Response, Status, Streaming,
    transport::{Channel, Server as TonicServer, server::TcpIncoming},
};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{process::within_timeout, server::Server};

#[derive(Clone, Copy)]
pub enum AfterLimit {
    Refuse,
    Hang,
    /// Once, with a short delay; then it forwards again.
    LimitOnce,
}

pub struct Relay {
    pub url: String,
    state: watch::Sender<State>,
}

struct State {
    left: usize,
    then: AfterLimit,
    calls: Vec<usize>,
}

impl Relay {
    pub async fn to(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = watch::Sender::new(State { left: usize::MAX, then: AfterLimit::Refuse, calls: Vec::new() });
        let relayed = RelayService { server: Mutex::new(server.memory().await), state: state.clone() };
        let serving = TonicServer::builder().add_service(MemoryServiceServer::new(relayed));
        tokio::spawn(serving.serve_with_incoming(TcpIncoming::from(listener)));
        Self { url, state }
    }

    pub fn forward_calls(&self, left: usize, then: AfterLimit) {
        self.state.send_replace(State { left, then, calls: Vec::new() });
    }

    /// Waits for `count` calls; returns the number of memories of each.
    pub async fn calls(&self, count: usize) -> Vec<usize> {
        let mut state = self.state.subscribe();
        within_timeout("calls", state.wait_for(|state| state.calls.len() >= count)).await.unwrap().calls.clone()
    }
}

struct RelayService {
    server: Mutex<MemoryServiceClient<Channel>>,
    state: watch::Sender<State>,
}

#[tonic::async_trait]
impl MemoryService for RelayService {
    async fn add_memories(
        &self,
        request: Request<pb::AddMemoriesRequest>,
    ) -> Result<Response<pb::AddMemoriesResponse>, Status> {
        let request = request.into_inner();
        let mut otherwise = None;
        self.state.send_modify(|state| {
            state.calls.push(request.memories.len());
            match state.left.checked_sub(1) {
                Some(left) => state.left = left,
                None => {
                    otherwise = Some(state.then);
                    if matches!(state.then, AfterLimit::LimitOnce) {
                        state.left = usize::MAX;
                    }
                }
            }
        });
        match otherwise {
            None => {
                let mut server = self.server.lock().unwrap().clone();
                server.add_memories(request).await
            }
            Some(AfterLimit::Refuse) => Err(Status::unavailable("going down")),
            Some(AfterLimit::Hang) => std::future::pending().await,
            Some(AfterLimit::LimitOnce) => {
                let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(10)));
                Err(Status::with_error_details(Code::ResourceExhausted, "too many calls", details))
            }
        }
    }

    async fn ingest_document(
        &self,
        _: Request<pb::IngestDocumentRequest>,
    ) -> Result<Response<pb::IngestDocumentResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_memories(
        &self,
        _: Request<pb::ListMemoriesRequest>,
    ) -> Result<Response<pb::ListMemoriesResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn update_memory(&self, _: Request<pb::UpdateMemoryRequest>) -> Result<Response<pb::MemoryRecord>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn delete_memories(
        &self,
        _: Request<pb::DeleteMemoriesRequest>,
    ) -> Result<Response<pb::DeleteMemoriesResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    type ExportMemoriesStream = Streaming<pb::MemoryRecord>;

    async fn export_memories(
        &self,
        _: Request<pb::ExportMemoriesRequest>,
    ) -> Result<Response<Self::ExportMemoriesStream>, Status> {
        Err(Status::unimplemented(""))
    }
}
