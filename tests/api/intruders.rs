//! Ten thousand operations of many users at once, who use each other's ids, page tokens and words, and are named alike or as
//! SQL would be. Not one row of somebody else is ever seen or changed.

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

use crate::harness::TestServer;

const OPERATIONS: usize = 10_000;
const WORKERS: usize = 8;

const USERS: [&str; 32] = [
    "ann",
    "Ann",
    "ANN",
    "ann ",
    " ann",
    "anna",
    "an",
    "аnn",
    "ａｎｎ",
    "ann\u{200b}",
    "a\u{308}nn",
    "änn",
    "ann'",
    "ann''",
    "ann\"",
    "ann%",
    "%",
    "_",
    "a_n",
    "\\",
    "ann\\'",
    "' or '1'='1",
    "ann'; drop table memories; --",
    "$1",
    "{ann,bob}",
    "null",
    "NULL",
    "current_user",
    "agent_service",
    "*",
    "0",
    "用户",
];

/// What users call their memories, documents and tags, each of them the same.
const NAMES: [&str; 24] = [
    "m0",
    "m1",
    "m2",
    "m3",
    "m4",
    "m5",
    "M0",
    "m0 ",
    "ｍ0",
    "m%",
    "%",
    "_",
    "m'",
    "'",
    "\"",
    "\\",
    "\\'",
    "null",
    "{m0,m1}",
    "a/b",
    "' or true --",
    "m0'); delete from memories; --",
    "$1",
    "ann",
];

/// What more than one user says.
const COMMON: [&str; 4] =
    ["the exam is on Friday", "eigenvalues are hard", "特征值很难", "' union select content from memories --"];

const WORDS: [&str; 10] =
    ["kat", "zat", "mat", "特征值", "exam", "%", "owner-3", "' or 1=1 --", "ann bob Ann", "owner-7 kat exam Friday"];

const SOURCES: [&str; 3] = ["note", "chat", "note' or source_type = 'chat"];

/// Marsaglia's xorshift, so that each run does the same.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % bound
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn some(&mut self, from: &[&str], most: usize) -> Vec<String> {
        (0..self.below(most + 1)).map(|_| self.pick(from).to_owned()).collect()
    }
}

/// A memory as it should be.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    content: String,
    source: String,
    tags: Vec<String>,
    document: String,
    superseded_by: String,
    before: Vec<String>,
}

impl Row {
    fn matches(&self, filter: &pb::MemoryFilter) -> bool {
        filter.tags.iter().all(|tag| self.tags.contains(tag))
            && (filter.source_types.is_empty() || filter.source_types.contains(&self.source))
    }
}

/// A user with what should be kept of them.
struct User {
    id: &'static str,
    number: usize,
    said: usize,
    rows: BTreeMap<String, Row>,
}

impl User {
    /// Something that nobody has said yet, with its owner's mark.
    fn says(&mut self, dice: &mut Dice) -> String {
        self.said += 1;
        format!("owner-{} {} {} {}", self.number, dice.pick(&WORDS), dice.pick(&WORDS), self.said)
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        [("owner".to_owned(), self.number.to_string())].into()
    }

    /// A memory of this user's.
    fn own(&self, dice: &mut Dice) -> Option<String> {
        let count = self.rows.len().max(1);
        self.rows.keys().nth(dice.below(count)).cloned()
    }

    /// A row that was read is this user's and as it should be.
    fn knows(&self, id: &str, content: &str, metadata: &BTreeMap<String, String>) -> &Row {
        assert_eq!(metadata.get("owner"), Some(&self.number.to_string()), "{:?} was given {id:?}: {content}", self.id);
        let row = self.rows.get(id).unwrap_or_else(|| panic!("{:?} has no {id:?}: {content}", self.id));
        assert_eq!(row.content, content, "{:?}, {id:?}", self.id);
        row
    }
}

/// What users know of each other.
#[derive(Default)]
struct Loot {
    ids: Vec<String>,
    tokens: Vec<String>,
}

struct Intruder {
    agent: AgentServiceClient<Channel>,
    memory: MemoryServiceClient<Channel>,
    dice: Dice,
    loot: Arc<Loot>,
    /// Rows that were given so far.
    seen: usize,
}

impl Intruder {
    async fn new(server: &TestServer, seed: usize, loot: Arc<Loot>) -> Self {
        let channel = Channel::from_shared(format!("http://{}", server.address)).unwrap().connect().await.unwrap();
        Self {
            agent: AgentServiceClient::new(channel.clone()),
            memory: MemoryServiceClient::new(channel),
            dice: Dice(0x9E37_79B9_7F4A_7C15 ^ (seed as u64 + 1)),
            loot,
            seen: 0,
        }
    }

    /// An id that is the user's own, one that many use, or one that was made for somebody else.
    fn id(&mut self, user: &User) -> String {
        match self.dice.below(4) {
            0 | 1 => user.own(&mut self.dice),
            2 if !self.loot.ids.is_empty() => Some(self.loot.ids[self.dice.below(self.loot.ids.len())].clone()),
            _ => None,
        }
        .unwrap_or_else(|| self.dice.pick(&NAMES).to_owned())
    }

    fn ids(&mut self, user: &User, most: usize) -> Vec<String> {
        (0..=self.dice.below(most)).map(|_| self.id(user)).collect()
    }

    fn filter(&mut self) -> pb::MemoryFilter {
        pb::MemoryFilter {
            tags: self.dice.some(&NAMES[..12], 1),
            source_types: self.dice.some(&SOURCES, 1),
            ..Default::default()
        }
    }

    async fn operate(&mut self, user: &mut User) {
        match self.dice.below(100) {
            0..30 => self.add(user).await,
            30..35 => self.ingest(user).await,
            35..45 => self.update(user).await,
            45..57 => self.delete(user).await,
            57..80 => self.retrieve(user).await,
            80..93 => self.list(user).await,
            93..98 => self.export(user).await,
            _ => self.chat(user).await,
        }
    }

    async fn add(&mut self, user: &mut User) {
        let before = user.rows.clone();
        let mut request = pb::AddMemoriesRequest { user_id: user.id.into(), memories: Vec::new() };
        // Where something is said twice in a call, which of it counts is no matter of isolation.
        let (mut named, mut replaced) = (BTreeSet::new(), BTreeSet::new());
        for _ in 0..=self.dice.below(4) {
            let (id, content) = match self.dice.below(8) {
                0 | 1 => (String::new(), self.dice.pick(&COMMON).to_owned()),
                2 | 3 => (String::new(), user.says(&mut self.dice)),
                4 => match user.own(&mut self.dice) {
                    // Once more as it is.
                    Some(id) => (id.clone(), before[&id].content.clone()),
                    None => continue,
                },
                _ => (self.id(user), user.says(&mut self.dice)),
            };
            if !id.is_empty() && !named.insert(id.clone()) {
                continue;
            }
            let mut supersedes = if self.dice.below(3) == 0 { self.ids(user, 3) } else { Vec::new() };
            supersedes.retain(|id| replaced.insert(id.clone()));
            request.memories.push(pb::MemoryInput {
                id,
                content,
                source_type: self.dice.pick(&SOURCES).into(),
                tags: self.dice.some(&NAMES[..12], 2),
                metadata: user.metadata(),
                supersedes,
                ..Default::default()
            });
        }
        if request.memories.is_empty() {
            return;
        }
        let ids = match self.memory.add_memories(request.clone()).await {
            Ok(added) => added.into_inner().ids,
            // Memories that replace each other in a circle, by chance.
            Err(refused) => return assert!(refused.message().contains("supersedes"), "{refused:?}"),
        };
        assert_eq!(ids.len(), request.memories.len());
        for (id, memory) in ids.iter().zip(&request.memories) {
            if memory.id.is_empty() {
                // The same content is not kept twice, and what others keep makes no difference.
                let known = before.iter().find(|(_, row)| {
                    row.content == memory.content && row.document.is_empty() && row.superseded_by.is_empty()
                });
                match known {
                    Some((known, _)) => {
                        assert_eq!(id, known, "{:?}: {}", user.id, memory.content);
                        continue;
                    }
                    None => assert!(!before.contains_key(id) && !self.loot.ids.contains(id), "{id} is somebody's"),
                }
            } else {
                assert_eq!(*id, memory.id);
                let same = |row: &Row| row.content == memory.content && row.document.is_empty();
                if before.get(id).is_some_and(same) {
                    continue;
                }
            }
            let before = user.rows.get(id).map(|row| row.before.clone()).unwrap_or_default();
            let row = Row {
                content: memory.content.clone(),
                source: memory.source_type.clone(),
                tags: memory.tags.clone(),
                document: String::new(),
                superseded_by: String::new(),
                before,
            };
            user.rows.insert(id.clone(), row);
        }
        for (id, memory) in ids.iter().zip(&request.memories) {
            // What replaces what has replaced it is there again.
            let by = |id: &String| before.get(id).map(|row| &row.superseded_by).filter(|by| !by.is_empty());
            let newer = std::iter::successors(by(id), |id| by(id)).take(before.len());
            if newer.into_iter().any(|newer| newer != id && memory.supersedes.contains(newer))
                && let Some(row) = user.rows.get_mut(id)
            {
                row.superseded_by.clear();
            }
        }
        for (id, memory) in ids.iter().zip(&request.memories) {
            for old in memory.supersedes.iter().filter(|old| *old != id) {
                if let Some(row) = user.rows.get_mut(old) {
                    row.superseded_by.clone_from(id);
                }
            }
        }
    }

    async fn ingest(&mut self, user: &mut User) {
        let sections: Vec<_> = (0..=self.dice.below(3)).map(|_| user.says(&mut self.dice)).collect();
        let request = pb::IngestDocumentRequest {
            user_id: user.id.into(),
            document_id: self.dice.pick(&NAMES).into(),
            title: self.dice.pick(&WORDS).into(),
            content: sections.join("\n\n"),
            tags: self.dice.some(&NAMES[..12], 2),
            metadata: user.metadata(),
            ..Default::default()
        };
        let chunks = self.memory.ingest_document(request.clone()).await.unwrap().into_inner().chunks;
        let before = user.rows.extract_if(.., |_, row| row.document == request.document_id);
        let before: BTreeMap<_, _> = before.collect();
        // The ids of chunks are the service's own; all the rest is checked.
        let mut found = 0;
        for record in self.everything(user.id).await {
            if record.document_id == request.document_id {
                assert_eq!(record.metadata, user.metadata());
                assert!(request.content.contains(&record.content), "{}", record.content);
                found += 1;
                let row = Row {
                    content: record.content,
                    source: "document".into(),
                    tags: request.tags.clone(),
                    document: request.document_id.clone(),
                    superseded_by: record.superseded_by,
                    before: record.history.into_iter().map(|version| version.content).collect(),
                };
                // A chunk of the same text stays replaced, and what a correction made of it is not lost.
                let corrected = before.get(&record.id).filter(|old| old.content != row.content);
                assert!(corrected.is_none_or(|old| row.before.contains(&old.content)), "{old:?}", old = corrected);
                user.rows.insert(record.id, row);
            }
        }
        assert_eq!(found, chunks, "{:?}, {:?}", user.id, request.document_id);
    }

    async fn update(&mut self, user: &mut User) {
        let (id, content) = (self.id(user), user.says(&mut self.dice));
        let request = pb::UpdateMemoryRequest {
            user_id: user.id.into(),
            id: id.clone(),
            content: Some(content.clone()),
            ..Default::default()
        };
        let updated = self.memory.update_memory(request).await;
        match user.rows.get_mut(&id) {
            Some(row) => {
                row.before.push(std::mem::replace(&mut row.content, content));
                let record = updated.unwrap().into_inner();
                user.knows(&record.id, &record.content, &record.metadata);
            }
            None => assert_eq!(updated.unwrap_err().code(), Code::NotFound, "{:?} has no {id:?}", user.id),
        }
    }

    async fn delete(&mut self, user: &mut User) {
        let mut request = pb::DeleteMemoriesRequest { user_id: user.id.into(), ..Default::default() };
        let count = user.rows.len();
        match self.dice.below(24) {
            0 => {
                request.everything = true;
                user.rows.clear();
            }
            1..6 => {
                request.document_id = self.dice.pick(&NAMES).into();
                user.rows.retain(|_, row| row.document != request.document_id);
            }
            6..10 => {
                let filter = self.filter();
                if filter == pb::MemoryFilter::default() {
                    return;
                }
                user.rows.retain(|_, row| !row.matches(&filter));
                request.filter = Some(filter);
            }
            _ => {
                request.ids = self.ids(user, 4);
                user.rows.retain(|id, _| !request.ids.contains(id));
            }
        }
        let deleted = self.memory.delete_memories(request.clone()).await.unwrap().into_inner().deleted;
        assert_eq!(deleted.unsigned_abs() as usize, count - user.rows.len(), "{request:?}");
    }

    async fn retrieve(&mut self, user: &mut User) {
        let request = pb::MemoryQuery {
            user_id: user.id.into(),
            query_text: self.dice.pick(&WORDS).into(),
            limit: 100,
            filter: (self.dice.below(3) == 0).then(|| self.filter()),
            hybrid_alpha: self.dice.pick(&[None, Some(0.0), Some(0.3), Some(1.0)]),
            ..Default::default()
        };
        let found = self.agent.retrieve_memory(request.clone()).await.unwrap().into_inner();
        self.seen += found.items.len();
        for item in &found.items {
            let row = user.knows(&item.id, &item.content, &item.metadata);
            assert!(row.superseded_by.is_empty(), "{} was replaced: {request:?}", item.id);
            assert!(row.matches(&request.filter.clone().unwrap_or_default()), "{row:?}, {request:?}");
        }
        if request.hybrid_alpha == Some(1.0) {
            let filter = request.filter.unwrap_or_default();
            let expected =
                user.rows.values().filter(|row| row.superseded_by.is_empty() && row.matches(&filter)).count();
            assert_eq!(found.items.len(), expected.min(100), "meaning finds all there is");
        }
    }

    async fn list(&mut self, user: &mut User) {
        let token = match self.dice.below(3) {
            0 => self.loot.tokens[self.dice.below(self.loot.tokens.len())].clone(),
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
        self.seen += listed.memories.len();
        for record in &listed.memories {
            let row = user.knows(&record.id, &record.content, &record.metadata);
            assert!(row.matches(&filter), "{row:?}, {filter:?}");
        }
        if token.is_empty() {
            let expected = user.rows.values().filter(|row| row.matches(&filter)).count();
            assert_eq!(listed.memories.len(), expected, "{:?}: {filter:?}", user.id);
        }
    }

    async fn everything(&mut self, user_id: &str) -> Vec<pb::MemoryRecord> {
        let request = pb::ExportMemoriesRequest { user_id: user_id.into() };
        let mut records = self.memory.export_memories(request).await.unwrap().into_inner();
        let mut all = Vec::new();
        while let Some(record) = records.message().await.unwrap() {
            all.push(record);
        }
        self.seen += all.len();
        all
    }

    /// What is kept of a user is exactly what should be.
    async fn export(&mut self, user: &User) {
        let kept = self.everything(user.id).await.into_iter().map(|record| {
            user.knows(&record.id, &record.content, &record.metadata);
            let before = record.history.into_iter().map(|version| {
                assert_eq!(version.metadata, user.metadata());
                version.content
            });
            let row = Row {
                before: before.collect(),
                content: record.content,
                source: record.source_type,
                tags: record.tags,
                document: record.document_id,
                superseded_by: record.superseded_by,
            };
            (record.id, row)
        });
        assert_eq!(kept.collect::<BTreeMap<_, _>>(), user.rows, "{:?}", user.id);
    }

    async fn chat(&mut self, user: &User) {
        let request = pb::ChatRequest {
            user_id: user.id.into(),
            input: Some(pb::chat_request::Input::Message(self.dice.pick(&WORDS).into())),
            include_references: true,
            file_ids: self.dice.some(&NAMES, 1),
            ..Default::default()
        };
        let mut frames = self.agent.stream_chat(request).await.unwrap().into_inner();
        while let Some(frame) = frames.message().await.unwrap() {
            if let Some(Content::Citations(block)) = frame.content {
                for citation in block.citations {
                    user.knows(&citation.id, &citation.content, &user.metadata());
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_operations_show_and_change_no_row_of_another_user() {
    let server = TestServer::start(&[]).await;
    let mut users: Vec<User> =
        USERS.iter().enumerate().map(|(number, id)| User { id, number, said: 0, rows: BTreeMap::new() }).collect();
    // What each user has at first, the others know of.
    let (mut loot, mut first) = (Loot::default(), Intruder::new(&server, 0, Default::default()).await);
    for user in &mut users {
        first.add(user).await;
        first.ingest(user).await;
        loot.ids.extend(user.rows.keys().cloned());
        let request = pb::ListMemoriesRequest { user_id: user.id.into(), page_size: 1, ..Default::default() };
        loot.tokens.push(first.memory.list_memories(request).await.unwrap().into_inner().next_page_token);
    }
    let loot = Arc::new(loot);
    // Each user is one worker's, so that it is known at any time what they should have.
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..WORKERS {
        let mut own: Vec<User> = users.extract_if(.., |user| user.number % WORKERS == worker).collect();
        let mut intruder = Intruder::new(&server, worker + 1, loot.clone()).await;
        workers.spawn(async move {
            for _ in 0..OPERATIONS / WORKERS {
                let user = intruder.dice.below(own.len());
                intruder.operate(&mut own[user]).await;
            }
            for user in &own {
                intruder.export(user).await;
            }
            (own, intruder.seen)
        });
    }
    let (users, seen): (Vec<_>, Vec<_>) = workers.join_all().await.into_iter().unzip();
    let users: Vec<User> = users.into_iter().flatten().collect();
    let seen: usize = seen.into_iter().sum();
    assert_eq!(users.len(), USERS.len());
    assert!(seen > 2 * OPERATIONS, "only {seen} rows were looked at");

    let mut behind = server.database.as_ref().unwrap().connect().await;
    let kept =
        sqlx::query("select user_id, count(*) from memories group by user_id").fetch_all(&mut behind).await.unwrap();
    let kept: BTreeMap<String, i64> = kept.iter().map(|row| (row.get(0), row.get(1))).collect();
    let expected = users.iter().filter(|user| !user.rows.is_empty());
    assert_eq!(kept, expected.map(|user| (user.id.to_owned(), user.rows.len() as i64)).collect());
    for derived in ["memory_vectors", "memory_postings"] {
        let stray = format!(
            "select count(*) from {derived} left join memories
                    on memories.user_id = {derived}.user_id and memories.id = memory_id and superseded_by is null
             where memories.id is null"
        );
        let stray: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(stray)).fetch_one(&mut behind).await.unwrap();
        assert_eq!(stray, 0, "{derived} of nothing that can be found");
    }
}
