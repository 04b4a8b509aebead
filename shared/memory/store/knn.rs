//! ANN by an HNSW index, for users with so many memories that an exact kNN takes too long. One index of `halfvec`
//! serves all such users of a model. Its iterative scan stops at enough of the user's own vectors, which are then
//! scored by the full vectors.

use sha2::{Digest as _, Sha256};
use sqlx::{AssertSqlSafe, Executor as _, PgConnection, Row as _};

use super::{model_key, sql_int};
use crate::{
    embedding::EmbeddingModel,
    identity::UserId,
    postgres::{RolePool, RoleTransaction},
};

/// At least this many, and so many for each memory of the limit.
const MIN_CANDIDATES: usize = 200;
const CANDIDATES_PER_HIT: usize = 10;
/// pgvector's limit for `hnsw.ef_search`. Searches that count the hits above a floor take it.
const MAX_CANDIDATES: usize = 1_000;
/// Of `work_mem`, 4 MB by default. With less the scan may end long before `hnsw.max_scan_tuples`.
const SCAN_MEM_MULTIPLIER: &str = "16";

const SET_SCAN_LIMITS: &str = include_str!("sql/set_scan_limits.sql");
const USABLE_SIZE: &str = include_str!("sql/vector_index_usable_size.sql");

#[derive(Debug, Clone)]
pub(crate) struct VectorIndex {
    model_key: String,
    dimension: usize,
    name: String,
    /// A user's memories from which on the index pays off.
    threshold: usize,
}

pub(crate) fn candidate_count(limit: usize, min_score: f32) -> usize {
    let count = if min_score > 0.0 { MAX_CANDIDATES } else { MIN_CANDIDATES.max(CANDIDATES_PER_HIT * limit) };
    count.min(MAX_CANDIDATES)
}

/// As many vectors, of all users, as an exact kNN would compare. The exact kNN follows if too few are the user's.
pub(super) async fn set_scan_limits(
    transaction: &mut RoleTransaction,
    candidates: usize,
    memories: u64,
) -> Result<(), sqlx::Error> {
    let query = transaction
        .query(SET_SCAN_LIMITS)
        .bind(candidates.to_string())
        .bind(memories.clamp(1, i32::MAX.unsigned_abs().into()).to_string())
        .bind(SCAN_MEM_MULTIPLIER);
    query.execute(&mut **transaction).await?;
    Ok(())
}

pub(super) async fn reset_planner(transaction: &mut RoleTransaction) -> Result<(), sqlx::Error> {
    transaction.query("select set_config('enable_sort', 'on', true)").execute(&mut **transaction).await?;
    Ok(())
}

impl VectorIndex {
    pub(crate) fn new(model: &EmbeddingModel, threshold: usize) -> Self {
        let model_key = model_key(model);
        let hash: String = Sha256::digest(&model_key).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Self { model_key, dimension: model.dimension, name: format!("memory_vectors_{hash}"), threshold }
    }

    /// The model is a literal, so that the planner can match it with the predicate of the partial index.
    pub(super) fn candidates_cte(&self) -> String {
        format!(
            "nearest as materialized (
                 select memory_id as id from memory_vectors
                 where user_id = $1 and model = {model}
                 order by embedding::halfvec({dimension}) <=> $12::halfvec({dimension}) limit $21
             )",
            model = literal(&self.model_key),
            dimension = self.dimension,
        )
    }

    pub(super) fn threshold(&self) -> i64 {
        i64::try_from(self.threshold).unwrap_or(i64::MAX)
    }

    /// The number of the user's memories, if the index is expected to be faster than an exact kNN.
    pub(crate) async fn usable_size(
        &self,
        transaction: &mut RoleTransaction,
        user: &UserId,
        candidates: usize,
    ) -> Result<Option<u64>, sqlx::Error> {
        let query = transaction
            .query(USABLE_SIZE)
            .bind(user.as_str())
            .bind(sql_int(self.threshold))
            .bind(&self.name)
            .bind(&self.model_key)
            .bind(f64::from(sql_int(candidates)));
        let row = query.fetch_optional(&mut **transaction).await?;
        let memories = row.map(|row| row.try_get::<i64, _>("memories")).transpose()?;
        Ok(memories.and_then(|memories| u64::try_from(memories).ok()))
    }

    pub(crate) async fn is_needed(&self, maintenance: &RolePool) -> Result<bool, sqlx::Error> {
        let mut transaction = maintenance.begin_without_user().await?;
        let query = transaction.query("select from memory_users where memories >= $1 limit 1");
        let row = query.bind(sql_int(self.threshold)).fetch_optional(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(row.is_some())
    }

    /// Does not block writes, and does nothing if the index exists or another process is building it.
    pub(crate) async fn build(&self, owner: &mut PgConnection) -> Result<(), sqlx::Error> {
        // Two builders would take each other's unfinished index for an aborted one. `try`: a waiting builder would
        // block the other, because a concurrent build waits for all older statements.
        let lock = sqlx::query("select pg_try_advisory_lock(hashtext($1)) as is_locked").bind(&self.name);
        if lock.fetch_one(&mut *owner).await?.try_get("is_locked")? {
            let built = self.build_locked(owner).await;
            let unlock = sqlx::query("select pg_advisory_unlock(hashtext($1))").bind(&self.name);
            unlock.execute(&mut *owner).await?;
            built?;
        }
        Ok(())
    }

    async fn build_locked(&self, owner: &mut PgConnection) -> Result<(), sqlx::Error> {
        let state = sqlx::query("select indisvalid from pg_index where indexrelid = to_regclass($1)");
        match state.bind(&self.name).fetch_optional(&mut *owner).await? {
            Some(row) if row.try_get("indisvalid")? => return Ok(()),
            Some(_) => {
                let drop = format!("drop index concurrently if exists {}", self.name);
                owner.execute(AssertSqlSafe(drop)).await?;
            }
            None => {}
        }
        let started = std::time::Instant::now();
        tracing::info!(model = self.model_key, "building the vector index");
        let create = format!(
            "create index concurrently if not exists {name} on memory_vectors
             using hnsw ((embedding::halfvec({dimension})) halfvec_cosine_ops) where model = {model}",
            name = self.name,
            dimension = self.dimension,
            model = literal(&self.model_key),
        );
        owner.execute(AssertSqlSafe(create)).await?;
        tracing::info!(model = self.model_key, elapsed_s = started.elapsed().as_secs(), "built the vector index");
        Ok(())
    }
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
