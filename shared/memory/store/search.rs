//! Finding: one statement scores every candidate of the user on both legs, so that their fusion loses nothing.

use jiff_sqlx::ToSqlx as _;
use sqlx::{AssertSqlSafe, FromRow as _, Row as _, postgres::PgRow};

use super::{
    Bound, bind_filter, columns,
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

/// What is added to the score of a memory of a time that the query names.
pub(in crate::memory) const TIME_BONUS: f64 = 0.05;

/// Most bytes of what is found, by an estimate: clients read no more than 4 MB of one message by default.
const MAX_BYTES: usize = 3_500_000;

/// How a search goes about.
#[derive(Debug, Clone, Copy)]
pub(in crate::memory) struct Bm25Params {
    /// How fast repeats of a term stop counting.
    pub(in crate::memory) k1: f64,
    /// How much a text longer than the average is marked down.
    pub(in crate::memory) b: f64,
}

/// Whether the user's index can be used, its statistics, and the document frequencies of some terms. An index of a newer
/// tokeniser is read as it is; who has no memories needs none.
const STATISTICS: &str = "
    select coalesce(users.memories, 0) as memories, coalesce(users.total_length, 0) as total_length,
           case when users.user_id is null then not exists (select from memories where user_id = $1)
                else users.tokenizer >= $3 and users.indexed_to is null end as is_current,
           terms.term, terms.memories as with_term
    from (select) as one
         left join memory_users users on users.user_id = $1
         left join memory_terms terms on terms.user_id = users.user_id and terms.term = any($2)";

/// The keyword leg: Okapi BM25, as `term_score` in `bm25.rs` has it, bent into 0 to 1. $7 terms, $8 their inverse document
/// frequencies, $9 k1, $10 b, $11 the average length, $12 the unit that it is measured by.
const KEYWORDS: &str = "
    keywords as (
        select id, x / sqrt(1 + x * x) as score
        from (select memory_id as id,
                     sum(idf * frequency * ($9 + 1) / (frequency + $9 * (1 - $10 + $10 * length / $11))) / $12 as x
              from unnest($7::text[], $8::float8[]) as asked (term, idf)
                   cross join lateral (
                       select memory_id, frequency, length from memory_postings
                       where user_id = $1 and term = asked.term order by memory_id desc limit {budget}
                   ) as postings
              group by memory_id) as measured
    )";

/// The vector leg: the cosine, which of unit vectors is their product, and 0 where it is negative. $13 the vector, which is
/// made of the array once and not for each row, $14 its model. The offset keeps the planner from comparing a vector of
/// another dimension before it is filtered out; to materialise the leg would cost a tenth of the search.
const VECTORS: &str = "
    vectors as (
        select memory_id as id, least(1, greatest(0, -(embedding <#> (select $13::real[]::vector)))) as score
        from memory_vectors where user_id = $1 and model = $14 offset 0
    )";

/// The vector leg of those memories alone that are near by the index or have the words of the query, scored exactly. $22 how
/// many of each.
const CANDIDATES: &str = "
    vectors as (
        select memory_id as id, least(1, greatest(0, -(embedding <#> (select $13::real[]::vector)))) as score
        from memory_vectors
        where user_id = $1 and model = $14 and memory_id = any(array(select id from nearest union {worded}))
        offset 0
    )";

const WORDED: &str = "(select id from keywords order by score desc, id limit $22)";

/// Which legs search.
#[derive(Debug)]
pub(in crate::memory) enum SearchMode {
    Lexical(LexicalStatistics),
    Vector(Vec<f32>),
    Hybrid(LexicalStatistics, Vec<f32>),
}

impl SearchMode {
    fn parts(&self) -> (Option<&LexicalStatistics>, Option<&[f32]>) {
        match self {
            Self::Lexical(statistics) => (Some(statistics), None),
            Self::Vector(vector) => (None, Some(vector)),
            Self::Hybrid(statistics, vector) => (Some(statistics), Some(vector)),
        }
    }
}

/// What BM25 needs to know of a user.
#[derive(Debug, Default)]
pub(in crate::memory) struct LexicalStatistics {
    /// How many memories have words.
    pub(in crate::memory) memories: u64,
    terms: Vec<QueryTerm>,
    average_length: f64,
}

/// What is searched for.
#[derive(Debug)]
pub(in crate::memory) struct Search<'a> {
    pub(in crate::memory) user: &'a UserId,
    pub(in crate::memory) query: &'a RetrievalQuery,
    pub(in crate::memory) mode: SearchMode,
    /// How much meaning counts against words.
    pub(in crate::memory) alpha: f64,
    /// The times that the query names.
    pub(in crate::memory) spans: Vec<TimeSpan>,
    /// What the vectors are kept under.
    pub(in crate::memory) model_key: &'a str,
    /// Finds near vectors without comparing all of the user's, of whom this says how many there are; `None` = all are
    /// compared.
    pub(in crate::memory) vector_index: Option<(&'a VectorIndex, u64)>,
    pub(in crate::memory) bm25: Bm25Params,
}

/// The statistics for some terms; `None` where the user's index has to be made first.
pub(in crate::memory) async fn lexical_statistics(
    transaction: &mut RoleTransaction,
    user: &UserId,
    terms: &[String],
) -> Result<Option<LexicalStatistics>, sqlx::Error> {
    let query = transaction.query(STATISTICS).bind(user.as_str()).bind(terms).bind(tokenizer::VERSION);
    let rows = query.fetch_all(&mut **transaction).await?;
    let Some(first) = rows.first() else { return Ok(None) };
    if !first.try_get::<bool, _>("is_current")? {
        return Ok(None);
    }
    let count = |row: &PgRow, column: &str| {
        Ok::<_, sqlx::Error>(u64::try_from(row.try_get::<Option<i64>, _>(column)?.unwrap_or(0)).unwrap_or(0))
    };
    let memories = count(first, "memories")?;
    let total_length: f64 = first.try_get("total_length")?;
    let mut weighted = Vec::with_capacity(rows.len());
    for row in &rows {
        if let Some(term) = row.try_get::<Option<String>, _>("term")? {
            let with_term = count(row, "with_term")?;
            weighted.push(QueryTerm { term, idf: bm25::idf(memories, with_term), document_frequency: with_term });
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    let average_length = total_length / memories.max(1) as f64;
    Ok(Some(LexicalStatistics { memories, terms: lexical::within_budget(weighted), average_length }))
}

impl Search<'_> {
    /// Whether what was found has to be looked at before the best can be told.
    fn is_narrowed(&self) -> bool {
        !self.query.filter.is_empty() || !self.spans.is_empty()
    }

    /// The statement. Parameters from $15: alpha, the floor, how many are counted, the limit, the spans' beginnings and ends,
    /// the bonus for a time within one, and how many candidates are taken of each leg.
    fn statement(&self) -> String {
        let (words, vector) = self.mode.parts();
        let mut legs = Vec::new();
        if words.is_some() {
            legs.push(KEYWORDS.replace("{budget}", &POSTINGS_BUDGET.to_string()));
        }
        if vector.is_some() {
            match self.vector_index {
                Some((index, _)) => {
                    legs.push(index.candidates_cte());
                    let worded = if words.is_some() { WORDED } else { "select null where false" };
                    legs.push(CANDIDATES.replace("{worded}", worded));
                }
                None => legs.push(VECTORS.to_owned()),
            }
        }
        let scored = match (words, vector) {
            (Some(_), Some(_)) => {
                "select id, $15 * coalesce(vectors.score, 0) + (1 - $15) * coalesce(keywords.score, 0) as score
                 from vectors full join keywords using (id)"
            }
            (None, _) => "select id, score from vectors",
            (_, None) => "select id, score from keywords",
        };
        let passed = if self.is_narrowed() {
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
                "with {legs}, scored as ({scored}), narrowed as ({passed}),
                 passed as (select * from narrowed where score >= $16 order by score desc, id limit $17)
                 select ",
                columns!(),
                ", best.score, (select count(*) from passed) as total, {near} as near
                 from (select) as always left join (
                     (select id, score from passed order by score desc, id limit $18) as best join ",
                with_documents!("memories on memories.user_id = $1 and memories.id = best.id"),
                ") on true where $22 > 0 order by best.score desc, best.id"
            ),
            legs = legs.join(", "),
            near = if self.vector_index.is_some() { "(select count(*) from nearest)" } else { "null::bigint" },
            scored = scored,
            passed = passed,
        )
    }

    fn bind<'q>(&'q self, query: Bound<'q>, candidates: usize) -> Bound<'q> {
        let (statistics, vector) = self.mode.parts();
        let (none, limit) = ([], sql_int(self.query.limit));
        let terms = statistics.map_or(none.as_slice(), |statistics| statistics.terms.as_slice());
        let (words, idfs): (Vec<&str>, Vec<f64>) = terms.iter().map(|term| (term.term.as_str(), term.idf)).unzip();
        let (first, after): (Vec<_>, Vec<_>) =
            self.spans.iter().map(|span| (span.from.to_sqlx(), span.before.to_sqlx())).unzip();
        bind_filter(query, self.user, &self.query.filter)
            .bind(words)
            .bind(idfs)
            .bind(self.bm25.k1)
            .bind(self.bm25.b)
            // Where nothing is indexed nothing is divided either, but a 0 could not be bound.
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

    /// The best memories.
    pub(in crate::memory) async fn run(
        &mut self,
        transaction: &mut RoleTransaction,
    ) -> Result<RetrievalResult, sqlx::Error> {
        let candidates = knn::candidate_count(self.query.limit, self.query.min_score);
        if let Some((_, memories)) = self.vector_index {
            knn::set_scan_limits(transaction, candidates, memories).await?;
        }
        let mut rows = self.rows(transaction, candidates).await?;
        let number = |rows: &[PgRow], column| {
            let number = rows.first().map_or(Ok(None), |row| row.try_get::<Option<i64>, _>(column))?;
            Ok::<_, sqlx::Error>(number.and_then(|number| usize::try_from(number).ok()).unwrap_or_default())
        };
        if self.vector_index.is_some() && number(&rows, "near")? < candidates {
            // Others' vectors lie nearer than the user's, of whom there are more than the index came to.
            tracing::debug!("the index of vectors finds too few");
            self.vector_index = None;
            knn::reset_planner(transaction).await?;
            rows = self.rows(transaction, candidates).await?;
        }
        let mut total = number(&rows, "total")?;
        // Without a floor everything counts, and whoever is searched by an index has more than is counted.
        if self.vector_index.is_some() && self.query.min_score <= 0.0 {
            total = MAX_COUNTED;
        }
        let mut hits: Vec<(Memory, f32)> = Vec::with_capacity(rows.len());
        let mut bytes = 0;
        for row in &rows {
            // A row without a memory tells that there is none.
            let Some(score) = row.try_get("score")? else { break };
            let memory = Memory::from_row(row)?;
            bytes += size(&memory);
            if bytes > MAX_BYTES && !hits.is_empty() {
                break;
            }
            hits.push((memory, score));
        }
        Ok(RetrievalResult { hits, total, degraded_to: None })
    }

    async fn rows(&self, transaction: &mut RoleTransaction, candidates: usize) -> Result<Vec<PgRow>, sqlx::Error> {
        tracing::debug!(vectors = if self.vector_index.is_some() { "hnsw" } else { "exact" }, "searching");
        let query = self.bind(transaction.query(AssertSqlSafe(self.statement())), candidates);
        query.fetch_all(&mut **transaction).await
    }

    /// How the database goes about it, as it tells by `explain`.
    pub(in crate::memory) async fn explain(&self, transaction: &mut RoleTransaction) -> Result<String, sqlx::Error> {
        let candidates = knn::candidate_count(self.query.limit, self.query.min_score);
        if let Some((_, memories)) = self.vector_index {
            knn::set_scan_limits(transaction, candidates, memories).await?;
        }
        let query = self.bind(transaction.query_unprepared(format!("explain {}", self.statement())), candidates);
        let rows = query.fetch_all(&mut **transaction).await?;
        Ok(super::column::<String>(&rows, "QUERY PLAN")?.join("\n"))
    }
}

/// About how many bytes a memory takes in a message.
fn size(memory: &Memory) -> usize {
    let metadata = memory.metadata.iter().map(|(name, value)| name.len() + value.len() + 8).sum::<usize>();
    let tags = memory.tags.iter().map(|tag| tag.len() + 2).sum::<usize>();
    let place = memory.location.as_ref().map_or(0, |place| place.title.len() + place.url.len() + place.section.len());
    memory.content.len() + metadata + tags + place + 300
}
