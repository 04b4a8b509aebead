use sqlx::Row as _;

use super::{MemoryTransaction, column};
use crate::memory::NewDocument;

const UPSERT: &str = "
    insert into documents (user_id, id, title, url) values ($1, $2, $3, $4)
    on conflict (user_id, id) do update set title = excluded.title, url = excluded.url, updated_at = now()";

impl MemoryTransaction<'_> {
    /// Deletes the document's chunks that are not among `chunk_ids`.
    pub(crate) async fn replace_document(
        &mut self,
        document: &NewDocument,
        chunk_ids: &[&str],
    ) -> Result<(), sqlx::Error> {
        let query = self.transaction.query("select title from documents where user_id = $1 and id = $2");
        let query = query.bind(self.user.as_str()).bind(&document.id);
        let before = query.fetch_optional(&mut *self.transaction).await?;
        let title: Option<String> = before.map(|row| row.try_get("title")).transpose()?;
        if title.is_some_and(|title| title != document.title) {
            // The title is in the postings of every chunk.
            self.touched.extend(chunk_ids.iter().map(|id| (*id).to_owned()));
        }
        let query = self.transaction.query(UPSERT).bind(self.user.as_str()).bind(&document.id);
        query.bind(&document.title).bind(&document.url).execute(&mut *self.transaction).await?;
        let query = self
            .transaction
            .query("delete from memories where user_id = $1 and document_id = $2 and id <> all($3) returning id");
        let query = query.bind(self.user.as_str()).bind(&document.id).bind(chunk_ids);
        let deleted: Vec<String> = column(&query.fetch_all(&mut *self.transaction).await?, "id")?;
        self.touched.extend(deleted);
        Ok(())
    }
}
