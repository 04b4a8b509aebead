//! Finding: one statement scores every candidate of the user on both legs, so that their fusion loses nothing.

use pgvector::Vector;
use sqlx::{FromRow as _, PgPool, Row as _, postgres::PgRow};

use super::{Bound, columns, matches_filter, matching, sql_int};
use crate::{
    embedding::EmbeddingModel,
    identity::UserId,
    memory::{
        Found, MAX_COUNTED, Memory, Query, bm25,
        keyword::{self, WeightedTerm},
        tokenizer,
    },
};

/// Whether the user's index can be used, its statistics, and the document frequencies of some terms.
const STATISTICS: &str = "
    select users.memories, users.total_length, users.tokenizer = $3 as is_current, terms.term, terms.memories as with_term
    from memory_users users
         left join memory_terms terms on terms.user_id = users.user_id and terms.term = any($2)
    where users.user_id = $1";

/// The keyword leg: Okapi BM25, as `term_score` in `bm25.rs` has it. $7 terms, $8 their inverse document frequencies, $9 k1, $10 b, $11 the
/// average length, $12 the bound that makes it a share.
macro_rules! keywords {
    () => {
        "keywords as (
             select memory_id as id,
                    sum(idf * frequency * ($9 + 1) / (frequency + $9 * (1 - $10 + $10 * length / $11))) / $12 as score
             from memory_postings join unnest($7::text[], $8::float8[]) as asked (term, idf) using (term)
             where user_id = $1 and term = any($7)
             group by memory_id
         )"
    };
}

/// The vector leg: the cosine, and 0 where it is negative. $13 the vector, $14 its model, $15 its dimension. Materialised,
/// so that no vector of another dimension meets the operator before it is filtered out.
macro_rules! vectors {
    () => {
        "vectors as materialized (
             select id, least(1, greatest(0, 1 - (embedding <=> $13))) as score
             from memories
             where user_id = $1 and embedding_model = $14 and embedding_dim = $15
         )"
    };
}

/// What passes filter and floor, and the best of it. $16 alpha, $17 the floor, $18 how many are counted, $19 the limit.
macro_rules! best {
    ($legs:expr, $scored:expr) => {
        concat!(
            "with ",
            $legs,
            ", scored as (",
            $scored,
            "), passed as (
                 select memories.id, scored.score::real as score
                 from scored join memories on memories.user_id = $1 and memories.id = scored.id
                 where scored.score::real >= $17 and ",
            matches_filter!(),
            "    order by scored.score::real desc, memories.id limit $18
             )
             select ",
            columns!(),
            ", best.score, (select count(*) from passed) as total
             from (select id, score from passed order by score desc, id limit $19) as best
                  join memories on memories.user_id = $1 and memories.id = best.id
             order by best.score desc, best.id"
        )
    };
}

const BY_KEYWORDS: &str = best!(keywords!(), "select id, score from keywords");
const BY_VECTORS: &str = best!(vectors!(), "select id, score from vectors");
const HYBRID: &str = best!(
    concat!(keywords!(), ", ", vectors!()),
    "select id, $16 * coalesce(vectors.score, 0) + (1 - $16) * coalesce(keywords.score, 0) as score
     from vectors full join keywords using (id)"
);

/// Which legs search.
pub(in crate::memory) enum Legs {
    Keywords(Statistics),
    Vectors(Vec<f32>),
    Both(Statistics, Vec<f32>),
}

/// What BM25 needs to know of a user.
#[derive(Debug, Default)]
pub(in crate::memory) struct Statistics {
    terms: Vec<WeightedTerm>,
    average_length: f64,
}

/// The statistics for some terms; `None` where the user's index has to be made first.
pub(in crate::memory) async fn statistics(
    pool: &PgPool,
    user: &UserId,
    terms: &[String],
) -> Result<Option<Statistics>, sqlx::Error> {
    let rows = sqlx::query(STATISTICS).bind(user.as_str()).bind(terms).bind(tokenizer::VERSION).fetch_all(pool).await?;
    let Some(first) = rows.first() else { return Ok(None) };
    if !first.try_get::<bool, _>("is_current")? {
        return Ok(None);
    }
    let count = |row: &PgRow, column: &str| {
        Ok::<_, sqlx::Error>(u64::try_from(row.try_get::<Option<i64>, _>(column)?.unwrap_or(0)).unwrap_or(0))
    };
    let (memories, total_length) = (count(first, "memories")?, count(first, "total_length")?);
    let mut weighted = Vec::with_capacity(rows.len());
    for row in &rows {
        if let Some(term) = row.try_get::<Option<String>, _>("term")? {
            let with_term = count(row, "with_term")?;
            weighted.push(WeightedTerm { term, idf: bm25::idf(memories, with_term), memories: with_term });
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "counts of tokens are far below 2^52")]
    let average_length = total_length as f64 / memories.max(1) as f64;
    Ok(Some(Statistics { terms: keyword::within_budget(weighted), average_length }))
}

/// The best memories for a query.
pub(in crate::memory) async fn search(
    pool: &PgPool,
    user: &UserId,
    query: &Query,
    legs: Legs,
    model: &EmbeddingModel,
) -> Result<Found, sqlx::Error> {
    let (sql, statistics, vector) = match legs {
        Legs::Keywords(statistics) => (BY_KEYWORDS, statistics, None),
        Legs::Vectors(vector) => (BY_VECTORS, Statistics::default(), Some(vector)),
        Legs::Both(statistics, vector) => (HYBRID, statistics, Some(vector)),
    };
    let (terms, idfs): (Vec<_>, Vec<_>) = statistics.terms.iter().map(|term| (term.term.as_str(), term.idf)).unzip();
    let bound: Bound<'_> = matching(sqlx::query(sql), user, &query.filter);
    let rows = bound
        .bind(terms)
        .bind(idfs)
        .bind(bm25::K1)
        .bind(bm25::B)
        // Where nothing is indexed nothing is divided either, but a 0 could not be bound.
        .bind(statistics.average_length.max(1.0))
        .bind(keyword::bound(&statistics.terms).max(f64::MIN_POSITIVE))
        .bind(vector.map(Vector::from))
        .bind(&model.name)
        .bind(sql_int(model.dimension))
        .bind(f64::from(query.alpha))
        .bind(query.min_score)
        .bind(sql_int(MAX_COUNTED).max(sql_int(query.limit)))
        .bind(sql_int(query.limit))
        .fetch_all(pool)
        .await?;
    let total: i64 = rows.first().map_or(Ok(0), |row| row.try_get("total"))?;
    let hits = rows.iter().map(|row| Ok((Memory::from_row(row)?, row.try_get("score")?)));
    let hits = hits.collect::<Result<_, sqlx::Error>>()?;
    Ok(Found { hits, total: usize::try_from(total).unwrap_or_default(), keywords_only: false })
}
