use futures_util::{StreamExt as _, TryStreamExt as _, future::try_join, stream};

use super::{
    DynamoConversations,
    attributes::{CREATED_AT, IS_COMPLETE, REQUEST, TOKENS},
    item::{Item, ItemExt as _},
    keys::{ITEM_ID, Key, parse_turn_item, session_owner, turn_prefix},
    parts::ValueOwner,
    session::summary_of,
    table::{PageCursor, Query},
};
use crate::{
    conversation::{
        error::{Result, StoreError},
        session::{History, StoredTurn},
    },
    identity::{RequestId, SessionId, UserId},
};

/// More than most budgets hold.
const PAGE: usize = 16;
const CONCURRENT_READS: usize = 4;

impl DynamoConversations {
    pub(super) async fn read_history(&self, user: &UserId, session: &SessionId, max_tokens: u32) -> Result<History> {
        let head = self.table.get(Key::session(user, session));
        let mut pages = PageCursor::new(before(user, session, None).limit(PAGE));
        let (head, first) = try_join(head, self.table.next_page(&mut pages)).await?;
        let summary = head.as_ref().map(summary_of).transpose()?.flatten();
        let through = summary.as_ref().map_or(0, |summary| summary.through);
        let (mut turns, mut page, mut left) = (Vec::new(), first, max_tokens);
        'pages: while let Some(items) = page {
            for item in items {
                // At least one, so that the walk ends.
                let tokens = item.number::<u32>(TOKENS)?.max(1);
                if seq_of(&item)? <= through || (tokens > left && !turns.is_empty()) {
                    break 'pages;
                }
                left = left.saturating_sub(tokens);
                turns.push(item);
            }
            page = self.table.next_page(&mut pages).await?;
        }
        turns.reverse();
        Ok(History { turns: self.turns_of(user, session, turns).await?, summary })
    }

    pub(super) async fn read_turns(
        &self,
        user: &UserId,
        session: &SessionId,
        before_seq: Option<u32>,
        limit: usize,
    ) -> Result<Vec<StoredTurn>> {
        let found = self.table.query_first(before(user, session, before_seq), limit).await?;
        self.turns_of(user, session, found).await
    }

    async fn turns_of(&self, user: &UserId, session: &SessionId, items: Vec<Item>) -> Result<Vec<StoredTurn>> {
        let owner = ValueOwner::new(user, session_owner(session));
        let turns: Vec<_> = items.iter().map(|item| self.turn_of(&owner, item)).collect();
        stream::iter(turns).buffered(CONCURRENT_READS).try_collect().await
    }

    async fn turn_of(&self, owner: &ValueOwner, item: &Item) -> Result<StoredTurn> {
        Ok(StoredTurn {
            seq: seq_of(item)?,
            request: RequestId::parse(REQUEST, item.text(REQUEST)?).map_err(|_| StoreError::Malformed(REQUEST))?,
            record: self.table.read_value(owner, item).await?,
            tokens: item.number(TOKENS)?,
            is_complete: item.flag(IS_COMPLETE),
            created_at: item.time(CREATED_AT)?,
        })
    }
}

fn before(user: &UserId, session: &SessionId, seq: Option<u32>) -> Query {
    let turns = turn_prefix(session);
    match seq {
        None => Query::prefix(user, &turns),
        Some(seq) => Query::between(user, &turns, &format!("{turns}{:010}", seq.saturating_sub(1))),
    }
    .descending()
}

fn seq_of(item: &Item) -> Result<u32> {
    parse_turn_item(item.text(ITEM_ID)?).map(|(_, seq)| seq).ok_or(StoreError::Malformed(ITEM_ID))
}
