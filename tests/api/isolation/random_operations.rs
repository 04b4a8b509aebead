//! Model-based test: 10,000 random operations of users with similar or SQL-like names, who use each other's ids, page tokens and
//! texts. No operation may return or change a memory of another user.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use agent_service::proto::agent_v1::{
    self as pb, agent_service_client::AgentServiceClient, chat_response::Content,
    memory_service_client::MemoryServiceClient,
};
use sqlx::Row as _;
use tonic::{Code, transport::Channel};

use super::model::{COMMON, ExpectedMemory, ExpectedUser, NAMES, Random, SOURCES, USERS, WORDS};
use crate::harness::TestServer;

const OPERATIONS: usize = 10_000;

const WORKERS: usize = 8;

/// Ids and page tokens that users know of each other.
#[derive(Default)]
struct ForeignIds {
    ids: Vec<String>,
    tokens: Vec<String>,
}

struct Worker {
    agent: AgentServiceClient<Channel>,
    memory: MemoryServiceClient<Channel>,
    random: Random,
    foreign: Arc<ForeignIds>,
    rows_checked: usize,
}

impl Worker {
    async fn new(server: &TestServer, seed: usize, foreign: Arc<ForeignIds>) -> Self {
        let channel = Channel::from_shared(format!("http://{}", server.address)).unwrap().connect().await.unwrap();
        Self {
            agent: AgentServiceClient::new(channel.clone()),
            memory: MemoryServiceClient::new(channel),
            random: Random(0x9E37_79B9_7F4A_7C15 ^ (seed as u64 + 1)),
            foreign,
            rows_checked: 0,
        }
    }

    /// The user's own id, a shared name, or a generated id of another user.
    fn id(&mut self, user: &ExpectedUser) -> String {
        match self.random.below(4) {
            0 | 1 => user.own_id(&mut self.random),
            2 if !self.foreign.ids.is_empty() => {
                Some(self.foreign.ids[self.random.below(self.foreign.ids.len())].clone())
            }
            _ => None,
        }
        .unwrap_or_else(|| self.random.pick(&NAMES).to_owned())
    }

    fn ids(&mut self, user: &ExpectedUser, most: usize) -> Vec<String> {
        (0..=self.random.below(most)).map(|_| self.id(user)).collect()
    }

    fn filter(&mut self) -> pb::MemoryFilter {
        pb::MemoryFilter {
            tags: self.random.pick_up_to(&NAMES[..12], 1),
            source_types: self.random.pick_up_to(&SOURCES, 1),
            ..Default::default()
        }
    }

    async fn run_operation(&mut self, user: &mut ExpectedUser) {
        match self.random.below(100) {
            0..30 => self.add(user).await,
            30..35 => self.ingest(user).await,
            35..45 => self.update(user).await,
            45..57 => self.delete(user).await,
            57..80 => self.retrieve(user).await,
            80..93 => self.list(user).await,
            93..98 => self.assert_export(user).await,
            _ => self.chat(user).await,
        }
    }

    async fn add(&mut self, user: &mut ExpectedUser) {
        let request = self.add_request(user);
        if request.memories.is_empty() {
            return;
        }
        match self.memory.add_memories(request.clone()).await {
            Ok(added) => user.apply_add(&request.memories, &added.into_inner().ids, &self.foreign.ids),
            // A random supersede cycle.
            Err(rejected) => assert!(rejected.message().contains("supersedes"), "{rejected:?}"),
        }
    }

    fn add_request(&mut self, user: &mut ExpectedUser) -> pb::AddMemoriesRequest {
        let mut request = pb::AddMemoriesRequest { user_id: user.id.into(), memories: Vec::new() };
        // Ids are unique within a call: precedence within a call is not tested here.
        let (mut named, mut superseded) = (BTreeSet::new(), BTreeSet::new());
        for _ in 0..=self.random.below(4) {
            let (id, content) = match self.random.below(8) {
                0 | 1 => (String::new(), self.random.pick(&COMMON).to_owned()),
                2 | 3 => (String::new(), user.new_text(&mut self.random)),
                4 => match user.own_id(&mut self.random) {
                    Some(id) => (id.clone(), user.memories[&id].content.clone()),
                    None => continue,
                },
                _ => (self.id(user), user.new_text(&mut self.random)),
            };
            if !id.is_empty() && !named.insert(id.clone()) {
                continue;
            }
            let mut supersedes = if self.random.below(3) == 0 { self.ids(user, 3) } else { Vec::new() };
            supersedes.retain(|id| superseded.insert(id.clone()));
            request.memories.push(pb::MemoryInput {
                id,
                content,
                source_type: self.random.pick(&SOURCES).into(),
                tags: self.random.pick_up_to(&NAMES[..12], 2),
                metadata: user.metadata(),
                supersedes,
                ..Default::default()
            });
        }
        request
    }

    async fn ingest(&mut self, user: &mut ExpectedUser) {
        let sections: Vec<_> = (0..=self.random.below(3)).map(|_| user.new_text(&mut self.random)).collect();
        let request = pb::IngestDocumentRequest {
            user_id: user.id.into(),
            document_id: self.random.pick(&NAMES).into(),
            title: self.random.pick(&WORDS).into(),
            content: sections.join("\n\n"),
            tags: self.random.pick_up_to(&NAMES[..12], 2),
            metadata: user.metadata(),
            ..Default::default()
        };
        let chunks = self.memory.ingest_document(request.clone()).await.unwrap().into_inner().chunks;
        let previous = user.memories.extract_if(.., |_, memory| memory.document == request.document_id);
        let previous: BTreeMap<_, _> = previous.collect();
        // Chunk ids are generated by the service.
        let mut found = 0;
        for record in self.export_all(user.id).await {
            if record.document_id == request.document_id {
                assert_eq!(record.metadata, user.metadata());
                assert!(request.content.contains(&record.content), "{}", record.content);
                found += 1;
                let memory = ExpectedMemory {
                    content: record.content,
                    source: "document".into(),
                    tags: request.tags.clone(),
                    document: request.document_id.clone(),
                    superseded_by: record.superseded_by,
                    history: record.history.into_iter().map(|version| version.content).collect(),
                };
                // An unchanged chunk stays superseded, and an update of it stays in its history.
                let updated = previous.get(&record.id).filter(|old| old.content != memory.content);
                assert!(updated.is_none_or(|old| memory.history.contains(&old.content)), "{updated:?}");
                user.memories.insert(record.id, memory);
            }
        }
        assert_eq!(found, chunks, "{:?}, {:?}", user.id, request.document_id);
    }

    async fn update(&mut self, user: &mut ExpectedUser) {
        let (id, content) = (self.id(user), user.new_text(&mut self.random));
        let request = pb::UpdateMemoryRequest {
            user_id: user.id.into(),
            id: id.clone(),
            content: Some(content.clone()),
            ..Default::default()
        };
        let updated = self.memory.update_memory(request).await;
        match user.memories.get_mut(&id) {
            Some(memory) => {
                memory.history.push(std::mem::replace(&mut memory.content, content));
                let record = updated.unwrap().into_inner();
                user.assert_owned(&record.id, &record.content, &record.metadata);
            }
            None => assert_eq!(updated.unwrap_err().code(), Code::NotFound, "{:?} has no {id:?}", user.id),
        }
    }

    async fn delete(&mut self, user: &mut ExpectedUser) {
        let mut request = pb::DeleteMemoriesRequest { user_id: user.id.into(), ..Default::default() };
        let count = user.memories.len();
        match self.random.below(24) {
            0 => {
                request.everything = true;
                user.memories.clear();
            }
            1..6 => {
                request.document_id = self.random.pick(&NAMES).into();
                user.memories.retain(|_, memory| memory.document != request.document_id);
            }
            6..10 => {
                let filter = self.filter();
                if filter == pb::MemoryFilter::default() {
                    return;
                }
                user.memories.retain(|_, memory| !memory.matches(&filter));
                request.filter = Some(filter);
            }
            _ => {
                request.ids = self.ids(user, 4);
                user.memories.retain(|id, _| !request.ids.contains(id));
            }
        }
        let deleted = self.memory.delete_memories(request.clone()).await.unwrap().into_inner().deleted;
        assert_eq!(deleted.unsigned_abs() as usize, count - user.memories.len(), "{request:?}");
    }

    async fn retrieve(&mut self, user: &mut ExpectedUser) {
        let request = pb::MemoryQuery {
            user_id: user.id.into(),
            query_text: self.random.pick(&WORDS).into(),
            limit: 100,
            filter: (self.random.below(3) == 0).then(|| self.filter()),
            hybrid_alpha: self.random.pick(&[None, Some(0.0), Some(0.3), Some(1.0)]),
            ..Default::default()
        };
        let found = self.agent.retrieve_memory(request.clone()).await.unwrap().into_inner();
        self.rows_checked += found.items.len();
        for item in &found.items {
            let memory = user.assert_owned(&item.id, &item.content, &item.metadata);
            assert!(memory.superseded_by.is_empty(), "{} is superseded: {request:?}", item.id);
            assert!(memory.matches(&request.filter.clone().unwrap_or_default()), "{memory:?}, {request:?}");
        }
        if request.hybrid_alpha == Some(1.0) {
            let filter = request.filter.unwrap_or_default();
            let expected = user
                .memories
                .values()
                .filter(|memory| memory.superseded_by.is_empty() && memory.matches(&filter))
                .count();
            assert_eq!(found.items.len(), expected.min(100), "the vector retriever returns every current memory");
        }
    }

    async fn list(&mut self, user: &mut ExpectedUser) {
        let token = match self.random.below(3) {
            0 => self.foreign.tokens[self.random.below(self.foreign.tokens.len())].clone(),
            1 => format!("{}.{}", 4_000_000_000_000_000_u64, self.id(user)),
            _ => String::new(),
        };
        let filter = self.filter();
        let request = pb::ListMemoriesRequest {
            user_id: user.id.into(),
            filter: Some(filter.clone()),
            page_size: 1_000,
            page_token: token.clone(),
        };
        let listed = self.memory.list_memories(request).await.unwrap().into_inner();
        self.rows_checked += listed.memories.len();
        for record in &listed.memories {
            let memory = user.assert_owned(&record.id, &record.content, &record.metadata);
            assert!(memory.matches(&filter), "{memory:?}, {filter:?}");
        }
        if token.is_empty() {
            let expected = user.memories.values().filter(|memory| memory.matches(&filter)).count();
            assert_eq!(listed.memories.len(), expected, "{:?}: {filter:?}", user.id);
        }
    }

    async fn export_all(&mut self, user_id: &str) -> Vec<pb::MemoryRecord> {
        let request = pb::ExportMemoriesRequest { user_id: user_id.into() };
        let mut records = self.memory.export_memories(request).await.unwrap().into_inner();
        let mut all = Vec::new();
        while let Some(record) = records.message().await.unwrap() {
            all.push(record);
        }
        self.rows_checked += all.len();
        all
    }

    /// Asserts that the export of a user equals the model.
    async fn assert_export(&mut self, user: &ExpectedUser) {
        let exported = self.export_all(user.id).await.into_iter().map(|record| {
            user.assert_owned(&record.id, &record.content, &record.metadata);
            let history = record.history.into_iter().map(|version| {
                assert_eq!(version.metadata, user.metadata());
                version.content
            });
            let memory = ExpectedMemory {
                history: history.collect(),
                content: record.content,
                source: record.source_type,
                tags: record.tags,
                document: record.document_id,
                superseded_by: record.superseded_by,
            };
            (record.id, memory)
        });
        assert_eq!(exported.collect::<BTreeMap<_, _>>(), user.memories, "{:?}", user.id);
    }

    async fn chat(&mut self, user: &ExpectedUser) {
        let request = pb::ChatRequest {
            user_id: user.id.into(),
            input: Some(pb::chat_request::Input::Message(self.random.pick(&WORDS).into())),
            include_references: true,
            file_ids: self.random.pick_up_to(&NAMES, 1),
            ..Default::default()
        };
        let mut frames = self.agent.stream_chat(request).await.unwrap().into_inner();
        while let Some(frame) = frames.message().await.unwrap() {
            if let Some(Content::Citations(block)) = frame.content {
                for citation in block.citations {
                    user.assert_owned(&citation.id, &citation.content, &user.metadata());
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_operations_never_touch_rows_of_another_user() {
    let server = TestServer::start(&[]).await;
    let mut users: Vec<ExpectedUser> = USERS
        .iter()
        .enumerate()
        .map(|(number, id)| ExpectedUser { id, number, texts: 0, memories: BTreeMap::new() })
        .collect();
    // The initial ids and tokens of each user are known to all others.
    let (mut foreign, mut first) = (ForeignIds::default(), Worker::new(&server, 0, Default::default()).await);
    for user in &mut users {
        first.add(user).await;
        first.ingest(user).await;
        foreign.ids.extend(user.memories.keys().cloned());
        let request = pb::ListMemoriesRequest { user_id: user.id.into(), page_size: 1, ..Default::default() };
        foreign.tokens.push(first.memory.list_memories(request).await.unwrap().into_inner().next_page_token);
    }
    let foreign = Arc::new(foreign);
    // Each user belongs to one worker, so that the model needs no synchronization.
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..WORKERS {
        let mut own: Vec<ExpectedUser> = users.extract_if(.., |user| user.number % WORKERS == worker).collect();
        let mut worker = Worker::new(&server, worker + 1, foreign.clone()).await;
        workers.spawn(async move {
            for _ in 0..OPERATIONS / WORKERS {
                let user = worker.random.below(own.len());
                worker.run_operation(&mut own[user]).await;
            }
            for user in &own {
                worker.assert_export(user).await;
            }
            (own, worker.rows_checked)
        });
    }
    let (users, rows_checked): (Vec<_>, Vec<_>) = workers.join_all().await.into_iter().unzip();
    let users: Vec<ExpectedUser> = users.into_iter().flatten().collect();
    let rows_checked: usize = rows_checked.into_iter().sum();
    assert_eq!(users.len(), USERS.len());
    assert!(rows_checked > 2 * OPERATIONS, "only {rows_checked} rows were checked");

    let mut owner = server.connect_as_owner().await;
    let stored =
        sqlx::query("select user_id, count(*) from memories group by user_id").fetch_all(&mut owner).await.unwrap();
    let stored: BTreeMap<String, i64> = stored.iter().map(|row| (row.get(0), row.get(1))).collect();
    let expected = users.iter().filter(|user| !user.memories.is_empty());
    assert_eq!(stored, expected.map(|user| (user.id.to_owned(), user.memories.len() as i64)).collect());
    for derived in ["memory_vectors", "memory_half_vectors", "memory_postings"] {
        let stray = format!(
            "select count(*) from {derived} left join memories
                    on memories.user_id = {derived}.user_id and memories.id = memory_id and superseded_by is null
             where memories.id is null"
        );
        let stray: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(stray)).fetch_one(&mut owner).await.unwrap();
        assert_eq!(stray, 0, "{derived} has rows without a current memory");
    }
}
