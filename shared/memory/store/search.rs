//! One statement reads the statistics of BM25, scores candidates by both retrievers and reads the best memories, so that
//! a search takes two round trips and sees one snapshot.

use jiff_sqlx::ToSqlx as _;
use sqlx::{AssertSqlSafe, FromRow as _, Row as _, postgres::PgRow};

use super::{
    SqlQuery, bind_filter,
    knn::{self, VectorIndex},
    search_statement::{Statement, Strategy},
    sql_int,
};
use crate::{
    identity::UserId,
    memory::{MAX_COUNTED, Memory, RetrievalQuery, RetrievalResult, tokenizer},
    postgres::RoleTransaction,
    temporal::TimeSpan,
};

pub(crate) use super::search_statement::SearchMode;

/// Added to the score of a memory of a time that the query names.
const TIME_BONUS: f64 = 0.05;

/// gRPC clients accept messages of 4 MB by default; sizes are estimates.
const MAX_RESULT_BYTES: usize = 3_500_000;

/// Memories that [`Strategy::Best`] scores, besides two for each of the limit. With fewer it would often have to score
/// all memories afterwards; each costs the look-up of a vector.
const MIN_SCORED: usize = 50;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Bm25Params {
    /// How fast repeats of a term stop counting.
    pub(crate) k1: f64,
    /// The penalty of a text longer than the average.
    pub(crate) b: f64,
}

#[derive(Debug)]
pub(crate) struct Search<'a> {
    pub(crate) user: &'a UserId,
    pub(crate) query: &'a RetrievalQuery,
    pub(crate) mode: SearchMode,
    /// Distinct terms of the query.
    pub(crate) terms: Vec<String>,
    /// Weight of the vector retriever.
    pub(crate) alpha: f64,
    pub(crate) spans: Vec<TimeSpan>,
    pub(crate) model_key: &'a str,
    pub(crate) vector_index: &'a VectorIndex,
    pub(crate) bm25: Bm25Params,
}

impl Search<'_> {
    /// Columns of the memories decide on a hit or its score.
    fn reads_memories(&self) -> bool {
        !self.query.filter.is_empty() || !self.spans.is_empty()
    }

    /// With a filter, the index scan might visit many vectors for few matches.
    fn may_use_index(&self) -> bool {
        self.mode.vector().is_some() && self.query.filter.is_empty()
    }

    fn exact_strategy(&self) -> Strategy<'static> {
        let counts_above_floor = self.query.counts_matches && self.query.min_score > 0.0;
        let scores_all = self.mode.vector().is_none() || self.reads_memories() || counts_above_floor;
        if scores_all { Strategy::All } else { Strategy::Best }
    }

    fn statement(&self, strategy: Strategy<'_>) -> AssertSqlSafe<String> {
        let (reads_memories, counts_matches) = (self.reads_memories(), self.query.counts_matches);
        Statement { mode: &self.mode, strategy, reads_memories, counts_matches }.sql()
    }

    /// As many as the exact kNN compares for [`Strategy::Best`], or as the HNSW index returns.
    fn candidates(&self, strategy: Strategy<'_>) -> usize {
        match strategy {
            Strategy::Index(_) => knn::candidate_count(self.query.limit, self.query.min_score),
            // Not fewer than are scored: if these are not all memories, one that is not compared could be among the best.
            Strategy::Best | Strategy::All => knn::candidate_count(self.query.limit, 0.0).max(self.scored()),
        }
    }

    /// As many as [`Strategy::Best`] scores.
    fn scored(&self) -> usize {
        self.query.limit.saturating_mul(2).saturating_add(MIN_SCORED)
    }

    fn bind<'q>(&'q self, query: SqlQuery<'q>, strategy: Strategy<'_>, max_memories: Option<i64>) -> SqlQuery<'q> {
        let limit = sql_int(self.query.limit);
        let (first, after): (Vec<_>, Vec<_>) =
            self.spans.iter().map(|span| (span.from.to_sqlx(), span.before.to_sqlx())).unzip();
        bind_filter(query, self.user, &self.query.filter)
            .bind(&self.terms)
            .bind(tokenizer::VERSION)
            .bind(self.bm25.k1)
            .bind(self.bm25.b)
            .bind(max_memories)
            .bind(self.mode.vector())
            .bind(self.model_key)
            .bind(if self.mode.is_lexical() { self.alpha } else { 1.0 })
            .bind(self.query.min_score)
            .bind(limit.max(sql_int(MAX_COUNTED)))
            .bind(limit)
            .bind(first)
            .bind(after)
            .bind(TIME_BONUS)
            .bind(sql_int(self.candidates(strategy)))
            .bind(sql_int(self.scored()))
    }

    /// `None`: the user's inverted index has to be built first.
    pub(crate) async fn run(&self, transaction: &mut RoleTransaction) -> Result<Option<RetrievalResult>, sqlx::Error> {
        let max_memories = self.may_use_index().then(|| self.vector_index.threshold());
        let strategy = self.exact_strategy();
        let mut rows = self.rows(transaction, strategy, max_memories).await?;
        if self.mode.is_lexical() && !first(&rows, "is_indexed")? {
            return Ok(None);
        }
        if !first(&rows, "is_small")? {
            if let Some(result) = self.run_by_index(transaction).await? {
                return Ok(Some(result));
            }
            rows = self.rows(transaction, strategy, None).await?;
        }
        if !first(&rows, "is_complete")? {
            tracing::debug!("too many memories have similar scores; scoring all of them");
            rows = self.rows(transaction, Strategy::All, None).await?;
        }
        let hits = hits(&rows)?;
        let total = count(&rows, "total")?.unwrap_or(hits.len());
        Ok(Some(RetrievalResult { hits, total, degraded_to: None }))
    }

    /// `None`: the index is not expected to be faster than an exact kNN, or finds too few candidates.
    async fn run_by_index(&self, transaction: &mut RoleTransaction) -> Result<Option<RetrievalResult>, sqlx::Error> {
        let strategy = Strategy::Index(self.vector_index);
        let candidates = self.candidates(strategy);
        let usable_size = self.vector_index.usable_size(transaction, self.user, candidates).await?;
        let Some(memories) = usable_size else { return Ok(None) };
        knn::set_scan_limits(transaction, candidates, memories).await?;
        let rows = self.rows(transaction, strategy, None).await?;
        if count(&rows, "candidates")?.unwrap_or(0) < candidates {
            tracing::debug!("the vector index finds too few candidates; falling back to exact kNN");
            knn::reset_planner(transaction).await?;
            return Ok(None);
        }
        // Without a floor every memory is a match, and users of the index have more than are counted.
        let total = if self.query.min_score <= 0.0 { MAX_COUNTED } else { count(&rows, "total")?.unwrap_or_default() };
        Ok(Some(RetrievalResult { hits: hits(&rows)?, total, degraded_to: None }))
    }

    async fn rows(
        &self,
        transaction: &mut RoleTransaction,
        strategy: Strategy<'_>,
        max_memories: Option<i64>,
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        let vectors = if matches!(strategy, Strategy::Index(_)) { "hnsw" } else { "exact" };
        tracing::debug!(vectors, "searching");
        let query = self.bind(transaction.query(self.statement(strategy)), strategy, max_memories);
        query.fetch_all(&mut **transaction).await
    }

    pub(crate) async fn explain(&self, transaction: &mut RoleTransaction) -> Result<String, sqlx::Error> {
        let index = Strategy::Index(self.vector_index);
        let candidates = self.candidates(index);
        let usable_size = match self.may_use_index() {
            true => self.vector_index.usable_size(transaction, self.user, candidates).await?,
            false => None,
        };
        let strategy = match usable_size {
            Some(memories) => {
                knn::set_scan_limits(transaction, candidates, memories).await?;
                index
            }
            None => self.exact_strategy(),
        };
        let statement = format!("explain {}", self.statement(strategy).0);
        let query = self.bind(transaction.query_unprepared(statement), strategy, None);
        let rows = query.fetch_all(&mut **transaction).await?;
        Ok(super::column::<String>(&rows, "QUERY PLAN")?.join("\n"))
    }
}

/// Of the first row, because all repeat it.
fn first(rows: &[PgRow], column: &str) -> Result<bool, sqlx::Error> {
    rows.first().map_or(Err(sqlx::Error::RowNotFound), |row| row.try_get(column))
}

/// Of the first row, because all repeat it.
fn count(rows: &[PgRow], column: &str) -> Result<Option<usize>, sqlx::Error> {
    let count: Option<i64> = rows.first().map_or(Ok(None), |row| row.try_get(column))?;
    Ok(count.and_then(|count| usize::try_from(count).ok()))
}

/// As many as fit into a message, and the first in any case.
fn hits(rows: &[PgRow]) -> Result<Vec<(Memory, f32)>, sqlx::Error> {
    let mut hits = Vec::with_capacity(rows.len());
    let mut bytes = 0;
    for row in rows {
        // Without hits there is one row without a memory.
        let Some(score) = row.try_get("score")? else { break };
        let memory = Memory::from_row(row)?;
        bytes += estimated_bytes(&memory);
        if bytes > MAX_RESULT_BYTES && !hits.is_empty() {
            break;
        }
        hits.push((memory, score));
    }
    Ok(hits)
}

fn estimated_bytes(memory: &Memory) -> usize {
    let metadata = memory.metadata.iter().map(|(name, value)| name.len() + value.len() + 8).sum::<usize>();
    let tags = memory.tags.iter().map(|tag| tag.len() + 2).sum::<usize>();
    let location = memory.location.as_ref();
    let location = location.map_or(0, |chunk| chunk.title.len() + chunk.url.len() + chunk.section.len());
    memory.content.len() + metadata + tags + location + 300
}
