//! Memories of a server, over its API.

use agent_service::{
    identity::UserId,
    memory::{Filter, RetrievalQuery},
    proto::agent_v1 as pb,
};
use jiff::tz::TimeZone;
use sqlx::PgConnection;

use super::TestServer;

pub fn user(id: &str) -> UserId {
    UserId::parse("user_id", id).unwrap()
}

pub fn memory_input(id: &str, content: &str) -> pb::MemoryInput {
    pb::MemoryInput { id: id.into(), content: content.into(), ..Default::default() }
}

pub fn memory_query(user_id: &str, text: &str) -> pb::MemoryQuery {
    pb::MemoryQuery { user_id: user_id.into(), query_text: text.into(), ..Default::default() }
}

/// A query of the user `ann`; `alpha` is the weight of the vector retriever.
pub fn weighted_query(text: &str, alpha: f32) -> pb::MemoryQuery {
    pb::MemoryQuery { hybrid_alpha: Some(alpha), ..memory_query("ann", text) }
}

pub fn engine_query(text: &str, alpha: f32) -> RetrievalQuery {
    RetrievalQuery {
        text: text.into(),
        limit: 10,
        min_score: 0.0,
        filter: Filter::default(),
        alpha,
        time_zone: TimeZone::UTC,
        counts_matches: true,
    }
}

pub fn ids(result: &pb::MemoryResult) -> Vec<&str> {
    result.items.iter().map(|item| item.id.as_str()).collect()
}

pub fn timestamp(seconds: i64) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds, nanos: 0 }
}

/// Asserts that the statistics of the lexical index equal a recount of its postings, that every memory is indexed, and that
/// each vector has its copy in half precision.
pub async fn assert_index_consistent(owner: &mut PgConnection) {
    for (case, statement) in [
        (
            "document frequencies",
            "select count(*) from (select term, count(*) as memories from memory_postings group by term) counted
             full join memory_terms using (term, memories) where counted.term is null or memory_terms.term is null",
        ),
        (
            "count and length",
            "select count(*) from memory_users,
                    (select count(*) as n, sum(length) as total
                     from (select distinct memory_id, length from memory_postings) each) counted
             where (memories, total_length) is distinct from (n, total)",
        ),
        (
            "memories without postings, or postings without a memory",
            "select count(*) from memories full join (select distinct memory_id as id from memory_postings) indexed
             using (id) where content is null or indexed.id is null",
        ),
    ] {
        let violations: i64 = sqlx::query_scalar(statement).fetch_one(&mut *owner).await.unwrap();
        assert_eq!(violations, 0, "{case}");
    }
    assert_vectors_copied(owner).await;
}

pub async fn assert_vectors_copied(owner: &mut PgConnection) {
    let violations = "select count(*) from memory_vectors vectors
                      full join memory_half_vectors copies using (user_id, model, memory_id)
                      where vectors.embedding::halfvec is distinct from copies.embedding";
    let violations: i64 = sqlx::query_scalar(violations).fetch_one(owner).await.unwrap();
    assert_eq!(violations, 0, "vectors without an equal copy, or copies without a vector");
}

impl TestServer {
    pub async fn add_memories(&self, user_id: &str, memories: Vec<pb::MemoryInput>) -> pb::AddMemoriesResponse {
        let request = pb::AddMemoriesRequest { user_id: user_id.into(), memories };
        self.memory().add_memories(request).await.unwrap().into_inner()
    }

    pub async fn remember(&self, user_id: &str, texts: &[&str]) -> Vec<String> {
        self.add_memories(user_id, texts.iter().map(|text| memory_input("", text)).collect()).await.ids
    }

    pub async fn retrieve(&self, query: pb::MemoryQuery) -> pb::MemoryResult {
        self.agent().retrieve_memory(query).await.unwrap().into_inner()
    }

    pub async fn list_memories(&self, user_id: &str) -> Vec<pb::MemoryRecord> {
        let request = pb::ListMemoriesRequest { user_id: user_id.into(), page_size: 1000, ..Default::default() };
        self.memory().list_memories(request).await.unwrap().into_inner().memories
    }

    pub async fn delete_memories(&self, ids: &[&str]) -> i32 {
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        let request = pb::DeleteMemoriesRequest { user_id: "ann".into(), ids, ..Default::default() };
        self.memory().delete_memories(request).await.unwrap().into_inner().deleted
    }
}
