use futures_util::{FutureExt as _, future::join_all};
use tokio::time::advance;

use super::*;
use crate::config::Config;

fn limits(quotas: &str) -> Arc<UserLimits> {
    let config = Config::read(&|name| (name == "RATE_LIMITS").then(|| quotas.to_owned())).unwrap();
    Arc::new(UserLimits::new(config.conversations.quotas))
}

fn caller(user: &str) -> Principal {
    Principal { user: UserId::parse("user_id", user).unwrap(), is_pro: None, expires_at: None }
}

#[tokio::test(start_paused = true)]
async fn calls_of_a_minute_are_bounded_for_each_user() {
    let limits = limits("calls_per_minute=120,requests_per_minute=1");
    let (ann, bob) = (caller("ann"), caller("bob"));
    for _ in 0..120 {
        limits.take_call(&ann, false).unwrap();
    }
    let refused = limits.take_call(&ann, false).unwrap_err();
    assert_eq!((refused.quota, refused.limit), (QuotaKind::CallsPerMinute, 120));
    limits.take_call(&bob, false).unwrap();
    advance(refused.retry_after.unwrap()).await;
    limits.take_call(&ann, false).unwrap();
    limits.take_call(&ann, false).unwrap_err();
    advance(Duration::from_mins(1)).await;
    for _ in 0..120 {
        limits.take_call(&ann, false).unwrap();
    }
    limits.take_call(&ann, false).unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn plan_of_the_token_selects_the_limits() {
    let limits = limits("calls_per_minute=1,requests_per_minute=1");
    let pro = Principal { is_pro: Some(true), ..caller("pro") };
    for _ in 0..1_000 {
        limits.take_call(&pro, false).unwrap();
    }
    let standard = Principal { is_pro: Some(false), ..caller("standard") };
    limits.take_call(&standard, true).unwrap();
    limits.take_call(&standard, true).unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn calls_are_at_least_the_requests_that_are_allowed() {
    let limits = limits("calls_per_minute=1,requests_per_minute=10");
    for _ in 0..10 {
        limits.take_call(&caller("ann"), false).unwrap();
    }
    limits.take_call(&caller("ann"), false).unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn query_bytes_come_back_over_a_day() {
    let limits = limits("embedded_bytes_per_day=1000");
    let ann = caller("ann");
    limits.take_query_bytes(&ann, 600).unwrap();
    let refused = limits.take_query_bytes(&ann, 600).unwrap_err();
    assert!(matches!(refused, MemoryError::EmbeddingBudgetExceeded { bytes_per_day: 1_000, retry_after: Some(_) }));
    let above = limits.take_query_bytes(&ann, 1_001).unwrap_err();
    assert!(matches!(above, MemoryError::EmbeddingBudgetExceeded { retry_after: None, .. }), "{above:?}");
    limits.take_query_bytes(&ann, 400).unwrap();
    limits.take_query_bytes(&caller("bob"), 1_000).unwrap();
    advance(Duration::from_hours(12)).await;
    limits.take_query_bytes(&ann, 600).unwrap_err();
    limits.take_query_bytes(&ann, 500).unwrap();
}

#[tokio::test(start_paused = true)]
async fn chats_without_a_store_are_bounded_by_streams_requests_and_tokens() {
    let limits = limits("requests_per_minute=3,concurrent_streams=2,tokens_per_day=100");
    let ann = caller("ann").user;
    let refusal = || limits.open_chat(&ann, false, TokenCount::InProcess).map(drop).unwrap_err();
    let open = || limits.open_chat(&ann, false, TokenCount::InProcess).unwrap().unwrap();
    let (first, second) = (open(), open());
    assert_eq!((refusal().quota, refusal().limit), (QuotaKind::ConcurrentStreams, 2));
    drop(first);
    let mut third = open();
    drop(second);
    assert_eq!(refusal().quota, QuotaKind::RequestsPerMinute);
    assert!(limits.open_chat(&caller("bob").user, false, TokenCount::InProcess).is_ok());
    advance(Duration::from_mins(1)).await;
    third.charge_tokens(150);
    drop(third);
    assert_eq!(refusal().quota, QuotaKind::TokensPerDay);
    advance(Duration::from_hours(13)).await;
    drop(open());
}

#[tokio::test(start_paused = true)]
async fn chat_that_is_left_early_is_charged_an_estimate() {
    let limits = limits("tokens_per_day=100");
    let (ann, bob) = (caller("ann").user, caller("bob").user);
    let mut left = limits.open_chat(&ann, false, TokenCount::InProcess).unwrap().unwrap();
    left.add_bytes(440);
    drop(left);
    assert_eq!(
        limits.open_chat(&ann, false, TokenCount::InProcess).map(drop).unwrap_err().quota,
        QuotaKind::TokensPerDay
    );
    let mut reported = limits.open_chat(&bob, false, TokenCount::InProcess).unwrap().unwrap();
    reported.add_bytes(440);
    reported.charge_tokens(50);
    drop(reported);
    assert!(limits.open_chat(&bob, false, TokenCount::InProcess).is_ok());
}

#[tokio::test(start_paused = true)]
async fn exports_are_bounded_at_a_time_and_in_a_minute() {
    let limits = limits("exports_per_minute=3");
    let ann = caller("ann");
    let open = || limits.open_export(&ann);
    let refused = |opened: Result<Option<OpenStream>, LimitExceeded>| opened.map(drop).unwrap_err().quota;
    let (first, second) = (open().unwrap(), open().unwrap());
    assert_eq!(refused(open()), QuotaKind::ConcurrentExports);
    drop(first);
    let _third = open().expect("a refused export uses nothing up");
    drop(second);
    assert_eq!(refused(open()), QuotaKind::ExportsPerMinute);
    assert!(limits.open_export(&caller("bob")).is_ok());
    advance(Duration::from_secs(20)).await;
    assert!(open().is_ok());
}

#[tokio::test(start_paused = true)]
async fn calls_beyond_the_concurrency_wait_for_their_own_user_only() {
    let limits = limits("concurrent_calls=2");
    let (ann, bob) = (caller("ann"), caller("bob"));
    let first = limits.enter(&ann, CallKind::Write, 0).await.unwrap();
    let _second = limits.enter(&ann, CallKind::Write, 0).await.unwrap();
    let mut third = Box::pin(limits.enter(&ann, CallKind::Write, 0));
    assert!((&mut third).now_or_never().is_none());
    assert!(limits.enter(&bob, CallKind::Write, 0).now_or_never().unwrap().is_ok());
    drop(first);
    assert!(third.now_or_never().unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn waiting_calls_end_and_are_bounded_by_their_size() {
    const MIB: usize = 1024 * 1024;
    let limits = limits("concurrent_calls=1");
    let ann = caller("ann");
    // One call of any size is let in.
    let running = limits.enter(&ann, CallKind::Write, 50 * MIB).await.unwrap();
    let refused = limits.enter(&ann, CallKind::Write, 0).await.map(drop).unwrap_err();
    assert_eq!((refused.quota, refused.limit), (QuotaKind::ConcurrentCalls, 1));
    drop(running);
    let running = limits.enter(&ann, CallKind::Write, 0).await.unwrap();
    let outcomes = join_all((0..4).map(|_| limits.enter(&ann, CallKind::Write, 9 * MIB))).await;
    assert!(outcomes.iter().all(Result::is_err), "3 waited in vain, and 1 was too many");
    drop((running, outcomes));
    assert_eq!(limits.users().of(&ann.user, limits.now()).writes.queued, 0);
    assert!(limits.enter(&ann, CallKind::Write, 0).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn limits_that_are_off_limit_nothing() {
    let limits = limits("off");
    let ann = caller("ann");
    for _ in 0..5_000 {
        limits.take_call(&ann, false).unwrap();
        limits.take_query_bytes(&ann, 1_000_000).unwrap();
        assert!(limits.open_export(&ann).unwrap().is_none());
        assert!(limits.open_chat(&ann.user, false, TokenCount::InProcess).unwrap().is_none());
    }
    assert_eq!(limits.embedding_budget(&ann), EmbeddingBudget::unlimited());
}

#[tokio::test(start_paused = true)]
async fn reads_and_control_calls_do_not_wait_for_writes() {
    let limits = limits("concurrent_calls=1");
    let ann = caller("ann");
    let _write = limits.enter(&ann, CallKind::Write, 0).await.unwrap();
    let _read = limits.enter(&ann, CallKind::Other, 0).now_or_never().unwrap().unwrap();
    assert!(limits.enter(&ann, CallKind::Other, 0).now_or_never().is_none());
    assert!(limits.enter(&ann, CallKind::Control, 0).now_or_never().unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn chat_counts_by_the_plan_that_it_names_without_a_token() {
    let limits = limits("calls_per_minute=1,requests_per_minute=1");
    let ann = caller("ann");
    for _ in 0..600 {
        limits.take_call(&ann, true).unwrap();
    }
    limits.take_call(&ann, false).unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn tokens_are_a_tenth_while_the_store_is_down() {
    let limits = limits("tokens_per_day=1000");
    let ann = caller("ann").user;
    let mut chat = limits.open_chat(&ann, false, TokenCount::StoreDown).unwrap().unwrap();
    chat.charge_tokens(100);
    drop(chat);
    let refused = limits.open_chat(&ann, false, TokenCount::StoreDown).map(drop).unwrap_err();
    assert_eq!((refused.quota, refused.limit), (QuotaKind::TokensPerDay, 100));
}

#[tokio::test(start_paused = true)]
async fn one_chat_locks_its_user_out_for_a_day_at_most() {
    let limits = limits("tokens_per_day=100");
    let ann = caller("ann").user;
    let mut chat = limits.open_chat(&ann, false, TokenCount::InProcess).unwrap().unwrap();
    chat.charge_tokens(1_000_000);
    drop(chat);
    advance(Duration::from_hours(25)).await;
    assert!(limits.open_chat(&ann, false, TokenCount::InProcess).is_ok());
}
