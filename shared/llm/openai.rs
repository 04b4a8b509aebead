//! Streaming chat completions of any OpenAI-compatible API: one request, one answer, no second try.

use std::{sync::Arc, time::Duration};

use async_stream::try_stream;
use reqwest::{Client, Response, header};
use tokio::time::{Instant, timeout_at};

use super::{ErrorOrigin, ModelError, ModelErrorKind, ModelEvent, ModelRequest, ModelStream};
use crate::{
    config::{EndpointConfig, ModelTimeouts},
    provider::{ErrorResponse, read_bounded_body, transport_problem},
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

/// How long to wait for the end of a response whose answer is complete.
const TRAILING_BYTES_TIMEOUT: Duration = Duration::from_millis(100);
/// How long to wait for the usage of an answer whose end was told.
const TRAILING_USAGE_TIMEOUT: Duration = Duration::from_secs(2);
/// Most bytes of an answer, its thought and its calls together: no model says that much, and a defect must not fill the
/// memory.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;
/// Bytes that a token has at most: a provider that ignores the limit of tokens is stopped by this.
const MAX_TOKEN_BYTES: usize = 16;

/// A model and how to reach it.
#[derive(Debug)]
pub(super) struct Endpoint {
    client: Client,
    pub(super) config: EndpointConfig,
    timeouts: ModelTimeouts,
    /// Most tokens of an answer, whatever a request says.
    max_tokens: Option<u32>,
}

impl Endpoint {
    /// An endpoint that keeps connections to its provider open between answers.
    pub(super) fn new(
        config: EndpointConfig,
        limits: ModelTimeouts,
        max_tokens: Option<u32>,
    ) -> Result<Self, reqwest::Error> {
        Ok(Self { client: crate::http_client(limits.connect)?, config, timeouts: limits, max_tokens })
    }

    /// One answer of a model. Nothing is asked before the stream is polled; dropping it cancels the request.
    pub(super) fn answer(self: Arc<Self>, request: ModelRequest, model: String) -> ModelStream {
        Box::pin(try_stream! {
            let end = request.deadline;
            let max_tokens = [request.max_tokens, self.max_tokens].into_iter().flatten().min();
            let mut due = end.min(Instant::now() + self.timeouts.first_token);
            let opening = self.send(&request, &model, max_tokens);
            let response = timeout_at(due, opening).await.map_err(|_| timed_out("no answer began in time"))??;
            let limit = max_tokens.map_or(MAX_ANSWER_BYTES, |tokens| {
                usize::try_from(tokens).unwrap_or(usize::MAX).saturating_mul(MAX_TOKEN_BYTES).min(MAX_ANSWER_BYTES)
            });
            let mut answer = PartialAnswer::new(limit);
            let mut chunks = timeout_at(due, ResponseChunks::from_response(response)).await.map_err(|_| timed_out("no answer came in time"))??;
            let ended = loop {
                // A provider that never pauses would never be found late otherwise.
                if Instant::now() >= end {
                    break Err(timed_out("the time for the turn is over"));
                }
                let chunk = match timeout_at(due, chunks.next()).await {
                    Ok(Ok(Some(chunk))) => chunk,
                    Ok(Ok(None)) => break Ok(()),
                    Ok(Err(error)) => break Err(error),
                    // Only what follows the end was still awaited, and not all servers close their connection.
                    Err(_) if answer.has_finished() => break Ok(()),
                    Err(_) => break Err(timed_out("the answer stalled")),
                };
                let alive = chunk.shows_progress();
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
                } else if alive {
                    due = end.min(Instant::now() + self.timeouts.idle);
                }
            };
            // What was spent is told however it ended.
            if let Some(tokens) = answer.usage() {
                yield ModelEvent::Usage { model: model.clone(), tokens };
            }
            ended?;
            let ended = answer.finish(chunks.is_done())?;
            chunks.drain().await;
            yield match ended {
                AnswerOutcome::Finished(finish) => ModelEvent::Finished { model, finish },
                AnswerOutcome::ToolsCalled { calls, reasoning } => ModelEvent::ToolsCalled { model, calls, reasoning },
            };
        })
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

    /// Opens a connection. Without the key: any answer will do.
    pub(super) async fn warm_up(&self) {
        drop(self.client.head(&self.config.base_url).send().await);
    }

    /// Whose failure it is, for whoever runs the service.
    pub(super) fn origin(&self, model: &str, kind: ModelErrorKind) -> Box<ErrorOrigin> {
        use ModelErrorKind as Kind;
        let address = self.config.url_variable.to_owned();
        let check = match kind {
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
            variables_to_check: check,
            address_hint,
        })
    }
}

/// What an address is most likely wrong in: most have one `/v1`, and it is often forgotten or written twice.
fn address_hint(base_url: &str) -> Option<&'static str> {
    let is_version =
        |part: &str| part.strip_prefix('v').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    match base_url.split('/').filter(|part| is_version(part)).count() {
        0 => Some("the address has no /v1 at its end"),
        1 => None,
        _ => Some("the address has /v1 twice"),
    }
}

fn timed_out(detail: &str) -> ModelError {
    ModelError::new(ModelErrorKind::Timeout, detail)
}

fn transport_error(error: reqwest::Error) -> ModelError {
    let problem = transport_problem(error);
    let kind = if problem.is_timeout { ModelErrorKind::Timeout } else { ModelErrorKind::Unavailable };
    ModelError { problem: Some(problem.code), ..ModelError::new(kind, problem.detail) }
}

/// The chunks of a response: of a stream, or the single one of a server that does not stream.
enum ResponseChunks {
    Stream(Box<SseChunks>),
    Whole(Option<Chunk>),
}

impl ResponseChunks {
    async fn from_response(mut response: Response) -> Result<Self, ModelError> {
        let content_type = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        match content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim() {
            "text/html" => Err(ModelError::new(ModelErrorKind::Malformed, "a web page came instead of an answer")),
            "application/json" => {
                let body = read_bounded_body(&mut response, MAX_ANSWER_BYTES)
                    .await
                    .map_err(|error| ModelError::new(ModelErrorKind::Truncated, transport_problem(error).detail))?;
                let body = body.ok_or_else(|| ModelError::new(ModelErrorKind::Malformed, "the answer is too large"))?;
                Ok(Self::Whole(Some(Chunk::parse(&body)?)))
            }
            // Some servers do not name the type of a stream.
            _ => Ok(Self::Stream(Box::new(SseChunks::new(response.bytes_stream())))),
        }
    }

    async fn next(&mut self) -> Result<Option<Chunk>, ModelError> {
        match self {
            Self::Stream(events) => events.next().await,
            Self::Whole(chunk) => Ok(chunk.take()),
        }
    }

    fn is_done(&self) -> bool {
        match self {
            Self::Stream(events) => events.is_done(),
            Self::Whole(_) => true,
        }
    }

    /// Reads to the end: a response that was read whole leaves its connection for the next answer.
    async fn drain(&mut self) {
        if let Self::Stream(events) = self
            && events.is_done()
        {
            let _ = tokio::time::timeout(TRAILING_BYTES_TIMEOUT, events.drain()).await;
        }
    }
}

/// What a body of these pieces comes to, in words: the text, and how it ended. For tests of the parser; the pieces of a body
/// say nothing, so that any cut of the same bytes comes to the same.
#[cfg(any(test, fuzzing))]
pub async fn parse_pieces(pieces: Vec<bytes::Bytes>) -> (String, String) {
    let pieces = pieces.into_iter().map(Ok::<_, std::io::Error>);
    let mut events = SseChunks::new(futures_util::stream::iter(pieces));
    let (mut answer, mut text) = (PartialAnswer::new(MAX_ANSWER_BYTES), String::new());
    let ended = loop {
        match events.next().await {
            Ok(Some(chunk)) => match answer.push(chunk) {
                Ok(delta) => text.extend(delta),
                Err(error) => break Err(error),
            },
            Ok(None) => break answer.finish(events.is_done()),
            Err(error) => break Err(error),
        }
    };
    (text, format!("{:?}", ended.map_err(|error| error.kind)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forgotten_or_doubled_version_is_told_from_the_address_itself() {
        assert!(address_hint("https://api.openai.com").unwrap().contains("no /v1"));
        assert!(address_hint("https://api.openai.com/v1/v1").unwrap().contains("twice"));
        assert_eq!(address_hint("https://dashscope.aliyuncs.com/compatible-mode/v1"), None);
        assert_eq!(address_hint("https://open.bigmodel.cn/api/paas/v4"), None);
    }
}
