//! `agent.v1.MemoryService`.

use std::sync::Arc;

use jiff::Timestamp;
use tonic::{Request, Response, Status};

use super::{Drain, call::unary, parse};
use crate::{
    memory::{Memory, MemoryEngine},
    proto::agent_v1::{self as pb, memory_service_server::MemoryService},
};

/// Answers `agent.v1.MemoryService`.
#[derive(Clone)]
pub struct MemoryApi {
    memory: Arc<MemoryEngine>,
    drain: Drain,
}

impl MemoryApi {
    pub(super) fn new(memory: Arc<MemoryEngine>, drain: Drain) -> Self {
        Self { memory, drain }
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
        unary("AddMemories", &self.drain, &metadata, &request.user_id, memories, |user, memories| async move {
            let added = self.memory.add(&user, memories).await?;
            Ok(pb::AddMemoriesResponse { ids: added.ids, added: int(added.added), unchanged: int(added.unchanged) })
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
        unary("ListMemories", &self.drain, &metadata, &user_id, listing, |user, (filter, size, after)| async move {
            let page = self.memory.list(&user, &filter, size, after.as_ref()).await?;
            Ok(pb::ListMemoriesResponse {
                memories: page.memories.into_iter().map(record).collect(),
                next_page_token: page.next.map(|token| token.to_string()).unwrap_or_default(),
            })
        })
        .await
    }

    async fn delete_memories(
        &self,
        request: Request<pb::DeleteMemoriesRequest>,
    ) -> Result<Response<pb::DeleteMemoriesResponse>, Status> {
        let (metadata, _, mut request) = request.into_parts();
        let user_id = std::mem::take(&mut request.user_id);
        let selection = parse::memory::selection(request);
        unary("DeleteMemories", &self.drain, &metadata, &user_id, selection, |user, selection| async move {
            let deleted = self.memory.delete(&user, &selection).await?;
            Ok(pb::DeleteMemoriesResponse { deleted: i32::try_from(deleted).unwrap_or(i32::MAX) })
        })
        .await
    }
}

fn int(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

fn proto_time(time: Timestamp) -> prost_types::Timestamp {
    // A time before 1970 has a negative fraction there and a positive one here.
    let nanos = time.subsec_nanosecond();
    if nanos < 0 {
        prost_types::Timestamp { seconds: time.as_second() - 1, nanos: nanos + 1_000_000_000 }
    } else {
        prost_types::Timestamp { seconds: time.as_second(), nanos }
    }
}

fn record(memory: Memory) -> pb::MemoryRecord {
    pb::MemoryRecord {
        id: memory.id,
        content: memory.content,
        source_type: memory.source_type,
        tags: memory.tags,
        created_at: Some(proto_time(memory.created_at)),
        updated_at: Some(proto_time(memory.updated_at)),
        metadata: memory.metadata.into_iter().collect(),
        document_id: memory.document_id,
        superseded_by: String::new(),
    }
}

/// A memory that was found, with what is known of it as metadata.
pub(super) fn item(memory: Memory, score: f32) -> pb::MemoryItem {
    let mut metadata: std::collections::HashMap<_, _> = memory.metadata.into_iter().collect();
    metadata.insert("source_type".to_owned(), memory.source_type);
    metadata.insert("tags".to_owned(), memory.tags.join(","));
    if !memory.document_id.is_empty() {
        metadata.insert("document_id".to_owned(), memory.document_id);
    }
    pb::MemoryItem {
        id: memory.id,
        content: memory.content,
        score,
        created_at: Some(proto_time(memory.created_at)),
        metadata,
    }
}
