//! Long-term memory: what is kept of a user, and finding it again.
//!
//! The engine puts embedding and storage together. It knows nothing of turns, prompts or frames.

mod bm25;
mod filter;
mod keyword;
mod store;
mod tokenizer;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use sqlx::PgPool;
use tokio::time::timeout;
use uuid::Uuid;

pub use filter::Filter;
pub use store::PageToken;
use store::search::{Legs, Statistics};

use crate::{
    embedding::{EmbedError, Embedder},
    identity::UserId,
};

/// Most that one call to the database may take.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(20);

/// Most bytes of a query.
pub const MAX_QUERY_BYTES: usize = 10_000;

/// Matches are counted up to this number.
pub const MAX_COUNTED: usize = 1_000;

/// How much meaning counts against words where nobody says.
pub const DEFAULT_ALPHA: f32 = 0.5;

/// Below this, words alone are meant: clients that can not send a plain 0 send this little.
const KEYWORDS_ALONE: f32 = 0.001;

/// Free data of a memory, in a stable order.
pub type Metadata = BTreeMap<String, String>;

/// A memory to keep. The edge has checked its sizes.
#[derive(Debug, Clone, PartialEq)]
pub struct NewMemory {
    /// Chosen by the client; `None` = the store makes a UUIDv7.
    pub id: Option<String>,
    /// The text, verbatim.
    pub content: String,
    /// What kind of source it comes from.
    pub source_type: String,
    /// Labels to filter by.
    pub tags: Vec<String>,
    /// `None` = now.
    pub created_at: Option<Timestamp>,
    /// Kept and given back as it is.
    pub metadata: Metadata,
}

/// What became of memories that were added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    /// An id for each, in the order given.
    pub ids: Vec<String>,
    /// How many rows were written.
    pub added: usize,
    /// How many were there already with the same content.
    pub unchanged: usize,
}

/// A memory as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Memory {
    /// Unique for the user.
    pub id: String,
    /// The text.
    pub content: String,
    /// What kind of source it comes from.
    pub source_type: String,
    /// Labels to filter by.
    pub tags: Vec<String>,
    /// Kept as it was given.
    pub metadata: Metadata,
    /// The document that it is a chunk of; empty for all others.
    pub document_id: String,
    /// When what it tells happened.
    pub created_at: Timestamp,
    /// When the row was last written.
    pub updated_at: Timestamp,
}

/// A question to the memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// What to look for; not blank.
    pub text: String,
    /// Most memories to give.
    pub limit: usize,
    /// Least score, 0 to 1; 0 = no floor.
    pub min_score: f32,
    /// What a memory must match.
    pub filter: Filter,
    /// How much meaning counts against words, 0 to 1.
    pub alpha: f32,
}

/// Memories that were found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Best first, each with its score from 0 to 1.
    pub hits: Vec<(Memory, f32)>,
    /// How many passed filter and floor, counted up to [`MAX_COUNTED`].
    pub total: usize,
    /// The vectors could not be searched, so that only words were.
    pub keywords_only: bool,
}

/// A page of memories.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// Newest first.
    pub memories: Vec<Memory>,
    /// Where the next page begins; `None` on the last.
    pub next: Option<PageToken>,
}

/// Which memories to forget.
#[derive(Debug, Clone, PartialEq)]
pub enum Selection {
    /// Those with these ids.
    Ids(Vec<String>),
    /// All chunks of a document.
    Document(String),
    /// Those that match a filter with at least one part set.
    Matching(Filter),
    /// All of the user's.
    Everything,
}

/// Why the memory failed. It holds no text of the user.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The database failed.
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
    /// The database took longer than [`DATABASE_TIMEOUT`].
    #[error("the database took too long")]
    Timeout,
    /// There is no vector to store or to search with.
    #[error(transparent)]
    Embedding(#[from] EmbedError),
}

impl MemoryError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        use sqlx::Error;
        match self {
            Self::Timeout | Self::Embedding(EmbedError::Unreachable(_)) => true,
            Self::Embedding(EmbedError::Refused(status)) => *status == 429 || *status >= 500,
            Self::Embedding(EmbedError::Unusable(_) | EmbedError::Local(_)) => false,
            Self::Database(Error::PoolTimedOut | Error::PoolClosed | Error::Io(_) | Error::Tls(_)) => true,
            // Connections (08), resources (53), an operator's intervention such as a restart (57), a collision of
            // transactions (40001, 40P01), a table that the migration of a starting server has yet to make (42P01).
            Self::Database(Error::Database(error)) => error.code().is_some_and(|code| {
                ["08", "53", "57"].iter().any(|class| code.starts_with(class))
                    || matches!(&*code, "40001" | "40P01" | "42P01")
            }),
            Self::Database(_) => false,
        }
    }
}

/// The memory of all users.
pub struct MemoryEngine {
    pool: PgPool,
    embedder: Arc<dyn Embedder>,
}

impl MemoryEngine {
    /// A memory in a database, with vectors of an embedder.
    #[must_use]
    pub fn new(pool: PgPool, embedder: Arc<dyn Embedder>) -> Self {
        Self { pool, embedder }
    }

    /// Keeps memories: all of them or, after an error, none. Where an id occurs twice, the last one counts.
    ///
    /// # Errors
    /// The embedder or the database failed.
    pub async fn add(&self, user: &UserId, memories: Vec<NewMemory>) -> Result<Added, MemoryError> {
        let count = memories.len();
        let mut ids = Vec::with_capacity(count);
        // Sorted by id: two writers of the same ids take their locks in the same order and never block each other.
        let mut rows = BTreeMap::new();
        for mut memory in memories {
            let id = memory.id.take().unwrap_or_else(|| Uuid::now_v7().to_string());
            ids.push(id.clone());
            rows.insert(id, memory);
        }
        let model = self.embedder.model();
        let known = in_time(store::unchanged(&self.pool, user, &rows, model)).await?;
        rows.retain(|id, _| !known.contains(id));
        let texts: Vec<&str> = rows.values().map(|memory| memory.content.as_str()).collect();
        let vectors = if texts.is_empty() { Vec::new() } else { self.embedder.embed(&texts).await? };
        let added = in_time(store::upsert(&self.pool, user, &rows, vectors, model)).await?;
        Ok(Added { ids, added, unchanged: count - added })
    }

    /// Finds memories by words and by meaning. The score is `alpha · v + (1 − alpha) · k`, on the same scale for every query:
    /// `v` is the cosine of the angle between the vectors, and 0 where that is negative; `k` is the Okapi BM25 score divided
    /// by the most that a memory could score for this query's words.
    ///
    /// With alpha below 0.001 the embedder is not asked, with alpha 1 the words are not looked up. Where the embedder fails,
    /// words alone are searched, unless meaning alone is wanted.
    ///
    /// # Errors
    /// The database failed, or the embedder did and meaning alone was wanted.
    pub async fn retrieve(&self, user: &UserId, query: &Query) -> Result<Found, MemoryError> {
        let (words, meaning) = (query.alpha < 1.0, query.alpha >= KEYWORDS_ALONE);
        let vector = if meaning { self.embed_query(&query.text).await.map(Some) } else { Ok(None) };
        let (vector, failed) = match vector {
            Err(error) if words => {
                tracing::warn!(%error, "the query has no vector; searching by words alone");
                (None, true)
            }
            vector => (vector?, false),
        };
        let legs = match vector {
            Some(vector) if !words => Legs::Vectors(vector),
            Some(vector) => Legs::Both(self.statistics(user, &query.text).await?, vector),
            None => Legs::Keywords(self.statistics(user, &query.text).await?),
        };
        let found = in_time(store::search::search(&self.pool, user, query, legs, self.embedder.model())).await?;
        Ok(Found { keywords_only: failed, ..found })
    }

    async fn embed_query(&self, text: &str) -> Result<Vec<f32>, EmbedError> {
        let vectors = self.embedder.embed(&[text]).await?;
        vectors.into_iter().next().ok_or_else(|| EmbedError::Unusable("no vector".to_owned()))
    }

    /// What the words of a query are worth for a user, whose index is made first where there is none of this tokeniser's.
    async fn statistics(&self, user: &UserId, text: &str) -> Result<Statistics, MemoryError> {
        let terms = keyword::terms(text);
        if let Some(statistics) = in_time(store::search::statistics(&self.pool, user, &terms)).await? {
            return Ok(statistics);
        }
        in_time(store::ensure_index(&self.pool, user)).await?;
        Ok(in_time(store::search::statistics(&self.pool, user, &terms)).await?.unwrap_or_default())
    }

    /// Lists memories, newest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn list(
        &self,
        user: &UserId,
        filter: &Filter,
        page_size: usize,
        after: Option<&PageToken>,
    ) -> Result<Page, MemoryError> {
        in_time(store::page(&self.pool, user, filter, page_size, after)).await
    }

    /// Forgets memories and says how many there were.
    ///
    /// # Errors
    /// The database failed.
    pub async fn delete(&self, user: &UserId, selection: &Selection) -> Result<u64, MemoryError> {
        in_time(store::delete(&self.pool, user, selection)).await
    }
}

async fn in_time<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, MemoryError> {
    Ok(timeout(DATABASE_TIMEOUT, work).await.map_err(|_| MemoryError::Timeout)??)
}
