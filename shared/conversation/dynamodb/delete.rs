use std::{collections::HashSet, time::Duration};

use aws_sdk_dynamodb::types::{DeleteRequest, WriteRequest};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use tokio::time::sleep;
use uuid::Uuid;

use super::{
    DELETE_TIMEOUT, DynamoConversations,
    attributes::{LEASE_TOKEN, SESSION, TURNS},
    item::{Item, ItemExt as _, set, text},
    keys::{ITEM_ID, Key, request_owner, session_owner, stream_member, turn_prefix},
    lease::deletion_lease,
    table::{PageCursor, Query, Table, key_attributes, store_error},
    usage::remove_streams,
    write::{TransactOutcome, Write, backoff, is_transient},
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
const PAUSE: Duration = Duration::from_millis(50);

impl DynamoConversations {
    pub(super) async fn delete_selected(&self, user: &UserId, sessions: &SessionSelection) -> Result<u32> {
        match sessions {
            SessionSelection::All => self.delete_user(user).await,
            SessionSelection::Listed(sessions) => {
                let mut seen = HashSet::new();
                let sessions: Vec<_> = sessions.iter().filter(|session| seen.insert(session.as_str())).collect();
                let deletions: Vec<_> = sessions.iter().map(|session| self.delete_session(user, session)).collect();
                let deleted = stream::iter(deletions).buffer_unordered(CONCURRENT_SESSIONS);
                deleted.try_fold(0, |count, was_there| async move { Ok(count + u32::from(was_there)) }).await
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
                break;
            }
        }
        Ok(count)
    }

    /// Holds the session's lease, so that no run starts, until the transaction that deletes the session's item.
    async fn delete_session(&self, user: &UserId, session: &SessionId) -> Result<bool> {
        let (head, held) = (Key::session(user, session), Key::lease(user, session));
        for pass in 1..=PASSES {
            let lease_token = Uuid::now_v7();
            let lease = deletion_lease(lease_token, Timestamp::now(), DELETE_TIMEOUT);
            self.table.write(Write::put(held.clone(), lease)).await?;
            self.delete_runs(user, session).await?;
            let turns = self.table.get(head.clone()).await?.and_then(|mut head| head.remove(TURNS));
            let owned = format!("part/{}/", session_owner(session));
            // First, so that no further result is recorded.
            self.table.write(Write::delete(Key::pending(user, session))).await?;
            for prefix in [turn_prefix(session), owned, format!("result/{session}/")] {
                self.table.delete_prefix(user, &prefix).await?;
            }
            let was_there = turns.is_some();
            let free = Write::delete(held.clone()).condition("holder = :holder").bind(":holder", text(lease_token));
            let gone = match turns {
                Some(turns) => Write::delete(head.clone()).condition("turns = :turns").bind(":turns", turns),
                None => Write::check(head.clone()).condition("attribute_not_exists(turns)"),
            };
            // A failed condition: the lease expired and a run started, or a run without the lease has ended here.
            let last = vec![free, gone, Write::delete(Key::pending(user, session))];
            if let TransactOutcome::Committed = self.table.transact(last).await? {
                return Ok(was_there);
            }
            backoff(pass).await;
        }
        Err(StoreError::Timeout)
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
        while !left.is_empty() {
            let batch = left.split_off(left.len().saturating_sub(MAX_BATCH));
            let request = self.client.batch_write_item().request_items(&self.name, batch.clone());
            let unwritten: Vec<_> = match Box::pin(request.send()).await {
                Ok(answer) => answer.unprocessed_items.into_iter().flatten().flat_map(|(_, writes)| writes).collect(),
                Err(error) if is_transient(&error) => batch,
                Err(error) => return Err(store_error(error)),
            };
            if !unwritten.is_empty() {
                sleep(PAUSE).await;
                left.extend(unwritten);
            }
        }
        Ok(())
    }
}
