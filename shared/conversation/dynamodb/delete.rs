use std::collections::HashSet;

use aws_sdk_dynamodb::types::{DeleteRequest, WriteRequest};
use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    DELETE_TIMEOUT, DynamoConversations,
    attributes::{LEASE_TOKEN, SESSION, TURNS},
    item::{Item, ItemExt as _, set, text},
    keys::{ITEM_ID, Key, request_owner, session_owner, stream_member, turn_prefix},
    lease::deletion_lease,
    request::{ThrottleBackoff, retry_throttled},
    table::{PageCursor, Query, Table, key_attributes},
    usage::remove_streams,
    write::{TransactOutcome, Write, backoff},
};
use crate::{
    conversation::{
        error::{Result, StoreError},
        session::SessionSelection,
    },
    identity::{RequestId, SessionId, UserId},
};

/// DynamoDB's limit for `BatchWriteItem`.
const MAX_BATCH: usize = 25;
const CONCURRENT_SESSIONS: usize = 4;
const PASSES: u32 = 10;

impl DynamoConversations {
    pub(super) async fn delete_selected(&self, user: &UserId, sessions: &SessionSelection) -> Result<u32> {
        match sessions {
            SessionSelection::All => self.delete_user(user).await,
            SessionSelection::Listed(sessions) => {
                let mut seen = HashSet::new();
                let sessions: Vec<_> = sessions.iter().filter(|session| seen.insert(session.as_str())).collect();
                let deletions: Vec<_> = sessions.iter().map(|session| self.delete_session(user, session)).collect();
                // All of them, also after a failure: one that is dropped keeps its session's lease.
                let deleted: Vec<_> = stream::iter(deletions).buffer_unordered(CONCURRENT_SESSIONS).collect().await;
                deleted.into_iter().try_fold(0, |count, was_there| Ok(count + u32::from(was_there?)))
            }
        }
    }

    /// Runs go first and then store nothing more; a run may start between passes. Deletion must not reset quotas.
    async fn delete_user(&self, user: &UserId) -> Result<u32> {
        let mut count = 0;
        for _ in 0..PASSES {
            let had_no_runs = self.table.delete_prefix(user, "run/").await? == 0;
            let mut pages = PageCursor::new(Query::everything(user).project("item_id, turns").include_expired());
            let mut is_empty = true;
            while let Some(mut page) = self.table.next_page(&mut pages).await? {
                page.retain(|item| item.text(ITEM_ID).is_ok_and(|item| !item.starts_with("usage/")));
                is_empty &= page.is_empty();
                let heads = page.iter().filter(|item| is_session(item)).count();
                count += u32::try_from(heads).unwrap_or(u32::MAX);
                self.table.delete_all(user, page).await?;
            }
            if had_no_runs && is_empty {
                return Ok(count);
            }
        }
        Err(StoreError::DeletionIncomplete)
    }

    /// Returns whether there was a session.
    async fn delete_session(&self, user: &UserId, session: &SessionId) -> Result<bool> {
        for pass in 1..=PASSES {
            let lease_token = Uuid::now_v7();
            let deleted = self.delete_session_once(user, session, lease_token).await;
            if let Ok(Some(was_there)) = deleted {
                return Ok(was_there);
            }
            if deleted.is_err() || pass == PASSES {
                // A failure is ignored: the lease expires.
                let _freed = self.table.write(free_session(user, session, lease_token)).await;
            }
            deleted?;
            backoff(pass).await;
        }
        Err(StoreError::DeletionIncomplete)
    }

    /// Holds the session's lease, so that no run starts, until the transaction that deletes the session's item. `None`:
    /// the lease expired and a run started, or a run without the lease has ended here.
    async fn delete_session_once(&self, user: &UserId, session: &SessionId, lease_token: Uuid) -> Result<Option<bool>> {
        let head = Key::session(user, session);
        let lease = deletion_lease(lease_token, Timestamp::now(), DELETE_TIMEOUT);
        self.table.write(Write::put(Key::lease(user, session), lease)).await?;
        self.delete_runs(user, session).await?;
        let turns = self.table.get(head.clone()).await?.and_then(|mut head| head.remove(TURNS));
        let owned = format!("part/{}/", session_owner(session));
        // First, so that no further result is recorded.
        self.table.write(Write::delete(Key::pending(user, session))).await?;
        for prefix in [turn_prefix(session), owned, format!("result/{session}/")] {
            self.table.delete_prefix(user, &prefix).await?;
        }
        let was_there = turns.is_some();
        let gone = match turns {
            Some(turns) => Write::delete(head).condition("turns = :turns").bind(":turns", turns),
            None => Write::check(head).condition("attribute_not_exists(turns)"),
        };
        let last = vec![free_session(user, session, lease_token), gone, Write::delete(Key::pending(user, session))];
        Ok(match self.table.transact(last).await? {
            TransactOutcome::Committed => Some(was_there),
            TransactOutcome::ConditionsFailed(_) => None,
        })
    }

    /// Active runs lose their lease by it.
    async fn delete_runs(&self, user: &UserId, session: &SessionId) -> Result<()> {
        let runs = Query::prefix(user, "run/").project("item_id, session_id, holder");
        let mut runs = self.table.query_all(runs).await?;
        runs.retain(|run| run.text(SESSION).is_ok_and(|of| of == session.as_str()));
        let mut streams = Vec::new();
        for run in &runs {
            let request = run.text(ITEM_ID)?.trim_start_matches("run/");
            self.table.write(Write::delete(Key::run(user, request))).await?;
            if let (Ok(request), Ok(lease_token)) = (RequestId::parse(ITEM_ID, request), run.text(LEASE_TOKEN)?.parse())
            {
                streams.push(stream_member(lease_token, &request));
            }
            for prefix in [format!("chunk/{request}/"), format!("part/{}/", request_owner(request))] {
                self.table.delete_prefix(user, &prefix).await?;
            }
        }
        if !streams.is_empty() {
            self.table.write(remove_streams(user, set(streams), Timestamp::now())).await?;
        }
        Ok(())
    }
}

fn free_session(user: &UserId, session: &SessionId, lease_token: Uuid) -> Write {
    Write::delete(Key::lease(user, session)).condition("holder = :holder").bind(":holder", text(lease_token))
}

fn is_session(item: &Item) -> bool {
    item.contains_key(TURNS) && item.text(ITEM_ID).is_ok_and(|item| item.starts_with("session/"))
}

impl Table {
    async fn delete_prefix(&self, user: &UserId, prefix: &str) -> Result<usize> {
        let mut pages = PageCursor::new(Query::prefix(user, prefix).project("item_id").include_expired());
        let mut count = 0;
        while let Some(page) = self.next_page(&mut pages).await? {
            count += page.len();
            self.delete_all(user, page).await?;
        }
        Ok(count)
    }

    async fn delete_all(&self, user: &UserId, items: Vec<Item>) -> Result<()> {
        let mut left = Vec::with_capacity(items.len());
        for item in &items {
            let key =
                DeleteRequest::builder().set_key(Some(key_attributes(Key::new(user, item.text(ITEM_ID)?)))).build();
            let key = key.map_err(|error| StoreError::Dynamo(error.to_string()))?;
            left.push(WriteRequest::builder().delete_request(key).build());
        }
        let mut backoff = ThrottleBackoff::default();
        while !left.is_empty() {
            let batch = left.split_off(left.len().saturating_sub(MAX_BATCH));
            let requested = batch.len();
            let request = self.client.batch_write_item().request_items(&self.name, batch);
            let answer = Box::pin(retry_throttled(move || request.clone().send())).await?;
            let unwritten = answer.unprocessed_items.into_iter().flatten();
            let unwritten: Vec<_> = unwritten.flat_map(|(_, writes)| writes).collect();
            if !unwritten.is_empty() {
                backoff.wait(unwritten.len() < requested).await?;
                left.extend(unwritten);
            }
        }
        Ok(())
    }
}
