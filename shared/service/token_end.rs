//! The end of streams whose token has expired. A call is authenticated once, but its stream may outlast the token.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::time::{Instant, sleep_until};

use crate::{chat::TurnFailure, identity::Principal};

/// How long a stream goes on after its token has expired: most answers end within it, and clocks differ.
const GRACE: Duration = Duration::from_mins(1);

/// `None` = the principal has no token that expires.
pub(super) fn stream_end(principal: &Principal) -> Option<Instant> {
    let end = Duration::from_secs(principal.expires_at?).saturating_add(GRACE);
    // A clock before 1970 reads as 1970.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // `None`: too far away for the clock.
    Instant::now().checked_add(end.saturating_sub(now))
}

/// Never, if there is no end.
pub(super) async fn passed(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}

/// Interrupts a turn that ends with its call. Most calls have no token that expires, and pay for no timer.
pub(super) fn or_token_expired(
    interrupted: impl Future<Output = TurnFailure> + Send + 'static,
    token_end: Option<Instant>,
) -> BoxFuture<'static, TurnFailure> {
    let Some(token_end) = token_end else { return interrupted.boxed() };
    async move {
        tokio::select! {
            failure = interrupted => failure,
            () = sleep_until(token_end) => TurnFailure::TokenExpired,
        }
    }
    .boxed()
}
