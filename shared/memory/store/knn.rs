//! Near vectors by an HNSW index, for users who have so many memories that comparing all of them takes too long.
//!
//! One index serves all such users of a model, as `halfvec`, which halves it. The iterative scan goes on until enough of the
//! user's own vectors are found; these are then scored by the full vectors.

use std::time::Duration;

use sha2::{Digest as _, Sha256};
use sqlx::{AssertSqlSafe, Executor as _, PgConnection, Row as _};

use crate::{
    embedding::EmbeddingModel,
    identity::UserId,
    postgres::{RolePool, RoleTransaction},
};

use super::{model_key, sql_int};

/// Vectors that are taken from the index for one search, at least, and for each memory that is to be given.
const CANDIDATES: usize = 200;
const CANDIDATES_PER_HIT: usize = 10;
/// The same where the hits above a floor are counted: the most that pgvector allows for `hnsw.ef_search`.
const MOST_CANDIDATES: usize = 1_000;
/// Memory that a search of the index may take, as a multiple of `work_mem`, which is 4 MB by default: with
/// that alone it may end long before `hnsw.max_scan_tuples` counts.
const MEMORY_MULTIPLIER: &str = "16";

/// The index of a model's vectors.
#[derive(Debug, Clone)]
pub(in crate::memory) struct VectorIndex {
    model: String,
    dimension: usize,
    name: String,
    /// How many memories a user has for whom it is worth it.
    threshold: usize,
}

/// How many candidates a search for so many memories above this floor takes.
pub(in crate::memory) fn candidate_count(limit: usize, floor: f32) -> usize {
    let wanted = if floor > 0.0 { MOST_CANDIDATES } else { CANDIDATES.max(CANDIDATES_PER_HIT * limit) };
    wanted.min(MOST_CANDIDATES)
}

/// Sets how far the index is searched in this transaction: through no more vectors, whosever they are, than an exact search
/// would compare, which is what follows where too few of the user's are among them.
pub(super) async fn set_scan_limits(
    transaction: &mut RoleTransaction,
    candidates: usize,
    memories: u64,
) -> Result<(), sqlx::Error> {
    let query = transaction
        .query(
            "select set_config('hnsw.iterative_scan', 'relaxed_order', true), set_config('hnsw.ef_search', $1, true),
                    set_config('hnsw.max_scan_tuples', $2, true), set_config('hnsw.scan_mem_multiplier', $3, true),
                    set_config('enable_sort', 'off', true)",
        )
        .bind(candidates.to_string())
        .bind(memories.clamp(1, i32::MAX.unsigned_abs().into()).to_string())
        .bind(MEMORY_MULTIPLIER);
    query.execute(&mut **transaction).await?;
    Ok(())
}

/// Takes back what makes the planner prefer the index.
pub(super) async fn reset_planner(transaction: &mut RoleTransaction) -> Result<(), sqlx::Error> {
    transaction.query("select set_config('enable_sort', 'on', true)").execute(&mut **transaction).await?;
    Ok(())
}

impl VectorIndex {
    pub(in crate::memory) fn new(model: &EmbeddingModel, threshold: usize) -> Self {
        let model_key = model_key(model);
        let hash: String = Sha256::digest(&model_key).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Self { model: model_key, dimension: model.dimension, name: format!("memory_vectors_{hash}"), threshold }
    }

    /// The nearest memories, as a part of a statement with the parameters of a search. The model is written out, because the
    /// planner has to see that it is the index's.
    pub(super) fn candidates_cte(&self) -> String {
        format!(
            "nearest as materialized (
                 select memory_id as id from memory_vectors
                 where user_id = $1 and model = {model}
                 order by embedding::halfvec({dimension}) <=> $13::real[]::halfvec({dimension}) limit $22
             )",
            model = literal(&self.model),
            dimension = self.dimension,
        )
    }

    /// Whether the index is worth it for a user with so many memories.
    pub(in crate::memory) fn pays_off_for(&self, memories: u64) -> bool {
        memories >= self.threshold as u64
    }

    /// How many memories a user has, if they are so many that the index is worth it for so many candidates, and it is there.
    pub(in crate::memory) async fn usable_size(
        &self,
        transaction: &mut RoleTransaction,
        user: &UserId,
        candidates: usize,
    ) -> Result<Option<u64>, sqlx::Error> {
        let query = transaction
            .query(
                "select memories from memory_users
                 where user_id = $1 and memories >= $2
                       -- Among many of others it would look at as many vectors, or near to it, as the user has. Each
                       -- costs more there than an exact comparison.
                       and exists (select from pg_index join pg_class on pg_class.oid = indexrelid
                                   where indexrelid = to_regclass($3) and indisvalid
                                         and 2 * $5::float8 * reltuples <= memories::float8 * memories)
                       -- As many as are ever taken from it: while a store moves to another model, few may be there yet.
                       and (select count(*) from (select from memory_vectors
                                                  where user_id = $1 and model = $4 limit 1000) as counted) = 1000",
            )
            .bind(user.as_str())
            .bind(sql_int(self.threshold))
            .bind(&self.name)
            .bind(&self.model)
            .bind(f64::from(sql_int(candidates)));
        let row = query.fetch_optional(&mut **transaction).await?;
        let memories = row.map(|row| row.try_get::<i64, _>("memories")).transpose()?;
        Ok(memories.and_then(|memories| u64::try_from(memories).ok()))
    }

    /// Whether any user has so many memories.
    pub(in crate::memory) async fn is_needed(&self, maintenance: &RolePool) -> Result<bool, sqlx::Error> {
        let mut transaction = maintenance.begin_without_user().await?;
        let query = transaction.query("select from memory_users where memories >= $1 limit 1");
        let row = query.bind(sql_int(self.threshold)).fetch_optional(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(row.is_some())
    }

    /// Builds the index, unless it is there or somebody else is building it, without holding up anyone.
    pub(in crate::memory) async fn build(&self, owner: &mut PgConnection) -> Result<(), sqlx::Error> {
        // Two builders would each take the other's unfinished index for one that was broken off. Whoever waited for the
        // lock in the database would hold up the other, who waits for all statements that are older.
        let lock = sqlx::query("select pg_try_advisory_lock(hashtext($1)) as is_free").bind(&self.name);
        if lock.fetch_one(&mut *owner).await?.try_get("is_free")? {
            let built = self.build_alone(owner).await;
            // The lock ends with the connection in any case.
            let unlock = sqlx::query("select pg_advisory_unlock(hashtext($1))").bind(&self.name);
            unlock.execute(&mut *owner).await?;
            built?;
        }
        Ok(())
    }

    async fn build_alone(&self, owner: &mut PgConnection) -> Result<(), sqlx::Error> {
        let state = sqlx::query("select indisvalid from pg_index where indexrelid = to_regclass($1)");
        match state.bind(&self.name).fetch_optional(&mut *owner).await? {
            Some(row) if row.try_get("indisvalid")? => return Ok(()),
            // What a build left behind that was broken off.
            Some(_) => {
                let drop = format!("drop index concurrently if exists {}", self.name);
                owner.execute(AssertSqlSafe(drop)).await?;
            }
            None => {}
        }
        let began = std::time::Instant::now();
        tracing::info!(model = self.model, "building the index of vectors");
        let create = format!(
            "create index concurrently if not exists {name} on memory_vectors
             using hnsw ((embedding::halfvec({dimension})) halfvec_cosine_ops) where model = {model}",
            name = self.name,
            dimension = self.dimension,
            model = literal(&self.model),
        );
        owner.execute(AssertSqlSafe(create)).await?;
        let elapsed: Duration = began.elapsed();
        tracing::info!(model = self.model, elapsed_s = elapsed.as_secs(), "the index of vectors is built");
        Ok(())
    }
}

/// A text as SQL writes it.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
