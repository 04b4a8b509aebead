//! The largest requests that the budgets admit: their time, the peak memory, the disk, and the calls of another user meanwhile.

use std::{
    fs,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use agent_service::{
    embedding::Embedder,
    memory::{MAX_MEMORY_TERMS, MAX_REQUEST_TERMS},
    proto::agent_v1 as pb,
};
use sqlx::PgConnection;

use crate::{
    BenchResult,
    corpus::{Corpus, SyntheticEmbedder},
    measure::Times,
    report::{Table, count, number},
    server::BenchServer,
    store::{self, Postgres},
};

const MAX_MEMORY_BYTES: usize = 64_000;
/// A word of six letters with its space.
const WORD_BYTES: usize = 7;
/// Terms of the date, which each memory has.
const DATE_TERMS: usize = 4;
const PAUSE: Duration = Duration::from_millis(10);
const OTHER: &str = "bob";

pub struct Plan {
    /// Share of the budget that the requests use.
    pub divisor: usize,
    /// Memories of the other user, and their calls before each request.
    pub others: usize,
    pub calls: usize,
}

/// Calls of another user.
#[derive(Default)]
struct OtherCalls {
    retrieve: Times,
    add: Times,
}

struct Bench<'a> {
    server: &'a BenchServer,
    table: Table,
    direct: PgConnection,
    queries: Vec<String>,
    next_query: usize,
    calls: usize,
}

pub async fn run(postgres: &Postgres, plan: &Plan) -> BenchResult<()> {
    let synthetic: Arc<dyn Embedder> = Arc::new(SyntheticEmbedder::clustered());
    let database = postgres.database().await?;
    let server = BenchServer::start(&database, synthetic, &[("RATE_LIMITS", "off")]).await?;
    let mut corpus = Corpus::new(4);
    store::fill(&server.engine, OTHER, &mut corpus, plan.others).await?;
    database.settle().await?;
    let columns = [
        "request",
        "seconds",
        "server, peak MB",
        "Postgres, peak MB",
        "disk, MB",
        "retrieve of another user, p50",
        "p50 usual",
        "write of another user, p50",
        "p50 usual",
    ];
    let caption = "Random words, of which none repeats. The server's peak is of the process with the client. Milliseconds, where no unit is given.";
    let mut bench = Bench {
        server: &server,
        table: Table::new("memory/limits", caption, &columns),
        direct: database.connect().await?,
        queries: (0..1_000).map(|_| corpus.content()).collect(),
        next_query: 0,
        calls: plan.calls,
    };
    bench.measure_requests(plan).await
}

impl Bench<'_> {
    async fn measure_requests(&mut self, plan: &Plan) -> BenchResult<()> {
        let terms = MAX_REQUEST_TERMS / plan.divisor;
        let long = (MAX_MEMORY_BYTES / WORD_BYTES).min(MAX_MEMORY_TERMS - DATE_TERMS);
        let mut memory = self.server.memory();
        let add = |contents: Vec<String>, prefix: &str| pb::AddMemoriesRequest {
            user_id: "ann".to_owned(),
            memories: contents
                .into_iter()
                .enumerate()
                .map(|(index, content)| pb::MemoryInput {
                    id: format!("{prefix}{index}"),
                    content,
                    ..Default::default()
                })
                .collect(),
        };
        let contents = (0..(terms / (long + DATE_TERMS)).max(1)).map(|index| words(index * long, long)).collect();
        let request = add(contents, "long");
        self.measure("AddMemories, 64 kB each", async { memory.clone().add_memories(request).await.map(drop) }).await?;
        let short = terms / 1_000 - DATE_TERMS;
        let contents = (0..1_000).map(|index| words(5_000_000 + index * short, short)).collect();
        let request = add(contents, "short");
        self.measure("AddMemories, 1,000", async { memory.clone().add_memories(request).await.map(drop) }).await?;
        let request = pb::IngestDocumentRequest {
            user_id: "ann".to_owned(),
            document_id: "d".to_owned(),
            // Each chunk has a date.
            content: words(7_000_000, terms * 9 / 10),
            ..Default::default()
        };
        self.measure("IngestDocument", async { memory.clone().ingest_document(request).await.map(drop) }).await?;
        let request = pb::UpdateMemoryRequest {
            user_id: "ann".to_owned(),
            id: "long0".to_owned(),
            content: Some(words(9_000_000, long)),
            ..Default::default()
        };
        self.measure("UpdateMemory, 64 kB", async { memory.clone().update_memory(request).await.map(drop) }).await?;
        let query = pb::MemoryQuery {
            user_id: "ann".to_owned(),
            query_text: words(0, 10_000 / WORD_BYTES),
            limit: 100,
            ..Default::default()
        };
        let mut agent = self.server.agent();
        self.measure("RetrieveMemory, 10 kB", async { agent.retrieve_memory(query).await.map(drop) }).await?;
        let list = pb::ListMemoriesRequest { user_id: "ann".to_owned(), page_size: 1_000, ..Default::default() };
        self.measure("ListMemories, 1,000", async { memory.clone().list_memories(list).await.map(drop) }).await?;
        let export = pb::ExportMemoriesRequest { user_id: "ann".to_owned() };
        let exported = async {
            let mut records = memory.clone().export_memories(export).await?.into_inner();
            while records.message().await?.is_some() {}
            Ok(())
        };
        self.measure("ExportMemories", exported).await?;
        let delete = |everything, document_id: &str| pb::DeleteMemoriesRequest {
            user_id: "ann".to_owned(),
            everything,
            document_id: document_id.to_owned(),
            ..Default::default()
        };
        let request = delete(false, "d");
        self.measure("DeleteMemories, the document", async { memory.clone().delete_memories(request).await.map(drop) })
            .await?;
        let request = delete(true, "");
        self.measure("DeleteMemories, everything", async { memory.delete_memories(request).await.map(drop) }).await
    }

    async fn measure(
        &mut self,
        name: &str,
        request: impl Future<Output = Result<(), tonic::Status>>,
    ) -> BenchResult<()> {
        let mut usual = OtherCalls::default();
        for _ in 0..self.calls {
            self.call_as_other(&mut usual).await?;
        }
        // Writing 5 resets the peak (proc(5)).
        fs::write("/proc/self/clear_refs", "5")?;
        let disk = self.disk().await?;
        let (mut calls, mut postgres_peak) = (OtherCalls::default(), 0);
        let began = Instant::now();
        let mut request = pin!(request);
        loop {
            tokio::select! {
                biased;
                done = &mut request => break done?,
                called = self.call_as_other(&mut calls) => called?,
            }
            postgres_peak = postgres_peak.max(postgres_bytes());
        }
        let seconds = began.elapsed().as_secs_f64();
        let peak = status_bytes("/proc/self/status", "VmHWM:").unwrap_or_default();
        let grown = self.disk().await?.saturating_sub(disk);
        let megabytes = |bytes: u64| count(usize::try_from(bytes / 1_000_000).unwrap_or_default());
        let times = [&mut calls.retrieve, &mut usual.retrieve, &mut calls.add, &mut usual.add];
        let times = times.map(|times| if times.0.is_empty() { "–".to_owned() } else { number(times.quantile(0.5)) });
        let cells = [name.to_owned(), number(seconds), megabytes(peak), megabytes(postgres_peak), megabytes(grown)];
        self.table.row(cells.into_iter().chain(times));
        Ok(())
    }

    /// A search and a write.
    async fn call_as_other(&mut self, calls: &mut OtherCalls) -> BenchResult<()> {
        self.next_query = (self.next_query + 1) % self.queries.len();
        let query = &self.queries[self.next_query];
        let request =
            pb::MemoryQuery { user_id: OTHER.to_owned(), query_text: query.clone(), limit: 10, ..Default::default() };
        let began = Instant::now();
        self.server.agent().retrieve_memory(request).await?;
        calls.retrieve.add(began);
        let memory = pb::MemoryInput { content: query.clone(), ..Default::default() };
        let request = pb::AddMemoriesRequest { user_id: OTHER.to_owned(), memories: vec![memory] };
        let began = Instant::now();
        self.server.memory().add_memories(request).await?;
        calls.add.add(began);
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }

    /// Of the database, and what was written to the log.
    async fn disk(&mut self) -> BenchResult<u64> {
        let bytes =
            "select pg_database_size(current_database()) + pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint";
        let bytes: i64 = sqlx::query_scalar(bytes).persistent(false).fetch_one(&mut self.direct).await?;
        Ok(u64::try_from(bytes)?)
    }
}

/// Words that occur nowhere else, and that no stemmer changes.
fn words(from: usize, count: usize) -> String {
    let mut text = String::with_capacity(count * WORD_BYTES);
    for number in from..from + count {
        let mut rest = number;
        for _ in 0..5 {
            text.push(char::from(b'a' + u8::try_from(rest % 26).unwrap_or_default()));
            rest /= 26;
        }
        text.push_str("q ");
    }
    text.truncate(text.len().saturating_sub(1));
    text
}

fn status_bytes(path: &str, field: &str) -> Option<u64> {
    let status = fs::read_to_string(path).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// Anonymous memory of all processes of Postgres on this machine, shared buffers excluded.
fn postgres_bytes() -> u64 {
    let Ok(processes) = fs::read_dir("/proc") else { return 0 };
    let statuses = processes.flatten().map(|process| process.path().join("status"));
    let of_postgres =
        |path: &std::path::PathBuf| fs::read_to_string(path).is_ok_and(|status| status.starts_with("Name:\tpostgres"));
    statuses.filter(of_postgres).filter_map(|path| status_bytes(path.to_str()?, "RssAnon:")).sum()
}
