//! Streaming chat completions of any OpenAI-compatible API.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use async_stream::try_stream;
use futures_util::future::BoxFuture;
use reqwest::{Client, Response, header};
use serde::Serialize;
use tokio::time::timeout_at;

use super::{
    ChatModel, Finish, Message, ModelError, ModelErrorKind, ModelEvent, ModelRequest, ModelStream, Role, TokenUsage,
};
use crate::{
    config::{Provider, ProviderConfig},
    error::with_causes,
};

mod chunk;
mod events;

use chunk::{Chunk, ErrorBody};
use events::Events;

/// Most bytes of an error answer that are read.
const MAX_ERROR_BYTES: usize = 64 * 1024;
/// How long to wait for the end of a response whose answer is complete.
const LAST_BYTES: Duration = Duration::from_millis(100);

/// A provider's model.
#[derive(Debug, Clone)]
pub struct OpenAiModel {
    client: Client,
    config: Arc<ProviderConfig>,
}

impl OpenAiModel {
    /// A model that keeps connections to its provider open between answers.
    ///
    /// # Errors
    /// The HTTP client can not be built.
    pub fn new(config: ProviderConfig) -> Result<Self, reqwest::Error> {
        let client = crate::http_client(config.limits.connect)?;
        Ok(Self { client, config: Arc::new(config) })
    }

    async fn open(&self, request: &ModelRequest) -> Result<Response, ModelError> {
        let mut call = self
            .client
            .post(format!("{}/chat/completions", self.config.base_url))
            .header(header::ACCEPT, "text/event-stream")
            .json(&Body::new(&self.config, request));
        if let Some(key) = &self.config.api_key {
            call = call.bearer_auth(key.expose());
        }
        let response = call.send().await.map_err(transport_error)?;
        if response.status().is_success() { Ok(response) } else { Err(refused(response).await) }
    }
}

impl ChatModel for OpenAiModel {
    fn answer(&self, request: ModelRequest) -> ModelStream {
        let model = self.clone();
        Box::pin(try_stream! {
            let limits = model.config.limits;
            let end = request.deadline;
            let mut due = end.min(Instant::now() + limits.first_token);
            let response = timeout_at(due.into(), model.open(&request))
                .await
                .map_err(|_| ModelError::new(ModelErrorKind::Timeout, "no answer began in time"))??;
            let mut events = Events::new(response.bytes_stream());
            let mut answer = Answer::default();
            let ended = loop {
                let chunk = match timeout_at(due.into(), events.next()).await {
                    Ok(Ok(Some(chunk))) => chunk,
                    Ok(Ok(None)) => break Ok(()),
                    Ok(Err(error)) => break Err(error),
                    // Only the end was still awaited, and a server that does not tell it keeps its connection.
                    Err(_) if answer.is_complete() => break Ok(()),
                    Err(_) => break Err(ModelError::new(ModelErrorKind::Timeout, "the answer stalled")),
                };
                let alive = chunk.carries_something();
                match answer.take(chunk) {
                    Ok(Some(delta)) => yield ModelEvent::Delta(delta),
                    Ok(None) => {}
                    Err(error) => break Err(error),
                }
                if answer.is_complete() {
                    due = due.min(Instant::now() + LAST_BYTES);
                } else if alive {
                    due = end.min(Instant::now() + limits.idle);
                }
            };
            // What was spent is told however it ended.
            if let Some(usage) = answer.usage {
                yield ModelEvent::Usage(usage);
            }
            ended?;
            let finish = answer.finish(events.done())?;
            if events.done() {
                // A response that was read to its end leaves its connection for the next answer.
                let _ = timeout_at((Instant::now() + LAST_BYTES).into(), events.rest()).await;
            }
            yield ModelEvent::Finished(finish);
        })
    }

    fn name<'a>(&'a self, requested: Option<&'a str>) -> &'a str {
        requested.unwrap_or(&self.config.model)
    }

    fn allows(&self, model: &str) -> bool {
        let allowed = &self.config.allowed_models;
        allowed.is_empty() || allowed.iter().any(|name| name == model)
    }

    fn warm_up(&self) -> BoxFuture<'_, ()> {
        // Without the key: any answer will do.
        Box::pin(async { drop(self.client.head(&self.config.base_url).send().await) })
    }
}

/// What has come of an answer so far.
#[derive(Default)]
struct Answer {
    finish: Option<Finish>,
    usage: Option<TokenUsage>,
    has_text: bool,
}

impl Answer {
    fn take(&mut self, chunk: Chunk) -> Result<Option<String>, ModelError> {
        if let Some(error) = chunk.error {
            return Err(error.into_model_error(None));
        }
        if let Some(usage) = chunk.usage.and_then(chunk::Usage::known) {
            self.usage = Some(usage);
        }
        // One answer was asked for, so there is at most one choice.
        let Some(choice) = chunk.choices.into_iter().flatten().next() else { return Ok(None) };
        if let Some(finish) = choice.finish_reason.as_deref().filter(|reason| !reason.is_empty()) {
            self.finish = Some(match finish {
                "length" | "max_tokens" => Finish::Length,
                "content_filter" => Finish::ContentFilter,
                _ => Finish::Stop,
            });
        }
        let delta = choice.delta.and_then(|delta| delta.content).filter(|content| !content.is_empty());
        self.has_text |= delta.is_some();
        Ok(delta)
    }

    /// Whether nothing that matters can come any more. The usage follows the finish reason, but some servers repeat it.
    fn is_complete(&self) -> bool {
        self.finish.is_some() && self.usage.is_some()
    }

    /// How the answer ended, where `done` is whether the server said so.
    fn finish(&self, done: bool) -> Result<Finish, ModelError> {
        let finish = match self.finish {
            Some(finish) => finish,
            // Some servers send `[DONE]` without a reason.
            None if done => Finish::Stop,
            None => {
                return Err(ModelError::new(ModelErrorKind::Cut, "the stream ended before the answer was complete"));
            }
        };
        if !self.has_text && finish == Finish::Stop {
            return Err(ModelError::new(ModelErrorKind::Empty, "the answer has no text"));
        }
        Ok(finish)
    }
}

/// The body of a request, <https://platform.openai.com/docs/api-reference/chat/create>.
#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    messages: Vec<BodyMessage<'a>>,
    stream: bool,
    stream_options: StreamOptions,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
}

#[derive(Serialize)]
struct BodyMessage<'a> {
    role: &'static str,
    content: &'a str,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

impl<'a> Body<'a> {
    fn new(config: &'a ProviderConfig, request: &'a ModelRequest) -> Self {
        // OpenAI's newer models refuse the old name of the limit; others know only the old one.
        let is_openai = config.provider == Provider::OpenAi && config.base_url.contains("://api.openai.com");
        let (max_tokens, max_completion_tokens) =
            if is_openai { (None, request.max_tokens) } else { (request.max_tokens, None) };
        Self {
            model: request.model.as_deref().unwrap_or(&config.model),
            messages: request.messages.iter().map(BodyMessage::from).collect(),
            stream: true,
            stream_options: StreamOptions { include_usage: true },
            temperature: request.temperature,
            max_tokens,
            max_completion_tokens,
        }
    }
}

impl<'a> From<&'a Message> for BodyMessage<'a> {
    fn from(message: &'a Message) -> Self {
        let role = match message.role {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        };
        Self { role, content: &message.content }
    }
}

fn transport_error(error: reqwest::Error) -> ModelError {
    // The message of an error may repeat the URL, and the URL a key.
    let error = error.without_url();
    let kind = if error.is_timeout() { ModelErrorKind::Timeout } else { ModelErrorKind::Unavailable };
    let step = if error.is_connect() { "no connection" } else { "the request failed" };
    ModelError::new(kind, format!("{step}: {}", with_causes(&error)))
}

async fn refused(mut response: Response) -> ModelError {
    let status = response.status().as_u16();
    let retry_after = response.headers().get(header::RETRY_AFTER).and_then(|value| retry_after(value.to_str().ok()?));
    let mut body = Vec::new();
    while let Ok(Some(bytes)) = response.chunk().await {
        body.extend_from_slice(&bytes);
        if body.len() > MAX_ERROR_BYTES {
            break;
        }
    }
    let error = serde_json::from_slice::<ErrorBody>(&body).ok().and_then(|body| body.error);
    let error = match error {
        Some(error) => error.into_model_error(Some(status)),
        None => ModelError::reported(Some(status), None, None),
    };
    ModelError { retry_after, ..error }
}

/// Seconds or an HTTP date, <https://www.rfc-editor.org/rfc/rfc9110#field.retry-after>.
fn retry_after(value: &str) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
    SystemTime::from(at).duration_since(SystemTime::now()).ok()
}
