//! Limits of a user's calls in this process. They ask no store: they hold without one, while it is down, and for calls that must
//! not cost another round trip. Chats that a store counts are limited there as well, across processes.

mod bucket;
mod users;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

use self::{
    bucket::Rate,
    users::{Queue, UserUsage, Users},
};
use super::error::LimitExceeded;
use crate::{
    config::{CallQuotas, QuotasByPlan, UserQuotas},
    conversation::QuotaKind,
    identity::{Principal, UserId},
    memory::{EmbeddingBudget, MemoryError},
};

/// Each holds a page of memories while it is not read.
const CONCURRENT_EXPORTS: u32 = 2;
/// Of a call that waits for others of its user. A write can take as long.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// After which a refused call may try again: when another one ends is not known.
const RETRY_AFTER_CONCURRENT: Duration = Duration::from_secs(1);
/// Of the tokens of a day, in each process while the store that counts them is down: a process does not know what is spent.
const TOKENS_WITHOUT_STORE_DIVISOR: u64 = 10;
/// A queued call counts one, and one more for each of these.
const BYTES_PER_PLACE: usize = 1024 * 1024;
/// Of text whose tokens nobody counted.
const BYTES_PER_TOKEN: u64 = 4;
/// Per call that runs; so calls that wait hold about 32 MiB for each that runs.
const QUEUE_PLACES: u32 = 32;

/// Calls of a kind wait only for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallKind {
    /// Can take minutes.
    Write,
    Other,
    /// Never waits: it stops what runs.
    Control,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenCount {
    /// Nobody but this process.
    InProcess,
    /// A store, which is down.
    StoreDown,
}

pub(super) struct UserLimits {
    /// `None` = unlimited.
    quotas: Option<QuotasByPlan>,
    started: Instant,
    users: Mutex<Users>,
}

impl UserLimits {
    pub(super) fn new(quotas: Option<QuotasByPlan>) -> Self {
        Self { quotas, started: Instant::now(), users: Mutex::default() }
    }

    /// Those that a store counts.
    pub(super) fn chat_quotas(&self, is_pro: bool) -> Option<UserQuotas> {
        self.quotas.map(|quotas| quotas.for_plan(is_pro).chats)
    }

    fn call_quotas(&self, caller: &Principal) -> Option<CallQuotas> {
        // A call beside a chat does not state the plan of its user.
        self.quotas.map(|quotas| quotas.for_plan(caller.is_pro.unwrap_or(false)).calls)
    }

    /// Of writes; the database counts it.
    pub(super) fn embedding_budget(&self, caller: &Principal) -> EmbeddingBudget {
        match self.call_quotas(caller) {
            Some(quotas) => EmbeddingBudget::bytes_per_day(quotas.embedded_bytes_per_day),
            None => EmbeddingBudget::unlimited(),
        }
    }

    /// Counts a call of any kind. A chat whose plan allows more requests than calls may use them. `claims_pro` is what a chat
    /// says of its user; a token knows better.
    pub(super) fn take_call(&self, caller: &Principal, claims_pro: bool) -> Result<(), LimitExceeded> {
        let is_pro = caller.is_pro.unwrap_or(claims_pro);
        let Some(quotas) = self.quotas.map(|quotas| quotas.for_plan(is_pro)) else { return Ok(()) };
        let limit = quotas.calls.calls_per_minute.max(quotas.chats.requests_per_minute);
        let (mut users, now) = (self.users(), self.now());
        let taken = users.of(&caller.user, now).calls.take(now, Rate::per_minute(limit), 1);
        taken.map_err(|wait| LimitExceeded::after(wait, QuotaKind::CallsPerMinute, limit.into()))
    }

    /// Counts text that is embedded to search with it.
    pub(super) fn take_query_bytes(&self, caller: &Principal, bytes: usize) -> Result<(), MemoryError> {
        let Some(quotas) = self.call_quotas(caller) else { return Ok(()) };
        let bytes_per_day = quotas.embedded_bytes_per_day;
        let exceeded = |retry_after| MemoryError::EmbeddingBudgetExceeded { bytes_per_day, retry_after };
        if bytes as u64 > bytes_per_day {
            return Err(exceeded(None));
        }
        let (mut users, now) = (self.users(), self.now());
        let taken = users.of(&caller.user, now).query_bytes.take(now, Rate::per_day(bytes_per_day), bytes as u64);
        taken.map_err(|wait| exceeded(Some(wait)))
    }

    /// Waits until fewer than `concurrent_calls` of the user and the kind run.
    pub(super) async fn enter(
        self: &Arc<Self>,
        caller: &Principal,
        kind: CallKind,
        message_bytes: usize,
    ) -> Result<Option<RunningCall>, LimitExceeded> {
        let Some(quotas) = self.call_quotas(caller).filter(|_| kind != CallKind::Control) else { return Ok(None) };
        let exceeded = LimitExceeded {
            quota: QuotaKind::ConcurrentCalls,
            limit: quotas.concurrent_calls.into(),
            retry_after: Some(RETRY_AFTER_CONCURRENT),
        };
        let Some((place, turns)) = self.queue(caller, kind, quotas.concurrent_calls, message_bytes) else {
            return Err(exceeded);
        };
        match timeout(MAX_WAIT, turns.acquire_owned()).await {
            Ok(Ok(turn)) => Ok(Some(RunningCall { _turn: turn, _place: place })),
            // A semaphore is never closed.
            Ok(Err(_)) | Err(_) => Err(exceeded),
        }
    }

    /// `None`: too many calls wait.
    fn queue(
        self: &Arc<Self>,
        caller: &Principal,
        kind: CallKind,
        concurrent_calls: u32,
        message_bytes: usize,
    ) -> Option<(QueuePlace, Arc<Semaphore>)> {
        let places = u32::try_from(message_bytes / BYTES_PER_PLACE).unwrap_or(u32::MAX).saturating_add(1);
        let (mut users, now) = (self.users(), self.now());
        let queue = queue_of(users.of(&caller.user, now), kind);
        let queued = queue.queued.saturating_add(places);
        if queue.queued > 0 && queued > concurrent_calls.saturating_mul(QUEUE_PLACES) {
            return None;
        }
        queue.queued = queued;
        let running = usize::try_from(concurrent_calls).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        let turns = queue.turns.get_or_insert_with(|| Arc::new(Semaphore::new(running))).clone();
        Some((QueuePlace { limits: self.clone(), user: caller.user.clone(), kind, places }, turns))
    }

    /// Counts a chat that no store counts, and its tokens.
    pub(super) fn open_chat(
        self: &Arc<Self>,
        user: &UserId,
        is_pro: bool,
        count: TokenCount,
    ) -> Result<Option<OpenStream>, LimitExceeded> {
        let Some(quotas) = self.chat_quotas(is_pro) else { return Ok(None) };
        let tokens_per_day = match count {
            TokenCount::InProcess => quotas.tokens_per_day,
            TokenCount::StoreDown => quotas.tokens_per_day.div_ceil(TOKENS_WITHOUT_STORE_DIVISOR),
        };
        let (mut users, now) = (self.users(), self.now());
        let usage = users.of(user, now);
        let exceeded = |quota, limit| move |wait| LimitExceeded::after(wait, quota, limit);
        if usage.chats >= quotas.concurrent_streams {
            let limit = quotas.concurrent_streams.into();
            return Err(exceeded(QuotaKind::ConcurrentStreams, limit)(RETRY_AFTER_CONCURRENT));
        }
        let tokens = Rate::per_day(tokens_per_day);
        let has_tokens = usage.tokens.require_left(now, tokens);
        has_tokens.map_err(exceeded(QuotaKind::TokensPerDay, tokens_per_day))?;
        let requests = usage.requests.take(now, Rate::per_minute(quotas.requests_per_minute), 1);
        requests.map_err(exceeded(QuotaKind::RequestsPerMinute, quotas.requests_per_minute.into()))?;
        usage.chats += 1;
        Ok(Some(OpenStream {
            limits: self.clone(),
            user: user.clone(),
            kind: StreamKind::Chat { tokens, unreported_bytes: 0 },
        }))
    }

    pub(super) fn open_export(self: &Arc<Self>, caller: &Principal) -> Result<Option<OpenStream>, LimitExceeded> {
        let Some(quotas) = self.call_quotas(caller) else { return Ok(None) };
        let (mut users, now) = (self.users(), self.now());
        let usage = users.of(&caller.user, now);
        if usage.open_exports >= CONCURRENT_EXPORTS {
            let (quota, limit) = (QuotaKind::ConcurrentExports, CONCURRENT_EXPORTS.into());
            return Err(LimitExceeded { quota, limit, retry_after: Some(RETRY_AFTER_CONCURRENT) });
        }
        let limit = quotas.exports_per_minute;
        let taken = usage.exports.take(now, Rate::per_minute(limit), 1);
        taken.map_err(|wait| LimitExceeded::after(wait, QuotaKind::ExportsPerMinute, limit.into()))?;
        usage.open_exports += 1;
        Ok(Some(OpenStream { limits: self.clone(), user: caller.user.clone(), kind: StreamKind::Export }))
    }

    fn users(&self) -> MutexGuard<'_, Users> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

fn queue_of(usage: &mut UserUsage, kind: CallKind) -> &mut Queue {
    match kind {
        CallKind::Write => &mut usage.writes,
        CallKind::Other | CallKind::Control => &mut usage.other_calls,
    }
}

/// `None` for quotas of other calls.
pub(super) fn chat_limit(quotas: UserQuotas, quota: QuotaKind) -> Option<u64> {
    match quota {
        QuotaKind::RequestsPerMinute => Some(quotas.requests_per_minute.into()),
        QuotaKind::ConcurrentStreams => Some(quotas.concurrent_streams.into()),
        QuotaKind::TokensPerDay => Some(quotas.tokens_per_day),
        QuotaKind::CallsPerMinute
        | QuotaKind::ConcurrentCalls
        | QuotaKind::ExportsPerMinute
        | QuotaKind::ConcurrentExports
        | QuotaKind::EmbeddedBytesPerDay => None,
    }
}

/// A call that runs; dropping it lets the next one of its user run.
pub(super) struct RunningCall {
    _turn: OwnedSemaphorePermit,
    _place: QueuePlace,
}

struct QueuePlace {
    limits: Arc<UserLimits>,
    user: UserId,
    kind: CallKind,
    places: u32,
}

impl Drop for QueuePlace {
    fn drop(&mut self) {
        if let Some(usage) = self.limits.users().get(&self.user) {
            let queue = queue_of(usage, self.kind);
            queue.queued = queue.queued.saturating_sub(self.places);
            if queue.queued == 0 {
                queue.turns = None;
            }
        }
    }
}

enum StreamKind {
    Chat {
        tokens: Rate,
        /// Charged as tokens if the stream ends without a report of them: leaving early must not make it free.
        unreported_bytes: u64,
    },
    Export,
}

/// An open stream of a user; dropping it closes it.
pub(super) struct OpenStream {
    limits: Arc<UserLimits>,
    user: UserId,
    kind: StreamKind,
}

impl OpenStream {
    pub(super) fn add_bytes(&mut self, bytes: usize) {
        if let StreamKind::Chat { unreported_bytes, .. } = &mut self.kind {
            *unreported_bytes = unreported_bytes.saturating_add(bytes as u64);
        }
    }

    /// Of an answer that failed before it began.
    pub(super) fn forget_bytes(&mut self) {
        if let StreamKind::Chat { unreported_bytes, .. } = &mut self.kind {
            *unreported_bytes = 0;
        }
    }

    pub(super) fn charge_tokens(&mut self, tokens: u64) {
        if let StreamKind::Chat { tokens: rate, unreported_bytes } = &mut self.kind {
            *unreported_bytes = 0;
            let (mut users, now) = (self.limits.users(), self.limits.now());
            users.of(&self.user, now).tokens.charge(now, *rate, tokens);
        }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let now = self.limits.now();
        if let Some(usage) = self.limits.users().get(&self.user) {
            let open = match self.kind {
                StreamKind::Chat { tokens, unreported_bytes } => {
                    usage.tokens.charge(now, tokens, unreported_bytes / BYTES_PER_TOKEN);
                    &mut usage.chats
                }
                StreamKind::Export => &mut usage.open_exports,
            };
            *open = open.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests;
