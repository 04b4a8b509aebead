use pgvector::Vector;
use sqlx::Row as _;

use super::{MemoryTransaction, NewVector, column, sql_int};

const DELETE_STALE: &str = include_str!("../sql/delete_stale_vectors.sql");
const INSERT: &str = include_str!("../sql/insert_vectors.sql");
const DELETE_OTHER_MODELS: &str = include_str!("../sql/delete_other_models.sql");
const COPY: &str = include_str!("../sql/copy_vectors.sql");
const IDS_WITHOUT_VECTOR: &str = include_str!("../sql/ids_without_vector.sql");

/// Bounds what a write does besides.
const COPY_BATCH: usize = 500;

impl MemoryTransaction<'_> {
    /// Copies vectors in half precision that are older than such copies. The row lock of the user keeps other writers
    /// away, and a trigger copies what they insert.
    pub(super) async fn copy_vectors(&mut self) -> Result<(), sqlx::Error> {
        let query = self.transaction.query(COPY).bind(self.user.as_str()).bind(sql_int(COPY_BATCH));
        let copied: i64 = query.fetch_one(&mut *self.transaction).await?.try_get("copied")?;
        if copied < i64::from(sql_int(COPY_BATCH)) {
            let query = self.transaction.query("update memory_users set has_half_vectors = true where user_id = $1");
            query.bind(self.user.as_str()).execute(&mut *self.transaction).await?;
        }
        Ok(())
    }

    /// Replaces vectors of former texts. Returns the ids whose vector is new.
    pub(crate) async fn upsert_vectors(
        &mut self,
        vectors: &[NewVector<'_>],
        model_key: &str,
    ) -> Result<Vec<String>, sqlx::Error> {
        let query = self
            .transaction
            .query(DELETE_STALE)
            .bind(self.user.as_str())
            .bind(vectors.iter().map(|vector| vector.id).collect::<Vec<_>>())
            .bind(vectors.iter().map(|vector| vector.digest.as_slice()).collect::<Vec<_>>());
        query.execute(&mut *self.transaction).await?;
        let (mut ids, mut digests, mut embeddings) = (Vec::new(), Vec::new(), Vec::new());
        for vector in vectors {
            if let Some(embedding) = vector.embedding {
                ids.push(vector.id);
                digests.push(vector.digest.as_slice());
                embeddings.push(Vector::from(embedding.to_vec()));
            }
        }
        let query = self.transaction.query(INSERT).bind(self.user.as_str()).bind(model_key);
        let rows = query.bind(ids).bind(digests).bind(embeddings).fetch_all(&mut *self.transaction).await?;
        column(&rows, "memory_id")
    }

    pub(crate) async fn delete_other_models(&mut self, model_key: &str) -> Result<u64, sqlx::Error> {
        let query = self.transaction.query(DELETE_OTHER_MODELS).bind(self.user.as_str()).bind(model_key);
        Ok(query.execute(&mut *self.transaction).await?.rows_affected())
    }

    /// Superseded memories need no vector.
    pub(crate) async fn ids_without_vector(
        &mut self,
        ids: &[&str],
        model_key: &str,
    ) -> Result<Vec<String>, sqlx::Error> {
        let query = self.transaction.query(IDS_WITHOUT_VECTOR).bind(self.user.as_str()).bind(ids).bind(model_key);
        column(&query.fetch_all(&mut *self.transaction).await?, "id")
    }
}
