//! Failed requests: which are repeated, and what a call is told. DynamoDB does not process requests, or parts of a batch, if
//! the table or a user's partition is over its throughput.

use std::time::Duration;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use tokio::time::sleep;

use crate::{
    conversation::error::{Result, StoreError},
    error::with_causes,
};

/// Together at most some seconds, as long as a burst lasts; a call ends before its deadline.
const MAX_FRUITLESS_REQUESTS: u32 = 9;
const INITIAL_BACKOFF: Duration = Duration::from_millis(10);
const MAX_BACKOFF: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct ThrottleBackoff {
    fruitless_requests: u32,
}

impl ThrottleBackoff {
    /// Waits before what is left is requested again. A batch that makes progress may take any number of requests.
    pub(super) async fn wait(&mut self, has_progress: bool) -> Result<()> {
        self.fruitless_requests = if has_progress { 0 } else { self.fruitless_requests + 1 };
        if self.fruitless_requests > MAX_FRUITLESS_REQUESTS {
            return Err(StoreError::Throttled);
        }
        let longest = INITIAL_BACKOFF.saturating_mul(2_u32.saturating_pow(self.fruitless_requests)).min(MAX_BACKOFF);
        // Full jitter, so that callers that were throttled together do not come back together.
        sleep(longest.mul_f64(fastrand::f64())).await;
        Ok(())
    }
}

/// Repeats a request that is throttled beyond the retries of the SDK.
pub(super) async fn retry_throttled<T, E, F>(send: impl Fn() -> F) -> Result<T>
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
    F: Future<Output = Result<T, SdkError<E>>>,
{
    let mut backoff = ThrottleBackoff::default();
    loop {
        match send().await {
            Ok(answer) => return Ok(answer),
            Err(error) if is_transient(&error) => backoff.wait(false).await?,
            Err(error) => return Err(store_error(error)),
        }
    }
}

/// A conflict with a transaction, or throttling that outlasted the SDK's retries.
pub(super) fn is_transient<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
    let code = error.as_service_error().and_then(|refusal| refusal.meta().code());
    code.is_some_and(|code| code == "TransactionConflictException" || is_throttling(code))
}

fn is_throttling(code: &str) -> bool {
    matches!(code, "ThrottlingException" | "ProvisionedThroughputExceededException" | "RequestLimitExceeded")
}

/// Without text of the user: DynamoDB's messages may quote values.
pub(super) fn store_error<E>(error: SdkError<E>) -> StoreError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    match &error {
        SdkError::TimeoutError(_) => StoreError::Timeout,
        SdkError::DispatchFailure(failure) if failure.is_timeout() => StoreError::Timeout,
        SdkError::DispatchFailure(failure) if failure.is_io() => StoreError::Unreachable,
        SdkError::DispatchFailure(_) => StoreError::Dynamo(match credentials_error(&error) {
            Some(error) => format!("the AWS credentials cannot be loaded: {}", with_causes(error)),
            None => "the request was not sent".to_owned(),
        }),
        SdkError::ServiceError(refusal) => {
            let refusal = refusal.err().meta();
            let code = refusal.code().unwrap_or("an error without a code");
            if is_throttling(code) {
                return StoreError::Throttled;
            }
            // These messages name the account and the table only.
            let is_safe = matches!(code, "AccessDeniedException" | "ResourceNotFoundException");
            StoreError::Dynamo(match refusal.message().filter(|_| is_safe) {
                Some(message) => format!("{code}: {message}"),
                None => code.to_owned(),
            })
        }
        SdkError::ConstructionFailure(_) => StoreError::Dynamo("the request was not built".to_owned()),
        _ => StoreError::Dynamo("the response is unreadable".to_owned()),
    }
}

/// Names profiles and files.
fn credentials_error<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e CredentialsError> {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.find_map(|cause| cause.downcast_ref())
}
