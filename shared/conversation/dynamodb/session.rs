use futures_util::future::try_join;
use jiff::Timestamp;

use super::{
    DynamoConversations,
    attributes::{CREATED_AT, SUMMARY, SUMMARY_THROUGH, TITLE, TURNS},
    item::{Item, ItemExt as _, flag, iso_time, number, text},
    keys::{ITEM_ID, Key, UPDATED, latest_sort_key},
    table::Query,
    write::{Write, WriteOutcome},
};
use crate::{
    conversation::{
        error::{Result, StoreError},
        session::{Session, SessionCursor, SessionUpdate, Summary},
    },
    identity::{RequestId, SessionId, UserId},
};

impl DynamoConversations {
    pub(super) async fn read_sessions(
        &self,
        user: &UserId,
        limit: usize,
        after: Option<&SessionCursor>,
    ) -> Result<Vec<Session>> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let before = after.map(|cursor| latest_sort_key(&iso_time(cursor.updated_at), cursor.id.as_str()));
        let listing = self.table.query_first(Query::latest(user, before.as_deref()), limit);
        let (found, running) = try_join(listing, self.table.running_sessions(user)).await?;
        found.iter().map(|item| session_of(item, &running)).collect()
    }

    pub(super) async fn read_session(&self, user: &UserId, session: &SessionId) -> Result<Option<Session>> {
        let (key, lease) = (Key::session(user, session), Key::lease(user, session));
        let mut items = self.table.batch_get(vec![key.clone(), lease.clone()]).await?;
        let Some(item) = items.remove(&key.item) else { return Ok(None) };
        let running = match items.remove(&lease.item) {
            Some(lease) => self.table.running_sessions_of(user, vec![lease]).await?,
            None => Vec::new(),
        };
        session_of(&item, &running).map(Some)
    }

    pub(super) async fn set_title(&self, user: &UserId, session: &SessionId, title: &str) -> Result<Option<Session>> {
        let key = Key::session(user, session);
        let rename = Write::update(key, "SET title = :title, is_titled = :yes")
            .condition("attribute_exists(turns)")
            .bind(":title", text(title))
            .bind(":yes", flag(true))
            .returning_new();
        let WriteOutcome::Done(item) = self.table.write(rename).await? else { return Ok(None) };
        let lease = self.table.get(Key::lease(user, session)).await?;
        let running = self.table.running_sessions_of(user, lease.into_iter().collect()).await?;
        session_of(&item, &running).map(Some)
    }

    pub(super) async fn apply_update(&self, user: &UserId, session: &SessionId, update: &SessionUpdate) -> Result<()> {
        let key = Key::session(user, session);
        let write = match update {
            SessionUpdate::Title(title) => Write::update(key, "SET title = :title, is_titled = :yes")
                .condition("attribute_exists(turns) AND attribute_not_exists(is_titled)")
                .bind(":title", text(title))
                .bind(":yes", flag(true)),
            SessionUpdate::Summary(Summary { text: summary, through }) => {
                Write::update(key, "SET summary = :summary, summary_through = :through")
                    .condition(
                        "turns >= :through \
                         AND (attribute_not_exists(summary_through) OR summary_through < :through)",
                    )
                    .bind(":summary", text(summary))
                    .bind(":through", number(through))
            }
        };
        // A failed condition: the session is gone or has a better one.
        self.table.write(write).await?;
        Ok(())
    }
}

pub(super) fn summary_of(session: &Item) -> Result<Option<Summary>> {
    if !session.contains_key(SUMMARY) {
        return Ok(None);
    }
    Ok(Some(Summary { text: session.text(SUMMARY)?.to_owned(), through: session.number(SUMMARY_THROUGH)? }))
}

fn session_of(item: &Item, running: &[(SessionId, String)]) -> Result<Session> {
    let id = item.text(ITEM_ID)?.strip_prefix("session/").ok_or(StoreError::Malformed(ITEM_ID))?;
    let id = SessionId::parse(ITEM_ID, id).map_err(|_| StoreError::Malformed(ITEM_ID))?;
    let updated = item.text(UPDATED)?.split('/').next().and_then(|time| time.parse::<Timestamp>().ok());
    let running = running.iter().find(|(session, _)| *session == id);
    let running = running.and_then(|(_, request)| RequestId::parse("request_id", request).ok());
    Ok(Session {
        title: item.text(TITLE)?.to_owned(),
        created_at: item.time(CREATED_AT)?,
        updated_at: updated.ok_or(StoreError::Malformed(UPDATED))?,
        turns: item.number(TURNS)?,
        running,
        id,
    })
}
