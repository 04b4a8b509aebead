//! `agent.v1.MemoryService`.

use std::sync::Arc;

use jiff::Timestamp;
use tonic::{Request, Response, Status};

use super::{
    call::{RpcCall, RpcContext, trace_of, unary},
    export::MemoryRecordStream,
    parse::{self, memory::MemoryDeletion},
};
use crate::{
    erasure::erase_user,
    language::Language,
    memory::{Memory, MemoryEngine, MemoryError, MemoryVersion},
    proto::agent_v1::{self as pb, memory_service_server::MemoryService},
};

/// Answers `agent.v1.MemoryService`.
#[derive(Clone)]
pub struct MemoryApi {
    memory: Arc<MemoryEngine>,
    gate: RpcContext,
}

impl MemoryApi {
    pub(super) fn new(memory: Arc<MemoryEngine>, gate: RpcContext) -> Self {
        Self { memory, gate }
    }
}

#[tonic::async_trait]
impl MemoryService for MemoryApi {
    async fn add_memories(
        &self,
        request: Request<pb::AddMemoriesRequest>,
    ) -> Result<Response<pb::AddMemoriesResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let memories = parse::memory::new_memories(request.memories);
        unary("AddMemories", &self.gate, &metadata, &request.user_id, memories, |user, memories| async move {
            let added = self.memory.add(&user, memories).await?;
            Ok::<_, MemoryError>(pb::AddMemoriesResponse {
                ids: added.ids,
                added: int(added.added),
                unchanged: int(added.unchanged),
            })
        })
        .await
    }

    async fn ingest_document(
        &self,
        request: Request<pb::IngestDocumentRequest>,
    ) -> Result<Response<pb::IngestDocumentResponse>, Status> {
        let (metadata, _, mut request) = request.into_parts();
        let user_id = std::mem::take(&mut request.user_id);
        let document = parse::memory::document(request);
        unary("IngestDocument", &self.gate, &metadata, &user_id, document, |user, document| async move {
            let document_id = document.id.clone();
            let chunks = int(self.memory.ingest(&user, document).await?);
            Ok::<_, MemoryError>(pb::IngestDocumentResponse { document_id, chunks })
        })
        .await
    }

    async fn list_memories(
        &self,
        request: Request<pb::ListMemoriesRequest>,
    ) -> Result<Response<pb::ListMemoriesResponse>, Status> {
        let (metadata, _, mut request) = request.into_parts();
        let user_id = std::mem::take(&mut request.user_id);
        let listing = parse::memory::listing(request);
        unary("ListMemories", &self.gate, &metadata, &user_id, listing, |user, (filter, size, after)| async move {
            let page = self.memory.list(&user, &filter, size, after.as_ref()).await?;
            Ok::<_, MemoryError>(pb::ListMemoriesResponse {
                memories: page.memories.into_iter().map(|memory| record(memory, Vec::new())).collect(),
                next_page_token: page.next.map(|token| token.to_string()).unwrap_or_default(),
            })
        })
        .await
    }

    async fn update_memory(
        &self,
        request: Request<pb::UpdateMemoryRequest>,
    ) -> Result<Response<pb::MemoryRecord>, Status> {
        let (metadata, _, mut request) = request.into_parts();
        let user_id = std::mem::take(&mut request.user_id);
        let correction = parse::memory::correction(request);
        unary("UpdateMemory", &self.gate, &metadata, &user_id, correction, |user, correction| async move {
            Ok::<_, MemoryError>(record(self.memory.update(&user, &correction).await?, Vec::new()))
        })
        .await
    }

    async fn delete_memories(
        &self,
        request: Request<pb::DeleteMemoriesRequest>,
    ) -> Result<Response<pb::DeleteMemoriesResponse>, Status> {
        let (metadata, _, mut request) = request.into_parts();
        let user_id = std::mem::take(&mut request.user_id);
        let deletion = parse::memory::deletion(request);
        unary("DeleteMemories", &self.gate, &metadata, &user_id, deletion, |user, deletion| async move {
            let deleted = match deletion {
                MemoryDeletion::User => erase_user(&self.memory, &user).await?,
                MemoryDeletion::Selected(selection) => self.memory.delete(&user, &selection).await?,
            };
            Ok::<_, MemoryError>(pb::DeleteMemoriesResponse { deleted: int(deleted) })
        })
        .await
    }

    type ExportMemoriesStream = MemoryRecordStream;

    async fn export_memories(
        &self,
        request: Request<pb::ExportMemoriesRequest>,
    ) -> Result<Response<MemoryRecordStream>, Status> {
        let (metadata, _, request) = request.into_parts();
        let mut call = RpcCall::begin("ExportMemories", &trace_of(&metadata, ""), &self.gate.drain);
        let user = self.gate.user(&request.user_id, &metadata).await;
        let user = user.map_err(|refusal| call.refused(&refusal, Language::default()))?;
        call.set_user(&user);
        let records = call.span().in_scope(|| self.memory.clone().export(user));
        Ok(Response::new(MemoryRecordStream::new(Box::pin(records), Box::pin(self.gate.drain.cancelled()), call)))
    }
}

fn int(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

pub(super) fn proto_time(time: Timestamp) -> prost_types::Timestamp {
    // A time before 1970 has a negative fraction there and a positive one here.
    let nanos = time.subsec_nanosecond();
    if nanos < 0 {
        prost_types::Timestamp { seconds: time.as_second() - 1, nanos: nanos + 1_000_000_000 }
    } else {
        prost_types::Timestamp { seconds: time.as_second(), nanos }
    }
}

pub(super) fn record(memory: Memory, history: Vec<MemoryVersion>) -> pb::MemoryRecord {
    let version = |version: MemoryVersion| pb::MemoryVersion {
        content: version.content,
        tags: version.tags,
        metadata: version.metadata.into_iter().collect(),
        replaced_at: Some(proto_time(version.replaced_at)),
    };
    let mut record = pb::MemoryRecord {
        id: memory.id,
        content: memory.content,
        source_type: memory.source_type,
        tags: memory.tags,
        created_at: Some(proto_time(memory.created_at)),
        updated_at: Some(proto_time(memory.updated_at)),
        metadata: memory.metadata.into_iter().collect(),
        superseded_by: memory.superseded_by.unwrap_or_default(),
        history: history.into_iter().map(version).collect(),
        ..Default::default()
    };
    if let Some(place) = memory.location {
        record.document_id = place.document_id;
        record.title = place.title;
        record.url = place.url;
        record.section_title = place.section;
        record.chunk_index = i32::try_from(place.chunk_index).unwrap_or(i32::MAX);
    }
    record
}

/// A memory that was found, with what is known of it as metadata.
pub(super) fn item(memory: Memory, score: f32) -> pb::MemoryItem {
    let mut metadata: std::collections::BTreeMap<_, _> = memory.metadata.into_iter().collect();
    let mut tell = |name: &str, value: String| metadata.insert(name.to_owned(), value);
    tell("source_type", memory.source_type);
    tell("tags", memory.tags.join(","));
    if let Some(place) = memory.location {
        tell("document_id", place.document_id);
        tell("title", place.title);
        tell("section_title", place.section);
        tell("chunk_index", place.chunk_index.to_string());
        if !place.url.is_empty() {
            tell("url", place.url);
        }
    }
    pb::MemoryItem {
        id: memory.id,
        content: memory.content,
        score,
        created_at: Some(proto_time(memory.created_at)),
        metadata,
    }
}
