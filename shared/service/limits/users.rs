//! The use of limits by each user of this process, in bounded memory.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::sync::Semaphore;

use super::bucket::{Bucket, DAY, MINUTE};
use crate::identity::UserId;

/// About 8 MB.
const MAX_USERS: usize = 20_000;

#[derive(Debug, Default)]
pub(super) struct UserUsage {
    pub(super) calls: Bucket,
    pub(super) requests: Bucket,
    pub(super) exports: Bucket,
    pub(super) query_bytes: Bucket,
    pub(super) tokens: Bucket,
    /// Open streams: chats that no store counts, and exports.
    pub(super) chats: u32,
    pub(super) open_exports: u32,
    pub(super) writes: Queue,
    pub(super) other_calls: Queue,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Calls that run or wait, weighted by their size.
    pub(super) queued: u32,
    /// Admits calls to run; exists while calls are queued.
    pub(super) turns: Option<Arc<Semaphore>>,
}

impl UserUsage {
    fn buckets(&self) -> [(&Bucket, Duration); 5] {
        let Self { calls, requests, exports, query_bytes, tokens, .. } = self;
        [(calls, MINUTE), (requests, MINUTE), (exports, MINUTE), (query_bytes, DAY), (tokens, DAY)]
    }

    fn has_open_calls(&self) -> bool {
        self.chats > 0 || self.open_exports > 0 || self.writes.queued > 0 || self.other_calls.queued > 0
    }

    /// Equal to that of a new user.
    fn is_unused(&self, now: Duration) -> bool {
        !self.has_open_calls() && self.buckets().iter().all(|(bucket, _)| bucket.is_full(now))
    }

    fn used_millionths(&self, now: Duration) -> u64 {
        self.buckets().iter().map(|(bucket, period)| bucket.used_millionths(now, *period)).max().unwrap_or_default()
    }
}

/// A full table forgets the users who have used least. So nobody can have their own usage forgotten by inventing users: each of
/// them would have to use more.
#[derive(Debug)]
pub(super) struct Users {
    usage: HashMap<UserId, UserUsage>,
    max: usize,
}

impl Default for Users {
    fn default() -> Self {
        Self { usage: HashMap::new(), max: MAX_USERS }
    }
}

impl Users {
    pub(super) fn of(&mut self, user: &UserId, now: Duration) -> &mut UserUsage {
        if self.usage.len() >= self.max && !self.usage.contains_key(user) {
            self.make_room(now);
        }
        self.usage.entry(user.clone()).or_default()
    }

    /// For calls that end. Their user is never forgotten before.
    pub(super) fn get(&mut self, user: &UserId) -> Option<&mut UserUsage> {
        self.usage.get_mut(user)
    }

    /// Forgets an eighth at a time, so that a full table is not searched for each new user.
    fn make_room(&mut self, now: Duration) {
        self.usage.retain(|_, usage| !usage.is_unused(now));
        let surplus = self.usage.len().saturating_sub(self.max - self.max.div_ceil(8));
        if surplus == 0 {
            return;
        }
        let idle = self.usage.iter().filter(|(_, usage)| !usage.has_open_calls());
        let mut by_use: Vec<(u64, UserId)> =
            idle.map(|(user, usage)| (usage.used_millionths(now), user.clone())).collect();
        if surplus < by_use.len() {
            by_use.select_nth_unstable_by_key(surplus, |(used, _)| *used);
            by_use.truncate(surplus);
        }
        for (_, user) in by_use {
            self.usage.remove(&user);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::limits::bucket::Rate;

    const NOW: Duration = Duration::from_secs(1_000);

    fn user(number: usize) -> UserId {
        UserId::parse("user_id", &format!("user-{number}")).unwrap()
    }

    #[test]
    fn invented_users_evict_each_other_and_not_the_one_who_used_most() {
        let mut users = Users { max: 64, ..Users::default() };
        let (rate, busy) = (Rate::per_minute(10), user(0));
        users.of(&busy, NOW).calls.take(NOW, rate, 10).unwrap();
        for number in 1..10_000 {
            users.of(&user(number), NOW).calls.take(NOW, rate, 1).unwrap();
            assert!(users.usage.len() <= 64);
        }
        assert!(users.of(&busy, NOW).calls.take(NOW, rate, 1).is_err());
    }

    #[test]
    fn users_with_open_calls_are_not_forgotten() {
        let mut users = Users { max: 8, ..Users::default() };
        users.of(&user(0), NOW).chats = 1;
        for number in 1..100 {
            users.of(&user(number), NOW);
        }
        assert_eq!(users.get(&user(0)).unwrap().chats, 1);
        assert!(users.usage.len() <= 8);
    }

    #[test]
    fn unused_users_are_forgotten_first() {
        let mut users = Users { max: 8, ..Users::default() };
        let (rate, later) = (Rate::per_minute(10), NOW + MINUTE);
        users.of(&user(0), NOW).query_bytes.take(NOW, Rate::per_day(10), 1).unwrap();
        for number in 1..8 {
            users.of(&user(number), NOW).calls.take(NOW, rate, 9).unwrap();
        }
        users.of(&user(8), later);
        assert_eq!(users.usage.len(), 2, "{:?}", users.usage);
        assert!(users.usage.contains_key(&user(0)));
    }
}
