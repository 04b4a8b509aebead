//! Sending documents and memories, again where the server is out of reach for a moment.

use std::time::Duration;

use agent_service::proto::agent_v1::{
    AddMemoriesRequest, AddMemoriesResponse, IngestDocumentRequest, MemoryInput,
    memory_service_client::MemoryServiceClient,
};
use tokio::time::sleep;
use tonic::{Code, Response, Status};

use super::progress::Bar;
use crate::connection::{Connected, innermost, refusal};

/// How long to wait before each further try.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];

/// So many failures of the server in a row are not about what is sent: its embedder may lack a key.
const MAX_FAILURES: u32 = 30;

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
    /// Calls in a row that failed through no fault of theirs.
    failures: u32,
}

impl Sender {
    pub fn new(channel: Connected, user: String, bar: Bar) -> Self {
        Self { client: MemoryServiceClient::new(channel), user, bar, failures: 0 }
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
                Ok(response) => {
                    self.failures = 0;
                    return Ok(response.into_inner());
                }
                Err(status) => status,
            };
            // Only a status that was made on this side has a source.
            let cause = std::error::Error::source(&status).map(|source| innermost(source).to_string());
            if cause.is_none() && status.code() != Code::Unavailable {
                return Err(self.failure(status));
            }
            let cause = cause.unwrap_or_else(|| status.message().to_owned());
            let Some(pause) = pauses.next() else {
                return Err(Failure::Stopped(format!("the server is out of reach ({cause})")));
            };
            self.bar.say(&format!("The server is out of reach ({cause}); next try in {} s.", pause.as_secs_f32()));
            sleep(pause).await;
        }
    }

    /// What a status means for the import.
    fn failure(&mut self, status: Status) -> Failure {
        match status.code() {
            // Of one memory there is no need to say that it is the first.
            Code::InvalidArgument => Failure::Refused(status.message().replace("memories[0].", "")),
            Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented => Failure::Stopped(refusal(status)),
            _ if self.failures >= MAX_FAILURES => Failure::Stopped(format!(
                "the server failed {MAX_FAILURES} times in a row ({}); its log says why",
                status.message()
            )),
            _ => {
                self.failures += 1;
                Failure::Refused(refusal(status))
            }
        }
    }
}
