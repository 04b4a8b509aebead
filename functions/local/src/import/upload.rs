//! Uploads documents and memories, with retries while the server is unavailable.

use std::time::Duration;

use agent_service::proto::agent_v1::{
    AddMemoriesRequest, AddMemoriesResponse, IngestDocumentRequest, MemoryInput,
    memory_service_client::MemoryServiceClient,
};
use tokio::time::sleep;
use tonic::{Code, Response, Status};

use super::progress::ImportProgress;
use crate::{
    connection::{AuthenticatedChannel, describe_status, root_cause},
    retry::{MAX_DELAY, requested_delay, while_limited},
};

/// Retry backoff; after the last one the import stops.
const RETRY_DELAYS: [Duration; 4] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];

#[derive(Debug)]
pub enum ImportError {
    /// This item cannot be imported; the import continues.
    Rejected(String),
    Aborted(String),
}

pub struct Uploader {
    client: MemoryServiceClient<AuthenticatedChannel>,
    user: String,
    progress: ImportProgress,
}

impl Uploader {
    pub fn new(channel: AuthenticatedChannel, user: String, progress: ImportProgress) -> Self {
        Self { client: MemoryServiceClient::new(channel), user, progress }
    }

    pub async fn ingest_document(&mut self, document: IngestDocumentRequest) -> Result<u64, ImportError> {
        let request = IngestDocumentRequest { user_id: self.user.clone(), ..document };
        let ingested = self.call(async |mut client| client.ingest_document(request.clone()).await).await?;
        Ok(u64::try_from(ingested.chunks).unwrap_or_default())
    }

    /// The server stores all or none of them.
    pub async fn add_memories<'m>(
        &mut self,
        memories: impl Iterator<Item = &'m MemoryInput>,
    ) -> Result<AddMemoriesResponse, ImportError> {
        let request = AddMemoriesRequest { user_id: self.user.clone(), memories: memories.cloned().collect() };
        self.call(async |mut client| client.add_memories(request.clone()).await).await
    }

    async fn call<T>(
        &mut self,
        call: impl AsyncFn(MemoryServiceClient<AuthenticatedChannel>) -> Result<Response<T>, Status>,
    ) -> Result<T, ImportError> {
        let mut delays = RETRY_DELAYS.into_iter();
        loop {
            let print_line = |line: &str| self.progress.print_line(line);
            let status = match while_limited(print_line, async || call(self.client.clone()).await).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => status,
            };
            // Only a status that the client made itself has a source.
            let cause = std::error::Error::source(&status).map(|source| root_cause(source).to_string());
            if cause.is_none() && !is_retryable(&status) {
                return Err(import_error(status));
            }
            let cause = cause.unwrap_or_else(|| status.message().to_owned());
            let Some(delay) = delays.next() else {
                return Err(ImportError::Aborted(format!("the server is unavailable ({cause})")));
            };
            let delay = requested_delay(&status).map_or(delay, |requested| requested.clamp(delay, MAX_DELAY));
            let seconds = delay.as_secs_f32();
            self.progress.print_line(&format!("The server is unavailable ({cause}); retrying in {seconds} s."));
            sleep(delay).await;
        }
    }
}

fn is_retryable(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable => true,
        // A limit with a delay has been waited for, unless it is that of the day.
        Code::ResourceExhausted => requested_delay(status).is_none() && !forbids_retry(status),
        _ => false,
    }
}

/// Of a request that exceeds a limit alone.
fn forbids_retry(status: &Status) -> bool {
    status.metadata().get("grpc-retry-pushback-ms").is_some_and(|pushback| pushback == "-1")
}

/// Skips an item only if the item itself is invalid: any other skipped item would be recorded as done and never be retried.
fn import_error(status: Status) -> ImportError {
    match status.code() {
        // A message that is too large is OUT_OF_RANGE. The index is noise where the call had one memory.
        Code::InvalidArgument | Code::OutOfRange => ImportError::Rejected(status.message().replace("memories[0].", "")),
        Code::Internal => ImportError::Aborted(format!("the server failed ({}); its log says why", status.message())),
        _ => ImportError::Aborted(describe_status(status)),
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::{ErrorDetails, StatusExt as _};

    use super::*;

    #[test]
    fn only_invalid_items_are_skipped() {
        for code in (0..17).map(Code::from_i32).filter(|code| *code != Code::Ok) {
            let is_skipped = matches!(import_error(Status::new(code, "no")), ImportError::Rejected(_));
            assert_eq!(is_skipped, matches!(code, Code::InvalidArgument | Code::OutOfRange), "{code:?}");
        }
    }

    #[test]
    fn overloaded_server_is_retried_after_its_requested_delay() {
        let with_delay = |code| {
            let details = ErrorDetails::with_retry_info(Some(Duration::from_hours(7)));
            Status::with_error_details(code, "no", details)
        };
        let busy = with_delay(Code::Unavailable);
        assert!(is_retryable(&busy));
        assert_eq!(requested_delay(&busy), Some(Duration::from_hours(7)));
        assert!(is_retryable(&Status::resource_exhausted("too many")));
        assert!(!is_retryable(&with_delay(Code::ResourceExhausted)), "the import would wait for hours");
        assert!(!is_retryable(&Status::internal("a defect")));
        let mut too_large = Status::resource_exhausted("more than a limit allows");
        too_large.metadata_mut().insert("grpc-retry-pushback-ms", "-1".parse().unwrap());
        assert!(!is_retryable(&too_large));
    }
}
