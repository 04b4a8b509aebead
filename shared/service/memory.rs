//! `agent.v1.MemoryService`.

use std::sync::Arc;

use tonic::{Request, Response};

use super::{
    call::{ClaimedUser, RpcContext, RpcResult},
    caller_language::CallerLanguage,
    convert,
    export::MemoryRecordStream,
    header_authentication::HeaderAuthentication,
    parse::memory::{self as parse, MemoryDeletion, MemoryListing},
    status, token_end,
};
use crate::{
    erasure::erase_user,
    identity::Principal,
    memory::{MemoryEngine, MemoryError, NewDocument},
    proto::agent_v1::{self as pb, memory_service_server::MemoryService},
};

#[derive(Clone)]
pub struct MemoryApi {
    memory: Arc<MemoryEngine>,
    context: RpcContext,
}

impl MemoryApi {
    pub(super) fn new(memory: Arc<MemoryEngine>, context: RpcContext) -> Self {
        Self { memory, context }
    }

    #[must_use]
    pub fn header_authentication(&self) -> HeaderAuthentication {
        HeaderAuthentication::new(self.context.clone())
    }
}

#[tonic::async_trait]
impl MemoryService for MemoryApi {
    async fn add_memories(&self, request: Request<pb::AddMemoriesRequest>) -> RpcResult<pb::AddMemoriesResponse> {
        let add = |caller: Principal, memories| async move {
            let budget = self.context.limits.embedding_budget(&caller);
            let outcome = Box::pin(self.memory.add_within(&caller.user, memories, budget)).await?;
            Ok::<_, MemoryError>(pb::AddMemoriesResponse {
                ids: outcome.ids,
                added: convert::int(outcome.added),
                unchanged: convert::int(outcome.unchanged),
            })
        };
        self.context.unary_by_plan("AddMemories", request, parse::new_memories, add).await
    }

    async fn ingest_document(
        &self,
        request: Request<pb::IngestDocumentRequest>,
    ) -> RpcResult<pb::IngestDocumentResponse> {
        let ingest = |caller: Principal, document: NewDocument| async move {
            let budget = self.context.limits.embedding_budget(&caller);
            let document_id = document.id.clone();
            let chunks = convert::int(Box::pin(self.memory.ingest(&caller.user, document, budget)).await?);
            Ok::<_, MemoryError>(pb::IngestDocumentResponse { document_id, chunks })
        };
        self.context.unary_by_plan("IngestDocument", request, parse::new_document, ingest).await
    }

    async fn list_memories(&self, request: Request<pb::ListMemoriesRequest>) -> RpcResult<pb::ListMemoriesResponse> {
        let list = |user, listing: MemoryListing| async move {
            let page = self.memory.list(&user, &listing.filter, listing.page_size, listing.after.as_ref());
            let page = Box::pin(page).await?;
            Ok::<_, MemoryError>(pb::ListMemoriesResponse {
                memories: page.memories.into_iter().map(|memory| convert::memory_record(memory, Vec::new())).collect(),
                next_page_token: page.next.map(|token| token.to_string()).unwrap_or_default(),
            })
        };
        self.context.unary("ListMemories", request, parse::listing, list).await
    }

    async fn update_memory(&self, request: Request<pb::UpdateMemoryRequest>) -> RpcResult<pb::MemoryRecord> {
        let apply = |caller: Principal, update| async move {
            let budget = self.context.limits.embedding_budget(&caller);
            let memory = Box::pin(self.memory.update(&caller.user, &update, budget)).await?;
            Ok::<_, MemoryError>(convert::memory_record(memory, Vec::new()))
        };
        self.context.unary_by_plan("UpdateMemory", request, parse::update, apply).await
    }

    async fn delete_memories(
        &self,
        request: Request<pb::DeleteMemoriesRequest>,
    ) -> RpcResult<pb::DeleteMemoriesResponse> {
        let delete = |user, deletion| async move {
            let deleted = match deletion {
                MemoryDeletion::User => Box::pin(erase_user(&self.memory, &user)).await?,
                MemoryDeletion::Selected(selection) => Box::pin(self.memory.delete(&user, &selection)).await?,
            };
            Ok::<_, MemoryError>(pb::DeleteMemoriesResponse { deleted: convert::int(deleted) })
        };
        self.context.unary("DeleteMemories", request, parse::deletion, delete).await
    }

    type ExportMemoriesStream = MemoryRecordStream;

    async fn export_memories(&self, request: Request<pb::ExportMemoriesRequest>) -> RpcResult<MemoryRecordStream> {
        let (metadata, extensions, request) = request.into_parts();
        let mut rpc = self.context.begin_call("ExportMemories", &metadata, "");
        let caller = CallerLanguage::of_call(&metadata);
        let claimed = ClaimedUser { id: &request.user_id, is_pro: false };
        let admitted = self.context.admit_caller(&rpc, claimed, &metadata, &extensions).await;
        let admitted = admitted.and_then(|principal| {
            let open = self.context.limits.open_export(&principal)?;
            Ok((token_end::stream_end(&principal), principal.user, open))
        });
        let (token_end, user, open) = admitted.map_err(|error| rpc.reject(&error, caller.resolve("")))?;
        // The export may fail at any time, so its language is settled before.
        let language = caller.resolve_for(&user, self.context.profiles.as_ref()).await;
        let memories = rpc.span().in_scope(|| self.memory.clone().export(user));
        let shutdown = self.context.drain.cancelled();
        let interrupted = async move {
            tokio::select! {
                () = shutdown => status::shutting_down(language),
                () = token_end::passed(token_end) => status::token_expired(language),
            }
        };
        Ok(Response::new(MemoryRecordStream::new(Box::pin(memories), Box::pin(interrupted), rpc, language, open)))
    }
}
