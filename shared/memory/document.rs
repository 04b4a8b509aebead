//! Documents: cut into chunks, embedded where they are new, and written in place of what was there.

use std::collections::HashMap;

use sha2::{Digest as _, Sha256};

use super::{
    MemoryEngine, MemoryError, NewDocument,
    engine::{BULK_TIMEOUT, digest, within, within_timeout},
    index_input::vector_text,
    splitter::{self, TextChunk},
    store::{self, NewMemoryRow, NewVector},
};
use crate::identity::UserId;

/// What kind of source a chunk is.
const DOCUMENT: &str = "document";

impl MemoryEngine {
    /// Keeps a document as chunks, in place of what was kept of it before, and says how many there are. Chunks that are the
    /// same as before keep their ids and vectors.
    ///
    /// # Errors
    /// The embedder or the database failed.
    pub async fn ingest(&self, user: &UserId, document: NewDocument) -> Result<usize, MemoryError> {
        /// Most attempts where somebody else changes the same document meanwhile.
        const ATTEMPTS: usize = 3;
        // A long document takes a second, for which no other call is to wait.
        let split = tokio::task::spawn_blocking(move || (chunks_of(&document), document));
        let (mut chunks, document) = split.await.map_err(|_| MemoryError::Internal)?;
        let ids: Vec<String> = chunks.iter().map(|chunk| chunk.id.clone()).collect();
        for _ in 0..ATTEMPTS {
            self.embed_chunks(user, &document, &mut chunks).await?;
            let write = self.write_chunks(user, &document, &ids, &chunks);
            if within(BULK_TIMEOUT, write).await? {
                return Ok(chunks.len());
            }
        }
        Err(MemoryError::Timeout)
    }

    /// Gives a document's chunks their vectors, but for those that are kept already.
    async fn embed_chunks(
        &self,
        user: &UserId,
        document: &NewDocument,
        chunks: &mut [ChunkRow],
    ) -> Result<(), MemoryError> {
        let known = within_timeout(async {
            let mut transaction = self.service.begin(user).await?;
            let known = store::vector_digests(&mut transaction, user, &document.id, &self.model_key).await?;
            transaction.commit().await?;
            Ok(known)
        });
        let known = known.await?;
        let is_new = |chunk: &&mut ChunkRow| {
            chunk.vector.is_none() && known.get(&chunk.id).is_none_or(|known| *known != chunk.digest)
        };
        let mut new: Vec<&mut ChunkRow> = chunks.iter_mut().filter(is_new).collect();
        let texts: Vec<String> =
            new.iter().map(|chunk| vector_text(&document.title, &chunk.section, &chunk.text)).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        for (chunk, vector) in new.iter_mut().zip(self.embed(&texts).await?) {
            chunk.vector = Some(vector);
        }
        Ok(())
    }

    /// Writes a document and says whether it did: not where a vector that was there is so no more.
    async fn write_chunks(
        &self,
        user: &UserId,
        document: &NewDocument,
        ids: &[String],
        chunks: &[ChunkRow],
    ) -> Result<bool, sqlx::Error> {
        let rows: Vec<NewMemoryRow<'_>> = chunks
            .iter()
            .enumerate()
            .map(|(place, chunk)| NewMemoryRow {
                id: &chunk.id,
                content: &chunk.text,
                source_type: DOCUMENT,
                tags: &document.tags,
                metadata: &document.metadata,
                created_at: None,
                location: Some((&chunk.section, place)),
                vector: NewVector { id: &chunk.id, digest: chunk.digest, embedding: chunk.vector.as_deref() },
            })
            .collect();
        let mut change = self.begin_bulk(user).await?;
        let known: Vec<&str> = ids.iter().map(String::as_str).collect();
        change.replace_document(document, &known).await?;
        change.upsert(&rows, &document.id, &self.model_key).await?;
        if !change.ids_without_vector(ids, &self.model_key).await?.is_empty() {
            return Ok(false);
        }
        change.commit().await?;
        Ok(true)
    }
}

/// A chunk on its way into the store.
struct ChunkRow {
    id: String,
    section: String,
    text: String,
    /// Of the text that its vector is of.
    digest: [u8; 32],
    /// `None` = the one that is kept already.
    vector: Option<Vec<f32>>,
}

/// A document in chunks that have no vectors yet.
fn chunks_of(document: &NewDocument) -> Vec<ChunkRow> {
    let chunks = splitter::split(&document.content);
    let ids = chunk_ids(&document.id, &chunks);
    let row = |(chunk, id): (TextChunk<'_>, String)| ChunkRow {
        id,
        digest: digest(&vector_text(&document.title, &chunk.section, chunk.text)),
        text: chunk.text.to_owned(),
        section: chunk.section,
        vector: None,
    };
    chunks.into_iter().zip(ids).map(row).collect()
}

/// Ids of a document's chunks: the same for the same text in the same document, wherever it stands, so that what did not
/// change keeps its id and its vector.
fn chunk_ids(document: &str, chunks: &[TextChunk<'_>]) -> Vec<String> {
    let mut seen: HashMap<&str, u32> = HashMap::new();
    let mut ids = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        let repeat = seen.entry(chunk.text).or_default();
        *repeat += 1;
        let mut hash = Sha256::new();
        for part in [document, chunk.text, &repeat.to_string()] {
            hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            hash.update(part);
        }
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.finalize()[..16]);
        // Version 8 is for ids of one's own making (RFC 9562).
        ids.push(uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string());
    }
    ids
}
