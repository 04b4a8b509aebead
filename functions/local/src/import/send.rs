//! Sending documents and memories, again where the server is out of reach for a moment.

use std::time::Duration;

use agent_service::proto::agent_v1::{
    AddMemoriesRequest, AddMemoriesResponse, IngestDocumentRequest, MemoryInput,
    memory_service_client::MemoryServiceClient,
};
use tokio::time::sleep;
use tonic::{Code, Response, Status};
use tonic_types::StatusExt as _;

use super::progress::Bar;
use crate::connection::{Connected, innermost, refusal};

/// How long to wait before each further try.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];

/// Longest wait that a server may ask for.
const MAX_PAUSE: Duration = Duration::from_mins(1);

/// Why something was not imported.
#[derive(Debug)]
pub enum Failure {
    /// This can not be imported; others may.
    Refused(String),
    /// Nothing can be imported now.
    Stopped(String),
}

/// Calls on behalf of one user.
pub struct Sender {
    client: MemoryServiceClient<Connected>,
    user: String,
    bar: Bar,
}

impl Sender {
    pub fn new(channel: Connected, user: String, bar: Bar) -> Self {
        Self { client: MemoryServiceClient::new(channel), user, bar }
    }

    /// Sends a document and gives the number of its chunks.
    pub async fn document(&mut self, document: IngestDocumentRequest) -> Result<u64, Failure> {
        let request = IngestDocumentRequest { user_id: self.user.clone(), ..document };
        let ingested = self.call(async |mut client| client.ingest_document(request.clone()).await).await?;
        Ok(u64::try_from(ingested.chunks).unwrap_or_default())
    }

    /// Sends memories, all or none of which are stored.
    pub async fn memories<'m>(
        &mut self,
        memories: impl Iterator<Item = &'m MemoryInput>,
    ) -> Result<AddMemoriesResponse, Failure> {
        let request = AddMemoriesRequest { user_id: self.user.clone(), memories: memories.cloned().collect() };
        self.call(async |mut client| client.add_memories(request.clone()).await).await
    }

    async fn call<T>(
        &mut self,
        call: impl AsyncFn(MemoryServiceClient<Connected>) -> Result<Response<T>, Status>,
    ) -> Result<T, Failure> {
        let mut pauses = PAUSES.into_iter();
        loop {
            let status = match call(self.client.clone()).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => status,
            };
            // Only a status that was made on this side has a source.
            let cause = std::error::Error::source(&status).map(|source| innermost(source).to_string());
            if cause.is_none() && !may_succeed_later(&status) {
                return Err(failure(status));
            }
            let cause = cause.unwrap_or_else(|| status.message().to_owned());
            let Some(pause) = pauses.next() else {
                return Err(Failure::Stopped(format!("the server is out of reach ({cause})")));
            };
            let pause = asked_pause(&status).map_or(pause, |asked| asked.clamp(pause, MAX_PAUSE));
            self.bar.say(&format!("The server is out of reach ({cause}); next try in {} s.", pause.as_secs_f32()));
            sleep(pause).await;
        }
    }
}

fn may_succeed_later(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::ResourceExhausted)
}

/// How long the server asks to wait.
fn asked_pause(status: &Status) -> Option<Duration> {
    status.get_details_retry_info().and_then(|info| info.retry_delay)
}

/// What a status means for the import. Only what is wrong with what was sent may be passed over: all else would be noted as
/// done and never come again.
fn failure(status: Status) -> Failure {
    match status.code() {
        // Of one memory there is no need to say that it is the first. A message that is too large is out of range.
        Code::InvalidArgument | Code::OutOfRange => Failure::Refused(status.message().replace("memories[0].", "")),
        Code::Internal => Failure::Stopped(format!("the server failed ({}); its log says why", status.message())),
        _ => Failure::Stopped(refusal(status)),
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn only_what_is_wrong_with_what_was_sent_is_passed_over() {
        for code in (0..17).map(Code::from_i32).filter(|code| *code != Code::Ok) {
            let is_passed_over = matches!(failure(Status::new(code, "no")), Failure::Refused(_));
            assert_eq!(is_passed_over, matches!(code, Code::InvalidArgument | Code::OutOfRange), "{code:?}");
        }
    }

    #[test]
    fn a_server_that_has_too_much_to_do_is_asked_again_when_it_says() {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(7)));
        let busy = Status::with_error_details(Code::ResourceExhausted, "too many", details);
        assert!(may_succeed_later(&busy));
        assert_eq!(asked_pause(&busy), Some(Duration::from_secs(7)));
        assert_eq!(asked_pause(&Status::resource_exhausted("too many")), None);
        assert!(!may_succeed_later(&Status::internal("a defect")));
    }
}
