//! What is done for all users: moving to another embedding model, and the index of vectors.
//!
//! Such work sees who there is and which ids they have, and then acts as each user.

use sqlx::Row as _;

use super::{
    MemoryEngine, MemoryError,
    engine::{digest, in_time},
    indexed::vector_text,
    store::{self, Change, NewVector},
};
use crate::{
    identity::UserId,
    postgres::{Database, DatabaseError},
};

/// Memories that are embedded at once.
const BATCH: usize = 256;

/// The memories after ($2, $3) that can be found and have no vector of the model, and whose they are.
const MISSING: &str = "
    select user_id, id from memories
    where superseded_by is null and (user_id, id) > ($2, $3)
          and not exists (select from memory_vectors vectors
                          where vectors.user_id = memories.user_id and vectors.model = $1
                                and vectors.memory_id = memories.id)
    order by user_id, id limit $4";

/// How many vectors of the model are missing.
const COUNT_MISSING: &str = "
    select count(*) as missing from memories
    where superseded_by is null
          and not exists (select from memory_vectors vectors
                          where vectors.user_id = memories.user_id and vectors.model = $1
                                and vectors.memory_id = memories.id)";

/// How far a move to another model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reembedded {
    /// Memories that have been looked at.
    pub done: u64,
    /// Memories that had no vector of the model when it began.
    pub missing: u64,
}

impl MemoryEngine {
    /// Gives every memory a vector of this engine's model that has none. Searches and writes go on meanwhile, and those of
    /// another model find what they found before. It can be broken off at any time and goes on where it stopped.
    ///
    /// # Errors
    /// The embedder or the database failed.
    pub async fn reembed(&self, progress: &(dyn Fn(Reembedded) + Sync)) -> Result<Reembedded, MemoryError> {
        let mut at = Reembedded { done: 0, missing: in_time(self.count_missing()).await? };
        let (mut user, mut id) = (String::new(), String::new());
        progress(at);
        loop {
            let missing = in_time(self.missing(&user, &id)).await?;
            let Some(last) = missing.last() else { return Ok(at) };
            (user, id) = last.clone();
            for of_user in missing.chunk_by(|(user, _), (next, _)| user == next) {
                let ids: Vec<&str> = of_user.iter().map(|(_, id)| id.as_str()).collect();
                if let Some(user) = of_user.first().and_then(|(user, _)| UserId::parse("user_id", user).ok()) {
                    self.embed_missing(&user, &ids).await?;
                }
                at.done += ids.len() as u64;
                progress(at);
            }
        }
    }

    async fn count_missing(&self) -> Result<u64, sqlx::Error> {
        let mut transaction = self.maintenance.begin_for_nobody().await?;
        let query = transaction.query(COUNT_MISSING).bind(&self.model);
        let missing: i64 = query.fetch_one(&mut *transaction).await?.try_get("missing")?;
        transaction.commit().await?;
        Ok(u64::try_from(missing).unwrap_or_default())
    }

    async fn missing(&self, user: &str, id: &str) -> Result<Vec<(String, String)>, sqlx::Error> {
        let mut transaction = self.maintenance.begin_for_nobody().await?;
        let query = transaction.query(MISSING).bind(&self.model).bind(user).bind(id).bind(store::sql_int(BATCH));
        let rows = query.fetch_all(&mut *transaction).await?;
        transaction.commit().await?;
        rows.iter().map(|row| Ok((row.try_get("user_id")?, row.try_get("id")?))).collect()
    }

    /// Embeds some memories of a user, unless they have changed or gone meanwhile.
    async fn embed_missing(&self, user: &UserId, ids: &[&str]) -> Result<(), MemoryError> {
        let texts = in_time(async {
            let mut transaction = self.service.begin(user).await?;
            let texts = store::texts(&mut transaction, user, ids).await?;
            transaction.commit().await?;
            Ok(texts)
        });
        let texts: Vec<(String, String)> =
            texts.await?.into_iter().map(|text| (text.id.clone(), text.of_vector())).collect();
        let embedded: Vec<&str> = texts.iter().map(|(_, text)| text.as_str()).collect();
        let vectors = self.embed(&embedded).await?;
        in_time(async {
            let mut change = Change::begin(&self.service, &self.writers, user).await?;
            let now = store::texts(change.transaction(), user, ids).await?;
            let still: Vec<NewVector<'_>> = texts
                .iter()
                .zip(&vectors)
                .filter(|((id, text), _)| now.iter().any(|now| now.id == *id && now.of_vector() == *text))
                .map(|((id, text), vector)| NewVector { id, digest: digest(text), embedding: Some(vector) })
                .collect();
            change.upsert_vectors(&still, &self.model).await?;
            change.commit().await
        })
        .await
    }

    /// Forgets the vectors of all other models, and says how many there were.
    ///
    /// # Errors
    /// The database failed.
    pub async fn forget_other_models(&self) -> Result<u64, MemoryError> {
        let users = in_time(async {
            let mut transaction = self.maintenance.begin_for_nobody().await?;
            let query = transaction.query("select distinct user_id from memory_vectors where model <> $1");
            let rows = query.bind(&self.model).fetch_all(&mut *transaction).await?;
            transaction.commit().await?;
            store::column::<String>(&rows, "user_id")
        });
        let mut forgotten = 0;
        for user in users.await?.iter().filter_map(|user| UserId::parse("user_id", user).ok()) {
            forgotten += in_time(async {
                let mut transaction = self.service.begin(&user).await?;
                let query = transaction.query("delete from memory_vectors where user_id = $1 and model <> $2");
                let deleted = query.bind(user.as_str()).bind(&self.model).execute(&mut *transaction).await?;
                transaction.commit().await?;
                Ok(deleted.rows_affected())
            })
            .await?;
        }
        Ok(forgotten)
    }

    /// Builds the index of vectors, as the owner of the tables, if there is a user for whom it is worth it. This takes
    /// minutes for a million vectors, and nobody waits for it.
    ///
    /// # Errors
    /// The database failed, or the owner's login is not known.
    pub async fn index_vectors(&self, database: &Database) -> Result<(), DatabaseError> {
        if self.nearest.is_wanted(&self.maintenance).await? {
            let mut owner = database.connect_owner().await?;
            self.nearest.build(&mut owner).await?;
        }
        Ok(())
    }
}

impl store::Text {
    /// What its vector is of.
    fn of_vector(&self) -> String {
        vector_text(&self.title, &self.section, &self.content)
    }
}
