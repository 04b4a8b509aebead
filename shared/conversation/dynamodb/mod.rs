//! Conversations in one DynamoDB table: items in `docs/reference/tables.md`, costs in `docs/how-to/dynamodb.md`.
//!
//! Times are those of the writing process, so its clock has to be roughly right. A change of several items is one
//! transaction; a failed condition returns the item that refused. The attribute `holder` is the lease token.
//!
//! Cancellation: a write may be applied although its call was dropped. Every write is conditional or idempotent.

mod access;
mod admit;
mod attributes;
mod delete;
mod extraction_jobs;
mod finish;
mod http;
mod item;
mod keys;
mod lease;
mod parts;
mod pending;
mod readers;
mod request;
mod run;
mod session;
mod stream;
mod table;
#[cfg(test)]
mod tests;
mod turns;
mod usage;
mod write;

use std::{sync::Arc, time::Duration};

pub use access::{DynamoAccess, DynamoSetupError};
pub use extraction_jobs::ExtractionJobs;
pub use keys::parse_turn_item;
pub use stream::{FinishedTurnItem, MalformedRecord, finished_turn, sequence_number};
use tokio::sync::Semaphore;

use self::{keys::Key, table::Table};
use super::{
    deadline::{StoreTimeouts, WithDeadlines},
    error::Result,
    pending::ToolResultOutcome,
    run::{
        AdmitOutcome, FrameChunk, FramePage, Lease, NewRun, Preemption, ReaderSignals, RunEnding, RunKey, RunSignals,
        RunSnapshot,
    },
    session::{History, Session, SessionCursor, SessionSelection, SessionUpdate, StoredTurn},
    store::{ConversationStore, impl_conversation_store},
    stored_turns::StoredTurns,
};
use crate::identity::{RequestId, SessionId, UserId};

/// Also how long a session is locked while it is deleted.
const DELETE_TIMEOUT: Duration = Duration::from_secs(60);
/// How much longer than its owner an item is stored, and how long one without an owner.
const EXPIRY_MARGIN: Duration = Duration::from_hours(24);

#[derive(Debug)]
pub struct DynamoConversations {
    table: Table,
    /// `None`: the function `remember` learns from the table's stream.
    extraction_jobs: Option<ExtractionJobs>,
    /// After this a resumed turn that has not ended counts as lost.
    max_turn_duration: Duration,
}

#[derive(Debug, Clone)]
pub struct DynamoTable {
    pub name: String,
    pub access: DynamoAccess,
    /// `None`: turns are delivered by the table's stream.
    pub extraction_jobs: Option<ExtractionJobs>,
}

impl DynamoConversations {
    /// Connects to nothing.
    #[must_use]
    pub fn with_deadlines(
        table: DynamoTable,
        max_turn_duration: Duration,
        admit_timeout: Duration,
    ) -> WithDeadlines<Self> {
        let timeouts = StoreTimeouts {
            admit: admit_timeout,
            // A function that is frozen after its answer leaves the revocation pending.
            late_admission: Duration::from_secs(10),
            short: Duration::from_secs(5),
            long: Duration::from_secs(20),
            finish: Duration::from_secs(20),
            delete: DELETE_TIMEOUT,
        };
        let DynamoTable { name, access, extraction_jobs } = table;
        let store = Self { table: Table::new(name, access), extraction_jobs, max_turn_duration };
        WithDeadlines::new(store, timeouts, Semaphore::MAX_PERMITS)
    }
}

impl_conversation_store! {
    DynamoConversations:

    async fn finish(&self, lease: &Lease, ending: &RunEnding) -> Result<()> {
        let Some(jobs) = &self.extraction_jobs else { return self.finish_run(lease, ending).await };
        let turn = jobs.prepare(&self.table, lease, ending).await;
        self.finish_run(lease, ending).await?;
        jobs.release(lease, turn).await;
        Ok(())
    }

    async fn warm_up(&self) {
        let absent = Key { user: "-".to_owned(), item: "-".to_owned() };
        let _connected = self.table.get(absent).await;
    }

    fn stored_turns(&self) -> Option<Arc<StoredTurns>> {
        self.extraction_jobs.as_ref().map(ExtractionJobs::stored_turns)
    }
}
