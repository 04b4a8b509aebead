//! One statement scores every candidate by both retrievers, so that their fusion loses nothing.

use jiff_sqlx::ToSqlx as _;
use pgvector::Vector;
use sqlx::{AssertSqlSafe, FromRow as _, Row as _, postgres::PgRow};

use super::{
    SqlQuery, bind_filter, columns,
    knn::{self, VectorIndex},
    matches_filter, sql_int, with_documents,
};
use crate::{
    identity::UserId,
    memory::{
        MAX_COUNTED, Memory, RetrievalQuery, RetrievalResult, bm25,
        lexical::{self, POSTINGS_BUDGET, QueryTerm},
        tokenizer,
    },
    postgres::RoleTransaction,
    temporal::TimeSpan,
};

/// Added to the score of a memory of a time that the query names.
const TIME_BONUS: f64 = 0.05;

/// gRPC clients accept messages of 4 MB by default; sizes are estimates.
const MAX_RESULT_BYTES: usize = 3_500_000;

const LEXICAL_STATISTICS: &str = include_str!("sql/lexical_statistics.sql");
const LEXICAL: &str = include_str!("sql/search_lexical.sql");
const EXACT: &str = include_str!("sql/search_exact.sql");
const CANDIDATES: &str = include_str!("sql/search_candidates.sql");
const LEXICAL_CANDIDATES: &str = "(select id from lexical order by score desc, id limit $22)";
const NO_CANDIDATES: &str = "select null where false";
const HYBRID_SCORE: &str = "
    select id, $15 * coalesce(vectors.score, 0) + (1 - $15) * coalesce(lexical.score, 0) as score
    from vectors full join lexical using (id)";

#[derive(Debug, Clone, Copy)]
pub(crate) struct Bm25Params {
    /// How fast repeats of a term stop counting.
    pub(crate) k1: f64,
    /// The penalty of a text longer than the average.
    pub(crate) b: f64,
}

#[derive(Debug)]
pub(crate) enum SearchMode {
    Lexical(LexicalStatistics),
    Vector(Vector),
    Hybrid(LexicalStatistics, Vector),
}

impl SearchMode {
    fn inputs(&self) -> (Option<&LexicalStatistics>, Option<&Vector>) {
        match self {
            Self::Lexical(statistics) => (Some(statistics), None),
            Self::Vector(vector) => (None, Some(vector)),
            Self::Hybrid(statistics, vector) => (Some(statistics), Some(vector)),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct LexicalStatistics {
    pub(crate) memories: u64,
    terms: Vec<QueryTerm>,
    average_length: f64,
}

#[derive(Debug)]
pub(crate) struct Search<'a> {
    pub(crate) user: &'a UserId,
    pub(crate) query: &'a RetrievalQuery,
    pub(crate) mode: SearchMode,
    /// Weight of the vector retriever.
    pub(crate) alpha: f64,
    pub(crate) spans: Vec<TimeSpan>,
    pub(crate) model_key: &'a str,
    /// With the number of the user's memories; `None`: exact kNN.
    pub(crate) vector_index: Option<(&'a VectorIndex, u64)>,
    pub(crate) bm25: Bm25Params,
}

#[derive(sqlx::FromRow)]
struct StatisticsRow {
    memories: i64,
    total_length: f64,
    is_current: bool,
    term: Option<String>,
    document_frequency: Option<i64>,
}

/// `None`: the user's index has to be built first.
pub(crate) async fn lexical_statistics(
    transaction: &mut RoleTransaction,
    user: &UserId,
    terms: &[String],
) -> Result<Option<LexicalStatistics>, sqlx::Error> {
    let query = transaction.query(LEXICAL_STATISTICS).bind(user.as_str()).bind(terms).bind(tokenizer::VERSION);
    let rows = query.fetch_all(&mut **transaction).await?;
    let rows: Vec<StatisticsRow> = rows.iter().map(StatisticsRow::from_row).collect::<Result<_, _>>()?;
    let Some(first) = rows.first().filter(|row| row.is_current) else { return Ok(None) };
    let memories = u64::try_from(first.memories).unwrap_or(0);
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    let average_length = first.total_length / memories.max(1) as f64;
    let terms = rows.into_iter().filter_map(|row| {
        let document_frequency = u64::try_from(row.document_frequency.unwrap_or(0)).unwrap_or(0);
        Some(QueryTerm { term: row.term?, idf: bm25::idf(memories, document_frequency), document_frequency })
    });
    Ok(Some(LexicalStatistics { memories, terms: lexical::within_budget(terms.collect()), average_length }))
}

impl Search<'_> {
    /// Columns of the memories decide on a hit or its score.
    fn reads_memories(&self) -> bool {
        !self.query.filter.is_empty() || !self.spans.is_empty()
    }

    /// Common table expressions, and the statement that fuses their scores.
    fn retrievers(&self) -> (Vec<String>, &'static str) {
        let (statistics, vector) = self.mode.inputs();
        let mut retrievers = Vec::new();
        if statistics.is_some() {
            retrievers.push(LEXICAL.replace("{budget}", &POSTINGS_BUDGET.to_string()));
        }
        if vector.is_some() {
            match self.vector_index {
                Some((index, _)) => {
                    retrievers.push(index.candidates_cte());
                    let lexical = if statistics.is_some() { LEXICAL_CANDIDATES } else { NO_CANDIDATES };
                    retrievers.push(CANDIDATES.replace("{lexical_candidates}", lexical));
                }
                None => retrievers.push(EXACT.to_owned()),
            }
        }
        let fusion = match self.mode {
            SearchMode::Lexical(_) => "select id, score from lexical",
            SearchMode::Vector(_) => "select id, score from vectors",
            SearchMode::Hybrid(..) => HYBRID_SCORE,
        };
        (retrievers, fusion)
    }

    /// Parameters from $15: alpha, floor, hits that are counted, limit, beginnings and ends of the spans, time bonus,
    /// and candidates of each retriever.
    fn statement(&self) -> String {
        let (retrievers, fusion) = self.retrievers();
        let filtered = if self.reads_memories() {
            concat!(
                "select memories.id, least(1, scored.score + case when exists (
                     select from unnest($19::timestamptz[], $20::timestamptz[]) as span (first, after)
                     where memories.created_at >= first and memories.created_at < after
                 ) then $21 else 0 end)::real as score
                 from scored join memories on memories.user_id = $1 and memories.id = scored.id
                 where memories.superseded_by is null and ",
                matches_filter!()
            )
        } else {
            "select id, score::real as score from scored"
        };
        format!(
            concat!(
                "with {retrievers}, scored as ({fusion}), filtered as ({filtered}),
                 hits as (select * from filtered where score >= $16 order by score desc, id limit $17)
                 select ",
                columns!(),
                ", best.score, (select count(*) from hits) as total, {candidates} as candidates
                 from (select) as always left join (
                     (select id, score from hits order by score desc, id limit $18) as best join ",
                with_documents!("memories on memories.user_id = $1 and memories.id = best.id"),
                ") on true where $22 > 0 order by best.score desc, best.id"
            ),
            retrievers = retrievers.join(", "),
            candidates = if self.vector_index.is_some() { "(select count(*) from nearest)" } else { "null::bigint" },
            fusion = fusion,
            filtered = filtered,
        )
    }

    fn bind<'q>(&'q self, query: SqlQuery<'q>, candidates: usize) -> SqlQuery<'q> {
        let (statistics, vector) = self.mode.inputs();
        let limit = sql_int(self.query.limit);
        let terms = statistics.map_or(&[] as &[_], |statistics| statistics.terms.as_slice());
        let (terms_text, idfs): (Vec<&str>, Vec<f64>) = terms.iter().map(|term| (term.term.as_str(), term.idf)).unzip();
        let (first, after): (Vec<_>, Vec<_>) =
            self.spans.iter().map(|span| (span.from.to_sqlx(), span.before.to_sqlx())).unzip();
        bind_filter(query, self.user, &self.query.filter)
            .bind(terms_text)
            .bind(idfs)
            .bind(self.bm25.k1)
            .bind(self.bm25.b)
            // Without terms nothing is divided, but a plan with a constant 0 would fail.
            .bind(statistics.map_or(1.0, |statistics| statistics.average_length).max(1.0))
            .bind(lexical::reference_score(terms).max(f64::MIN_POSITIVE))
            .bind(vector)
            .bind(self.model_key)
            .bind(self.alpha)
            .bind(self.query.min_score)
            .bind(limit.max(sql_int(MAX_COUNTED)))
            .bind(limit)
            .bind(first)
            .bind(after)
            .bind(TIME_BONUS)
            .bind(sql_int(candidates))
    }

    pub(crate) async fn run(&mut self, transaction: &mut RoleTransaction) -> Result<RetrievalResult, sqlx::Error> {
        let candidates = knn::candidate_count(self.query.limit, self.query.min_score);
        if let Some((_, memories)) = self.vector_index {
            knn::set_scan_limits(transaction, candidates, memories).await?;
        }
        let mut rows = self.rows(transaction, candidates).await?;
        if self.vector_index.is_some() && count(&rows, "candidates")? < candidates {
            tracing::debug!("the vector index finds too few candidates; falling back to exact kNN");
            self.vector_index = None;
            knn::reset_planner(transaction).await?;
            rows = self.rows(transaction, candidates).await?;
        }
        let mut total = count(&rows, "total")?;
        // Without a floor every memory is a match, and users of the index have more than are counted.
        if self.vector_index.is_some() && self.query.min_score <= 0.0 {
            total = MAX_COUNTED;
        }
        Ok(RetrievalResult { hits: hits(&rows)?, total, degraded_to: None })
    }

    async fn rows(&self, transaction: &mut RoleTransaction, candidates: usize) -> Result<Vec<PgRow>, sqlx::Error> {
        tracing::debug!(vectors = if self.vector_index.is_some() { "hnsw" } else { "exact" }, "searching");
        let query = self.bind(transaction.query(AssertSqlSafe(self.statement())), candidates);
        query.fetch_all(&mut **transaction).await
    }

    pub(crate) async fn explain(&self, transaction: &mut RoleTransaction) -> Result<String, sqlx::Error> {
        let candidates = knn::candidate_count(self.query.limit, self.query.min_score);
        if let Some((_, memories)) = self.vector_index {
            knn::set_scan_limits(transaction, candidates, memories).await?;
        }
        let query = self.bind(transaction.query_unprepared(format!("explain {}", self.statement())), candidates);
        let rows = query.fetch_all(&mut **transaction).await?;
        Ok(super::column::<String>(&rows, "QUERY PLAN")?.join("\n"))
    }
}

/// Reads the first row, because all repeat the number; 0 for null.
fn count(rows: &[PgRow], column: &str) -> Result<usize, sqlx::Error> {
    let count: Option<i64> = rows.first().map_or(Ok(None), |row| row.try_get(column))?;
    Ok(count.and_then(|count| usize::try_from(count).ok()).unwrap_or_default())
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
