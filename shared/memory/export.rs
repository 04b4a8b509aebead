use std::{collections::HashSet, sync::Arc};

use async_stream::try_stream;
use futures_util::Stream;

use super::{
    ExportedMemory, Filter, MemoryEngine, MemoryError, MemoryPage, PageToken,
    store::{self, HistoryPart},
    timeouts::with_timeout,
};
use crate::identity::UserId;

const PAGE_SIZE: usize = 200;

impl MemoryEngine {
    /// Newest first. A long history comes in several parts, each with its memory. Each page is its own transaction.
    pub fn export(
        self: Arc<Self>,
        user: UserId,
    ) -> impl Stream<Item = Result<ExportedMemory, MemoryError>> + Send + 'static {
        try_stream! {
            let mut after = None;
            loop {
                let (page, with_history) = self.export_page(&user, after.as_ref()).await?;
                for memory in page.memories {
                    if !with_history.contains(&memory.id) {
                        yield ExportedMemory { memory, history: Vec::new() };
                        continue;
                    }
                    let mut version = Some(0);
                    while let Some(after_version) = version {
                        let part = self.export_history(&user, &memory.id, after_version).await?;
                        version = part.next_after;
                        yield ExportedMemory { memory: memory.clone(), history: part.versions };
                    }
                }
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
        }
    }

    async fn export_page(
        &self,
        user: &UserId,
        after: Option<&PageToken>,
    ) -> Result<(MemoryPage, HashSet<String>), MemoryError> {
        with_timeout(async {
            let mut transaction = self.reader.begin(user).await?;
            let page = store::page(&mut transaction, user, &Filter::default(), PAGE_SIZE, after).await?;
            let ids: Vec<&str> = page.memories.iter().map(|memory| memory.id.as_str()).collect();
            let with_history = store::ids_with_history(&mut transaction, user, &ids).await?;
            transaction.commit().await?;
            Ok((page, with_history))
        })
        .await
    }

    async fn export_history(&self, user: &UserId, id: &str, after_version: i32) -> Result<HistoryPart, MemoryError> {
        with_timeout(async {
            let mut transaction = self.reader.begin(user).await?;
            let part = store::history(&mut transaction, user, id, after_version).await?;
            transaction.commit().await?;
            Ok(part)
        })
        .await
    }
}
