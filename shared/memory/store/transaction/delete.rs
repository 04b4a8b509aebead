use std::collections::HashSet;

use super::{
    super::{
        bind_filter,
        inverted_index::{self, FollowingTurns},
        matches_filter,
    },
    MemoryTransaction, column, sql_int,
};
use crate::memory::Selection;

/// Memories that a transaction deletes. Bounds the turns after them that it indexes again.
pub(crate) const DELETE_BATCH: usize = 500;
/// Memories after which long turns are indexed again in any case. After more, those with a fraction: others are hardly possible.
const MAX_WITH_ALL_FOLLOWING: usize = 20;

const IDS_BY_FILTER: &str = concat!("select id from memories where ", matches_filter!(), " order by id limit $7");
const DELETE_EMPTY_DOCUMENTS: &str = include_str!("../sql/delete_empty_documents.sql");

/// The foreign keys of vectors and histories cascade.
const ERASE_MEMORIES: &str = "delete from memories where user_id = $1";
const ERASE_OTHERS: [&str; 4] = [
    "delete from documents where user_id = $1",
    "delete from memory_postings where user_id = $1",
    "delete from memory_terms where user_id = $1",
    "delete from memory_users where user_id = $1",
];

impl MemoryTransaction<'_> {
    /// At most [`DELETE_BATCH`] memories, whose number it returns: fewer if none is left. Documents go with their last chunk.
    pub(crate) async fn delete(&mut self, selection: &Selection) -> Result<usize, sqlx::Error> {
        let ids = self.selected_ids(selection).await?;
        let turns = if ids.len() <= MAX_WITH_ALL_FOLLOWING { FollowingTurns::All } else { FollowingTurns::Indexed };
        let following = inverted_index::following_turns(&mut self.transaction, self.user, &ids, turns).await?;
        let query = self
            .transaction
            .query("delete from memories where user_id = $1 and id = any($2) returning document_id")
            .bind(self.user.as_str())
            .bind(&ids);
        let mut documents: Vec<String> = column(&query.fetch_all(&mut *self.transaction).await?, "document_id")?;
        if let Selection::Document(document) = selection {
            documents.push(document.clone());
        }
        Box::pin(inverted_index::remove(&mut self.transaction, self.user, &ids)).await?;
        let deleted: HashSet<&String> = ids.iter().collect();
        self.touched.extend(following.into_iter().filter(|id| !deleted.contains(id)));
        self.delete_empty_documents(documents).await?;
        Ok(ids.len())
    }

    async fn selected_ids(&mut self, selection: &Selection) -> Result<Vec<String>, sqlx::Error> {
        let (transaction, user) = (&self.transaction, self.user.as_str());
        let query = match selection {
            Selection::Ids(ids) => {
                let query = "select id from memories where user_id = $1 and id = any($2) order by id limit $3";
                transaction.query(query).bind(user).bind(ids)
            }
            Selection::Document(document) => {
                let query = "select id from memories where user_id = $1 and document_id = $2 order by id limit $3";
                transaction.query(query).bind(user).bind(document)
            }
            Selection::Matching(filter) => bind_filter(transaction.query(IDS_BY_FILTER), self.user, filter),
        };
        let query = query.bind(sql_int(DELETE_BATCH));
        column(&query.fetch_all(&mut *self.transaction).await?, "id")
    }

    async fn delete_empty_documents(&mut self, mut ids: Vec<String>) -> Result<(), sqlx::Error> {
        ids.sort_unstable();
        ids.dedup();
        ids.retain(|id| !id.is_empty());
        if !ids.is_empty() {
            let query = self.transaction.query(DELETE_EMPTY_DOCUMENTS).bind(self.user.as_str()).bind(ids);
            query.execute(&mut *self.transaction).await?;
        }
        Ok(())
    }

    /// Includes the row that serializes writers. Returns the number of memories.
    pub(crate) async fn erase_user(&mut self) -> Result<usize, sqlx::Error> {
        let query = self.transaction.query(ERASE_MEMORIES).bind(self.user.as_str());
        let erased = query.execute(&mut *self.transaction).await?.rows_affected();
        for statement in ERASE_OTHERS {
            let query = self.transaction.query(statement).bind(self.user.as_str());
            query.execute(&mut *self.transaction).await?;
        }
        Ok(usize::try_from(erased).unwrap_or(usize::MAX))
    }
}
