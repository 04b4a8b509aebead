//! Shared by all parts of the benchmark.

use std::time::Duration;

use agent_service::proto::agent_v1 as pb;
use tonic::{Request, metadata::MetadataValue};

pub type BenchResult<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

pub const LOG_LEVEL: &str = "warn";
/// Ends a measurement that hangs.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Pause between two deltas of the provider.
pub const PACE: Duration = Duration::from_millis(20);
/// Deltas of an answer of the provider.
pub const DELTAS: usize = 100;

/// Has one of the longest canned answers, about 100 chunks.
const QUESTION: &str = "What is the difference between eigenvalues and eigenvectors?";

pub fn request() -> pb::ChatRequest {
    pb::ChatRequest {
        user_id: "user-0".to_owned(),
        input: Some(pb::chat_request::Input::Message(QUESTION.to_owned())),
        user_profile: Some(pb::UserProfile { language: "en".to_owned(), ..Default::default() }),
        ..Default::default()
    }
}

pub fn without_retrieval(request: pb::ChatRequest) -> Request<pb::ChatRequest> {
    let mut request = Request::new(request);
    request.metadata_mut().insert("x-recall", MetadataValue::from_static("off"));
    request
}

pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
