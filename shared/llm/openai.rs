//! Streaming chat completions of any OpenAI-compatible API: one request, one answer, no retry.

use std::{sync::Arc, time::Duration};

use async_stream::try_stream;
use reqwest::{Client, Response, header};
use tokio::time::{Instant, timeout_at};

use super::{
    error::{AddressHint, ErrorOrigin, ModelError, ModelErrorKind},
    model::{ModelEvent, ModelRequest, ModelStream},
};
use crate::{
    config::{EndpointConfig, ModelTimeouts},
    provider::{ErrorResponse, http_client, read_bounded_body, transport_problem},
};

mod answer;
mod calls;
mod chunk;
mod request;
mod sse;

use answer::{AnswerOutcome, PartialAnswer};
use chunk::Chunk;
use request::RequestBody;
use sse::SseChunks;

/// Wait for the end of the response after a complete answer.
const TRAILING_BYTES_TIMEOUT: Duration = Duration::from_millis(100);
/// Wait for the usage after the finish reason.
const TRAILING_USAGE_TIMEOUT: Duration = Duration::from_secs(2);
/// Of text, reasoning and tool calls together: bounds the memory that a defective provider can fill.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;
/// Upper bound of a token's length: stops a provider that ignores the token limit.
const MAX_TOKEN_BYTES: usize = 16;

#[derive(Debug)]
pub(super) struct Endpoint {
    client: Client,
    pub(super) config: EndpointConfig,
    timeouts: ModelTimeouts,
    /// Upper bound for the limit of a request.
    max_tokens: Option<u32>,
}

impl Endpoint {
    pub(super) fn new(
        config: EndpointConfig,
        timeouts: ModelTimeouts,
        max_tokens: Option<u32>,
    ) -> Result<Self, reqwest::Error> {
        Ok(Self { client: http_client(timeouts.connect)?, config, timeouts, max_tokens })
    }

    pub(super) fn answer(self: Arc<Self>, request: ModelRequest, model: String) -> ModelStream {
        Box::pin(try_stream! {
            let deadline = request.deadline;
            let max_tokens = [request.max_tokens, self.max_tokens].into_iter().flatten().min();
            let mut due = deadline.min(Instant::now() + self.timeouts.first_token);
            // Boxed: needed once, and large.
            let opening = Box::pin(self.open(&request, &model, max_tokens));
            let mut chunks = timeout_at(due, opening).await.map_err(|_| timed_out("no answer began in time"))??;
            // The provider has the messages now.
            drop(request);
            let mut answer = PartialAnswer::new(byte_limit(max_tokens));
            let result = loop {
                // `timeout_at` never fires for a provider that always has a chunk ready.
                if Instant::now() >= deadline {
                    break Err(timed_out("the deadline of the turn is exceeded"));
                }
                let chunk = match timeout_at(due, chunks.next()).await {
                    Ok(Ok(Some(chunk))) => chunk,
                    Ok(Ok(None)) => break Ok(()),
                    Ok(Err(error)) => break Err(error),
                    // The answer is complete; not all servers close the connection.
                    Err(_) if answer.has_finished() => break Ok(()),
                    Err(_) => break Err(timed_out("the answer stalled")),
                };
                let shows_progress = chunk.shows_progress();
                match answer.push(chunk) {
                    Ok(Some(delta)) => yield ModelEvent::Delta(delta),
                    Ok(None) => {}
                    Err(error) => break Err(error),
                }
                if answer.is_full() {
                    break Ok(());
                } else if answer.is_complete() {
                    due = due.min(Instant::now() + TRAILING_BYTES_TIMEOUT);
                } else if answer.has_finished() {
                    due = due.min(Instant::now() + TRAILING_USAGE_TIMEOUT);
                } else if shows_progress {
                    due = deadline.min(Instant::now() + self.timeouts.idle);
                }
            };
            // A failed answer has spent tokens too.
            if let Some(tokens) = answer.usage() {
                yield ModelEvent::Usage { model: model.clone(), tokens };
            }
            result?;
            let outcome = answer.finish(chunks.is_done())?;
            chunks.drain().await;
            yield match outcome {
                AnswerOutcome::Finished(finish) => ModelEvent::Finished { model, finish },
                AnswerOutcome::ToolsCalled { calls, reasoning } => ModelEvent::ToolsCalled { model, calls, reasoning },
            };
        })
    }

    async fn open(
        &self,
        request: &ModelRequest,
        model: &str,
        max_tokens: Option<u32>,
    ) -> Result<ResponseChunks, ModelError> {
        ResponseChunks::from_response(self.send(request, model, max_tokens).await?).await
    }

    async fn send(&self, request: &ModelRequest, model: &str, max_tokens: Option<u32>) -> Result<Response, ModelError> {
        let mut call = self
            .client
            .post(format!("{}/chat/completions", self.config.base_url))
            .header(header::ACCEPT, "text/event-stream")
            .json(&RequestBody::new(&self.config, request, model, max_tokens));
        if let Some(key) = &self.config.api_key {
            call = call.bearer_auth(key.expose());
        }
        let response = call.send().await.map_err(transport_error)?;
        if response.status().is_success() { Ok(response) } else { Err(ErrorResponse::read(response).await.into()) }
    }

    /// Sends no key, because any response will do.
    pub(super) async fn warm_up(&self) {
        drop(self.client.head(&self.config.base_url).send().await);
    }

    pub(super) fn origin(&self, model: &str, kind: ModelErrorKind) -> Box<ErrorOrigin> {
        use ModelErrorKind as Kind;
        let address = self.config.url_variable.to_owned();
        let variables_to_check = match kind {
            Kind::Unauthorized | Kind::QuotaExhausted => vec![self.config.key_variable.clone()],
            Kind::AddressNotFound | Kind::Malformed => vec![address],
            Kind::ModelNotFound => vec!["LLM_MODEL_NAME".to_owned(), address],
            Kind::Unavailable => vec![address],
            _ => Vec::new(),
        };
        let address_hint = (kind == Kind::AddressNotFound).then(|| address_hint(&self.config.base_url)).flatten();
        Box::new(ErrorOrigin {
            provider: self.config.provider.name().to_owned(),
            model: model.to_owned(),
            variables_to_check,
            address_hint,
        })
    }
}

/// Most base URLs have one `/v1`, which is often forgotten or doubled.
fn address_hint(base_url: &str) -> Option<AddressHint> {
    let is_version =
        |part: &str| part.strip_prefix('v').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    match base_url.split('/').filter(|part| is_version(part)).count() {
        0 => Some(AddressHint::VersionMissing),
        1 => None,
        _ => Some(AddressHint::VersionTwice),
    }
}

fn byte_limit(max_tokens: Option<u32>) -> usize {
    max_tokens.map_or(MAX_ANSWER_BYTES, |tokens| {
        usize::try_from(tokens).unwrap_or(usize::MAX).saturating_mul(MAX_TOKEN_BYTES).min(MAX_ANSWER_BYTES)
    })
}

fn timed_out(detail: &str) -> ModelError {
    ModelError::new(ModelErrorKind::Timeout, detail)
}

fn transport_error(error: reqwest::Error) -> ModelError {
    let problem = transport_problem(error);
    let kind = if problem.is_timeout { ModelErrorKind::Timeout } else { ModelErrorKind::Unavailable };
    ModelError { problem: Some(problem.code), ..ModelError::new(kind, problem.detail) }
}

/// The chunks of a streamed response, or the single one of a server that does not stream.
enum ResponseChunks {
    Stream(Box<SseChunks>),
    Whole(Option<Chunk>),
}

impl ResponseChunks {
    async fn from_response(mut response: Response) -> Result<Self, ModelError> {
        let content_type = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        match content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim() {
            "text/html" => Err(ModelError::new(ModelErrorKind::Malformed, "the response is a web page (text/html)")),
            "application/json" => {
                let body = read_bounded_body(&mut response, MAX_ANSWER_BYTES)
                    .await
                    .map_err(|error| ModelError::new(ModelErrorKind::Truncated, transport_problem(error).detail))?;
                let body = body.ok_or_else(|| ModelError::new(ModelErrorKind::Malformed, "the answer is too large"))?;
                Ok(Self::Whole(Some(Chunk::parse(&body)?)))
            }
            // Some servers send a stream without its content type.
            _ => Ok(Self::Stream(Box::new(SseChunks::new(response.bytes_stream())))),
        }
    }

    async fn next(&mut self) -> Result<Option<Chunk>, ModelError> {
        match self {
            Self::Stream(chunks) => chunks.next().await,
            Self::Whole(chunk) => Ok(chunk.take()),
        }
    }

    fn is_done(&self) -> bool {
        match self {
            Self::Stream(chunks) => chunks.is_done(),
            Self::Whole(_) => true,
        }
    }

    /// Reads the response to its end, so that its connection can be reused.
    async fn drain(&mut self) {
        if let Self::Stream(chunks) = self
            && chunks.is_done()
        {
            let _ = tokio::time::timeout(TRAILING_BYTES_TIMEOUT, chunks.drain()).await;
        }
    }
}

/// Reads a whole answer: its text, and how it ended. For tests, fuzzing and benchmarks of the parser.
pub async fn parse_pieces(pieces: Vec<bytes::Bytes>) -> (String, String) {
    let pieces = pieces.into_iter().map(Ok::<_, std::io::Error>);
    let mut chunks = SseChunks::new(futures_util::stream::iter(pieces));
    let (mut answer, mut text) = (PartialAnswer::new(MAX_ANSWER_BYTES), String::new());
    let outcome = loop {
        match chunks.next().await {
            Ok(Some(chunk)) => match answer.push(chunk) {
                Ok(delta) => text.extend(delta),
                Err(error) => break Err(error),
            },
            Ok(None) => break answer.finish(chunks.is_done()),
            Err(error) => break Err(error),
        }
    };
    (text, format!("{:?}", outcome.map_err(|error| error.kind)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_hint_finds_missing_or_doubled_version() {
        assert_eq!(address_hint("https://api.openai.com"), Some(AddressHint::VersionMissing));
        assert_eq!(address_hint("https://api.openai.com/v1/v1"), Some(AddressHint::VersionTwice));
        assert_eq!(address_hint("https://dashscope.aliyuncs.com/compatible-mode/v1"), None);
        assert_eq!(address_hint("https://open.bigmodel.cn/api/paas/v4"), None);
    }
}
