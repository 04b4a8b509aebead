//! Waits for a server that limits how much a user calls.

use std::time::Duration;

use tokio::time::sleep;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// A longer delay is an error: it is that of a budget of the day.
pub const MAX_DELAY: Duration = Duration::from_mins(1);
/// A server may ask for milliseconds, and would refuse every other call.
const MIN_DELAY: Duration = Duration::from_secs(1);
/// Of one call, until another user of the same name must be the cause.
const MAX_WAITS: usize = 100;

pub fn requested_delay(status: &Status) -> Option<Duration> {
    status.get_details_retry_info().and_then(|info| info.retry_delay)
}

/// `None`: the status is another error, or waiting does not help.
fn limit_delay(status: &Status) -> Option<Duration> {
    let delay = requested_delay(status).filter(|_| status.code() == Code::ResourceExhausted)?;
    (delay <= MAX_DELAY).then_some(delay.max(MIN_DELAY))
}

/// Repeats a call that exceeds a limit for as long as the server says.
pub async fn while_limited<T>(
    print_line: impl Fn(&str),
    call: impl AsyncFn() -> Result<T, Status>,
) -> Result<T, Status> {
    for _ in 0..MAX_WAITS {
        let status = match call().await {
            Err(status) => status,
            done => return done,
        };
        let Some(delay) = limit_delay(&status) else { return Err(status) };
        let seconds = delay.as_secs_f32();
        print_line(&format!("The server limits this user ({}); going on in {seconds} s.", status.message()));
        sleep(delay).await;
    }
    call().await
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tonic_types::ErrorDetails;

    use super::*;

    fn limited(delay: Duration) -> Status {
        let details = ErrorDetails::with_retry_info(Some(delay));
        Status::with_error_details(Code::ResourceExhausted, "too many", details)
    }

    #[test]
    fn only_a_limit_that_ends_soon_is_waited_for() {
        assert_eq!(limit_delay(&limited(Duration::from_millis(20))), Some(Duration::from_secs(1)));
        assert_eq!(limit_delay(&limited(Duration::from_secs(7))), Some(Duration::from_secs(7)));
        assert_eq!(limit_delay(&limited(Duration::from_hours(7))), None);
        assert_eq!(limit_delay(&Status::resource_exhausted("the message is too large")), None);
        assert_eq!(limit_delay(&Status::unavailable("busy")), None);
    }

    #[tokio::test(start_paused = true)]
    async fn limited_call_goes_on_when_the_limit_ends() {
        let calls = AtomicUsize::new(0);
        let call = async || match calls.fetch_add(1, Ordering::Relaxed) {
            0..5 => Err(limited(Duration::from_secs(9))),
            _ => Ok("done"),
        };
        assert_eq!(while_limited(|_| {}, call).await.unwrap(), "done");
        let refused = while_limited(|_| {}, async || Err::<(), _>(limited(Duration::from_hours(7)))).await;
        assert_eq!(refused.unwrap_err().code(), Code::ResourceExhausted);
    }

    #[tokio::test(start_paused = true)]
    async fn limit_without_end_is_an_error() {
        let refused = while_limited(|_| {}, async || Err::<(), _>(limited(Duration::from_secs(1)))).await;
        assert_eq!(refused.unwrap_err().code(), Code::ResourceExhausted);
    }
}
