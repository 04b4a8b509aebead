//! Deleting conversations.

use std::{collections::HashSet, time::Duration};

use aws_sdk_dynamodb::types::{DeleteRequest, WriteRequest};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use tokio::time::sleep;
use uuid::Uuid;

use super::{
    DELETION, DynamoConversations,
    admit::remove_streams,
    item::{Item, ItemExt as _, set, text},
    keys::{ITEM_ID, Key, request_owner, session_owner, stream_member as stream_of, turn_prefix},
    lease::{LEASE_TOKEN, SESSION, deletion_lease},
    session::TURNS,
    table::{PageCursor, Query, Table, key_attributes, store_error},
    write::{TransactOutcome, Write, backoff, is_transient},
};
use crate::{
    conversation::{SessionSelection, StoreError},
    identity::{RequestId, SessionId, UserId},
};

/// Most items that one request may delete.
const BATCH: usize = 25;
/// Conversations that are deleted at a time.
const AT_ONCE: usize = 4;
/// How often is deleted, if there is always something again.
const PASSES: u32 = 10;
/// Between two requests of which the first one was too much.
const PAUSE: Duration = Duration::from_millis(50);

impl DynamoConversations {
    pub(super) async fn remove(&self, user: &UserId, sessions: &SessionSelection) -> Result<u32, StoreError> {
        match sessions {
            SessionSelection::All => self.remove_all(user).await,
            SessionSelection::Listed(sessions) => {
                let mut seen = HashSet::new();
                let sessions: Vec<_> = sessions.iter().filter(|session| seen.insert(session.as_str())).collect();
                let removed: Vec<_> = sessions.iter().map(|session| self.remove_one(user, session)).collect();
                let removed = stream::iter(removed).buffer_unordered(AT_ONCE);
                removed.try_fold(0, |count, was_there| async move { Ok(count + u32::from(was_there)) }).await
            }
        }
    }

    /// Everything of the user, but what counts against the limits of the day, which is numbers alone: or to delete were a way
    /// around the limits. First what runs, which then can keep nothing more; and once more, because something may have begun
    /// meanwhile.
    async fn remove_all(&self, user: &UserId) -> Result<u32, StoreError> {
        let mut count = 0;
        for _ in 0..PASSES {
            let is_over = self.table.delete_prefix(user, "run/").await? == 0;
            let mut pages = PageCursor::new(Query::everything(user).project("item_id, turns").include_expired());
            let mut is_empty = true;
            while let Some(mut page) = self.table.next_page(&mut pages).await? {
                page.retain(|item| item.text(ITEM_ID).is_ok_and(|item| !item.starts_with("usage/")));
                is_empty &= page.is_empty();
                let heads = page.iter().filter(|item| is_session(item)).count();
                count += u32::try_from(heads).unwrap_or(u32::MAX);
                self.table.delete_all(user, page).await?;
            }
            if is_over && is_empty {
                break;
            }
        }
        Ok(count)
    }

    /// One conversation; whether there was one. It is taken as by a run, so that nothing begins in it meanwhile, and is given
    /// up together with its item, which is the last to go: whoever did not see this end asks again.
    async fn remove_one(&self, user: &UserId, session: &SessionId) -> Result<bool, StoreError> {
        let (head, held) = (Key::session(user, session), Key::lease(user, session));
        for pass in 1..=PASSES {
            let holder = Uuid::now_v7();
            let lease = deletion_lease(holder, Timestamp::now(), DELETION);
            self.table.write(Write::put(held.clone(), lease)).await?;
            self.remove_runs(user, session).await?;
            let turns = self.table.get(head.clone()).await?.and_then(|mut head| head.remove(TURNS));
            let owned = format!("part/{}/", session_owner(session));
            // First, so that no result comes any more.
            self.table.write(Write::delete(Key::pending(user, session))).await?;
            for prefix in [turn_prefix(session), owned, format!("result/{session}/")] {
                self.table.delete_prefix(user, &prefix).await?;
            }
            let was_there = turns.is_some();
            let free = Write::delete(held.clone()).condition("holder = :holder").bind(":holder", text(holder));
            let gone = match turns {
                Some(turns) => Write::delete(head.clone()).condition("turns = :turns").bind(":turns", turns),
                None => Write::check(head.clone()).condition("attribute_not_exists(turns)"),
            };
            // Where the lease is lost, something may have begun; and a turn that had waited may have ended beside it.
            let last = vec![free, gone, Write::delete(Key::pending(user, session))];
            if let TransactOutcome::Done = self.table.transact(last).await? {
                return Ok(was_there);
            }
            backoff(pass).await;
        }
        Err(StoreError::Timeout)
    }

    /// The runs of a conversation with their frames. Those that are going on find themselves gone.
    async fn remove_runs(&self, user: &UserId, session: &SessionId) -> Result<(), StoreError> {
        let runs = Query::prefix(user, "run/").project("item_id, session_id, holder");
        let mut runs = self.table.query_all(runs).await?;
        runs.retain(|run| run.text(SESSION).is_ok_and(|of| of == session.as_str()));
        let mut streams = Vec::new();
        for run in &runs {
            let request = run.text(ITEM_ID)?.trim_start_matches("run/");
            self.table.write(Write::delete(Key::run(user, request))).await?;
            if let (Ok(request), Ok(holder)) = (RequestId::parse(ITEM_ID, request), run.text(LEASE_TOKEN)?.parse()) {
                streams.push(stream_of(holder, &request));
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
    /// Deletes all items of a user whose names begin so. Returns how many there were.
    async fn delete_prefix(&self, user: &UserId, prefix: &str) -> Result<usize, StoreError> {
        let mut pages = PageCursor::new(Query::prefix(user, prefix).project("item_id").include_expired());
        let mut count = 0;
        while let Some(page) = self.next_page(&mut pages).await? {
            count += page.len();
            self.delete_all(user, page).await?;
        }
        Ok(count)
    }

    async fn delete_all(&self, user: &UserId, items: Vec<Item>) -> Result<(), StoreError> {
        let mut left = Vec::with_capacity(items.len());
        for item in &items {
            let key =
                DeleteRequest::builder().set_key(Some(key_attributes(Key::new(user, item.text(ITEM_ID)?)))).build();
            let key = key.map_err(|error| StoreError::Dynamo(error.to_string()))?;
            left.push(WriteRequest::builder().delete_request(key).build());
        }
        while !left.is_empty() {
            let batch = left.split_off(left.len().saturating_sub(BATCH));
            let request = self.client.batch_write_item().request_items(&self.name, batch.clone());
            let unwritten: Vec<_> = match request.send().await {
                Ok(answer) => answer.unprocessed_items.into_iter().flatten().flat_map(|(_, writes)| writes).collect(),
                // In a moment it may be done.
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
