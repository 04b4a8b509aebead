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
    runs::{HOLDER, SESSION, lease},
    session::TURNS,
    table::{Pages, Query, Table, failed, of_key},
    write::{Applied, Write},
};
use crate::{
    conversation::{Sessions, StoreError},
    identity::{RequestId, SessionId, UserId},
};

/// Most items that one request may delete.
const BATCH: usize = 25;
/// Conversations that are deleted at a time.
const AT_ONCE: usize = 4;
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

    /// Everything of the user. What runs finds itself gone.
    async fn remove_all(&self, user: &UserId) -> Result<u32, StoreError> {
        let mut pages = Pages::of(Query::everything(user).only("item_id, turns").with_expired());
        let mut count = 0;
        while let Some(page) = self.table.next(&mut pages).await? {
            let heads = page.iter().filter(|item| is_session(item)).count();
            count += u32::try_from(heads).unwrap_or(u32::MAX);
            self.table.delete_all(user, page).await?;
        }
        Ok(count)
    }

    /// One conversation; whether there was one. It is taken as by a run, so that nothing begins in it meanwhile, and its item
    /// is the last to go: whoever did not see this end asks again.
    async fn remove_one(&self, user: &UserId, session: &SessionId) -> Result<bool, StoreError> {
        let holder = Uuid::now_v7();
        let held = Key::lease(user, session);
        self.table.apply(Write::put(held.clone(), lease(holder, Timestamp::now(), DELETION))).await?;
        self.remove_runs(user, session).await?;
        let owned = format!("part/{}/", session_owner(session));
        for prefix in [turns_of(session), owned, format!("result/{session}/")] {
            self.table.delete_prefix(user, &prefix).await?;
        }
        self.table.apply(Write::delete(Key::pending(user, session))).await?;
        let head = self.table.apply(Write::delete(Key::session(user, session)).returning_old()).await?;
        let was_there = matches!(head, Applied::Done(item) if item.contains_key(TURNS));
        let free = Write::delete(held).when("holder = :holder").value(":holder", text(holder));
        self.table.apply(free).await?;
        Ok(was_there)
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
    /// Deletes all items of a user whose names begin so.
    async fn delete_prefix(&self, user: &UserId, prefix: &str) -> Result<(), StoreError> {
        let mut pages = Pages::of(Query::prefix(user, prefix).only("item_id").with_expired());
        while let Some(page) = self.next(&mut pages).await? {
            self.delete_all(user, page).await?;
        }
        Ok(())
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
            let answer = self.client.batch_write_item().request_items(&self.name, batch).send().await;
            let unwritten: Vec<_> = answer.map_err(failed)?.unprocessed_items.into_iter().flatten().collect();
            if !unwritten.is_empty() {
                sleep(PAUSE).await;
                left.extend(unwritten.into_iter().flat_map(|(_, writes)| writes));
            }
        }
        Ok(())
    }
}
