use std::collections::HashMap;

use sha2::{Digest as _, Sha256};

use super::{
    EmbeddingBudget, MemoryEngine, MemoryError, NewDocument,
    budget::{MAX_DOCUMENT_CHUNKS, MAX_LABEL_BYTES, RequestTerms},
    digest::digest,
    index_input::{IndexInput, vector_text},
    splitter::{self, TextChunk},
    store::{self, NewMemoryRow, NewVector},
    timeouts::{with_bulk_timeout, with_timeout},
};
use crate::{
    error::{InvalidArgument, Problem},
    identity::UserId,
};

const DOCUMENT_SOURCE_TYPE: &str = "document";

impl MemoryEngine {
    /// Replaces the former version, and returns the number of chunks. Unchanged chunks keep their ids and vectors.
    pub async fn ingest(
        &self,
        user: &UserId,
        document: NewDocument,
        budget: EmbeddingBudget,
    ) -> Result<usize, MemoryError> {
        /// An attempt fails where another writer changes the same document meanwhile.
        const ATTEMPTS: usize = 3;
        let split = tokio::task::spawn_blocking(move || chunk_rows(&document).map(|chunks| (chunks, document)));
        let (mut chunks, document) = split.await.map_err(|_| MemoryError::Internal)??;
        self.wait_for_writers(user).await?;
        for _ in 0..ATTEMPTS {
            self.embed_chunks(user, &document, &mut chunks, budget).await?;
            if with_bulk_timeout(self.write_chunks(user, &document, &chunks)).await? {
                return Ok(chunks.len());
            }
        }
        Err(MemoryError::Contended)
    }

    async fn embed_chunks(
        &self,
        user: &UserId,
        document: &NewDocument,
        chunks: &mut [ChunkRow],
        budget: EmbeddingBudget,
    ) -> Result<(), MemoryError> {
        let new = with_timeout(async {
            let mut transaction = self.service.begin(user).await?;
            let stored = store::vector_digests(&mut transaction, user, &document.id, &self.model_key).await?;
            let is_new = |chunk: &&mut ChunkRow| {
                chunk.vector.is_none() && stored.get(&chunk.id).is_none_or(|digest| *digest != chunk.digest)
            };
            let new: Vec<&mut ChunkRow> = chunks.iter_mut().filter(is_new).collect();
            let texts = new.iter().map(|chunk| vector_text(&document.title, &chunk.section, &chunk.text));
            let texts: Vec<String> = texts.collect();
            let reservation = budget.reserve(&mut transaction, user, texts.iter().map(String::as_str)).await?;
            transaction.commit().await?;
            Ok((new, texts, reservation))
        });
        let (mut new, texts, reservation) = new.await?;
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        for (chunk, vector) in new.iter_mut().zip(self.embed_reserved(user, &texts, reservation).await?) {
            chunk.vector = Some(vector);
        }
        Ok(())
    }

    /// False if a stored vector that the write relies on is gone.
    async fn write_chunks(
        &self,
        user: &UserId,
        document: &NewDocument,
        chunks: &[ChunkRow],
    ) -> Result<bool, MemoryError> {
        let rows: Vec<NewMemoryRow<'_>> = chunks
            .iter()
            .enumerate()
            .map(|(index, chunk)| NewMemoryRow {
                id: &chunk.id,
                content: &chunk.text,
                source_type: DOCUMENT_SOURCE_TYPE,
                tags: &document.tags,
                metadata: &document.metadata,
                created_at: None,
                location: Some((&chunk.section, index)),
                vector: NewVector { id: &chunk.id, digest: chunk.digest, embedding: chunk.vector.as_deref() },
            })
            .collect();
        let ids: Vec<&str> = chunks.iter().map(|chunk| chunk.id.as_str()).collect();
        let mut transaction = self.begin_embedded(user).await?;
        transaction.replace_document(document, &ids).await?;
        transaction.upsert(&rows, &document.id, &self.model_key).await?;
        if !transaction.ids_without_vector(&ids, &self.model_key).await?.is_empty() {
            return Ok(false);
        }
        transaction.commit().await?;
        Ok(true)
    }
}

struct ChunkRow {
    id: String,
    section: String,
    text: String,
    digest: [u8; 32],
    /// `None`: not embedded yet, or stored already.
    vector: Option<Vec<f32>>,
}

/// Refuses a document that is beyond the budgets.
fn chunk_rows(document: &NewDocument) -> Result<Vec<ChunkRow>, InvalidArgument> {
    let chunks = splitter::split(&document.content);
    check_chunks(document, &chunks)?;
    let ids = chunk_ids(&document.id, &chunks);
    let row = |(chunk, id): (TextChunk<'_>, String)| ChunkRow {
        id,
        digest: digest(&vector_text(&document.title, &chunk.section, chunk.text)),
        text: chunk.text.to_owned(),
        section: chunk.section,
        vector: None,
    };
    Ok(chunks.into_iter().zip(ids).map(row).collect())
}

fn check_chunks(document: &NewDocument, chunks: &[TextChunk<'_>]) -> Result<(), InvalidArgument> {
    if chunks.len() > MAX_DOCUMENT_CHUNKS {
        let problem = Problem::TooManyChunks { found: chunks.len(), limit: MAX_DOCUMENT_CHUNKS };
        return Err(InvalidArgument::new("content", problem));
    }
    let metadata = document.metadata.iter().map(|(key, value)| key.len() + value.len());
    let found_bytes = chunks.len() * document.tags.iter().map(String::len).chain(metadata).sum::<usize>();
    if found_bytes > MAX_LABEL_BYTES {
        let problem = Problem::TooLongForChunks { chunks: chunks.len(), found_bytes, limit_bytes: MAX_LABEL_BYTES };
        return Err(InvalidArgument::new("metadata", problem));
    }
    let mut terms = RequestTerms::new(chunks.iter().map(|chunk| chunk.text.len()).sum());
    for chunk in chunks {
        let input = IndexInput {
            content: chunk.text,
            title: &document.title,
            section: &chunk.section,
            ..IndexInput::default()
        };
        terms.add("content", input.terms().frequencies.len(), chunk.text.len())?;
    }
    Ok(())
}

/// Ids depend on the document and the text, not on the position, so that an unchanged chunk keeps its id and vector.
fn chunk_ids(document_id: &str, chunks: &[TextChunk<'_>]) -> Vec<String> {
    let mut repeats: HashMap<&str, u32> = HashMap::new();
    let mut ids = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        let repeat = repeats.entry(chunk.text).or_default();
        *repeat += 1;
        let mut hash = Sha256::new();
        for part in [document_id, chunk.text, &repeat.to_string()] {
            hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            hash.update(part);
        }
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.finalize()[..16]);
        // Version 8, for custom ids (RFC 9562, section 5.8).
        ids.push(uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string());
    }
    ids
}
