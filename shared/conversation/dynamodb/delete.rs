//! Deleting conversations.

use std::{collections::HashSet, time::Duration};

use aws_sdk_dynamodb::types::{DeleteRequest, WriteRequest};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use tokio::time::sleep;
use uuid::Uuid;

use super::{
    DELETION, DynamoConversations,
    admit::leave,
    item::{Item, Read as _, set, text},
    keys::{ITEM, Key, request_owner, session_owner, stream as stream_of, turns_of},
    runs::{HOLDER, SESSION, lease_of_nobody},
    session::TURNS,
    table::{Pages, Query, Table, failed, of_key},
    write::{Transacted, Write, may_pass, wait},
};
use crate::{
    conversation::{Sessions, StoreError},
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
    pub(super) async fn remove(&self, user: &UserId, sessions: &Sessions) -> Result<u32, StoreError> {
        match sessions {
            Sessions::All => self.remove_all(user).await,
            Sessions::These(sessions) => {
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
            let mut pages = Pages::of(Query::everything(user).only("item_id, turns").with_expired());
            let mut is_empty = true;
            while let Some(mut page) = self.table.next(&mut pages).await? {
                page.retain(|item| item.text(ITEM).is_ok_and(|item| !item.starts_with("usage/")));
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
            let lease = lease_of_nobody(holder, Timestamp::now(), DELETION);
            self.table.apply(Write::put(held.clone(), lease)).await?;
            self.remove_runs(user, session).await?;
            let turns = self.table.get(head.clone()).await?.and_then(|mut head| head.remove(TURNS));
            let owned = format!("part/{}/", session_owner(session));
            // First, so that no result comes any more.
            self.table.apply(Write::delete(Key::pending(user, session))).await?;
            for prefix in [turns_of(session), owned, format!("result/{session}/")] {
                self.table.delete_prefix(user, &prefix).await?;
            }
            let was_there = turns.is_some();
            let free = Write::delete(held.clone()).when("holder = :holder").value(":holder", text(holder));
            let gone = match turns {
                Some(turns) => Write::delete(head.clone()).when("turns = :turns").value(":turns", turns),
                None => Write::check(head.clone()).when("attribute_not_exists(turns)"),
            };
            // Where the lease is lost, something may have begun; and a turn that had waited may have ended beside it.
            let last = vec![free, gone, Write::delete(Key::pending(user, session))];
            if let Transacted::Done = self.table.transact(last).await? {
                return Ok(was_there);
            }
            wait(pass).await;
        }
        Err(StoreError::Timeout)
    }

    /// The runs of a conversation with their frames. Those that are going on find themselves gone.
    async fn remove_runs(&self, user: &UserId, session: &SessionId) -> Result<(), StoreError> {
        let runs = Query::prefix(user, "run/").only("item_id, session_id, holder");
        let mut runs = self.table.rest(runs).await?;
        runs.retain(|run| run.text(SESSION).is_ok_and(|of| of == session.as_str()));
        let mut streams = Vec::new();
        for run in &runs {
            let request = run.text(ITEM)?.trim_start_matches("run/");
            self.table.apply(Write::delete(Key::run(user, request))).await?;
            if let (Ok(request), Ok(holder)) = (RequestId::parse(ITEM, request), run.text(HOLDER)?.parse()) {
                streams.push(stream_of(holder, &request));
            }
            for prefix in [format!("chunk/{request}/"), format!("part/{}/", request_owner(request))] {
                self.table.delete_prefix(user, &prefix).await?;
            }
        }
        if !streams.is_empty() {
            self.table.apply(leave(user, set(streams), Timestamp::now())).await?;
        }
        Ok(())
    }
}

fn is_session(item: &Item) -> bool {
    item.contains_key(TURNS) && item.text(ITEM).is_ok_and(|item| item.starts_with("session/"))
}

impl Table {
    /// Deletes all items of a user whose names begin so. Returns how many there were.
    async fn delete_prefix(&self, user: &UserId, prefix: &str) -> Result<usize, StoreError> {
        let mut pages = Pages::of(Query::prefix(user, prefix).only("item_id").with_expired());
        let mut count = 0;
        while let Some(page) = self.next(&mut pages).await? {
            count += page.len();
            self.delete_all(user, page).await?;
        }
        Ok(count)
    }

    async fn delete_all(&self, user: &UserId, items: Vec<Item>) -> Result<(), StoreError> {
        let mut left = Vec::with_capacity(items.len());
        for item in &items {
            let key = DeleteRequest::builder().set_key(Some(of_key(Key::new(user, item.text(ITEM)?)))).build();
            let key = key.map_err(|error| StoreError::Dynamo(error.to_string()))?;
            left.push(WriteRequest::builder().delete_request(key).build());
        }
        while !left.is_empty() {
            let batch = left.split_off(left.len().saturating_sub(BATCH));
            let request = self.client.batch_write_item().request_items(&self.name, batch.clone());
            let unwritten: Vec<_> = match request.send().await {
                Ok(answer) => answer.unprocessed_items.into_iter().flatten().flat_map(|(_, writes)| writes).collect(),
                // In a moment it may be done.
                Err(error) if may_pass(&error) => batch,
                Err(error) => return Err(failed(error)),
            };
            if !unwritten.is_empty() {
                sleep(PAUSE).await;
                left.extend(unwritten);
            }
        }
        Ok(())
    }
}
