//! Models in a chain: the first that answers is the one. Each is asked a few times; one that is dead is not asked at all.

use std::{
    num::NonZero,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_stream::try_stream;
use futures_util::{StreamExt as _, future::BoxFuture};
use lru::LruCache;
use tokio::time::{Instant, sleep};

use super::{ChatModel, ModelError, ModelErrorKind, ModelEvent, ModelRequest, ModelStream, openai::Endpoint};
use crate::{
    config::{EndpointConfig, ProviderConfig, RetryConfig},
    provider::{CircuitBreaker, CircuitOpen, backoff_delay},
};

/// Models that a request named whose breakers are kept.
const MAX_BREAKERS: NonZero<usize> = NonZero::<usize>::MIN.saturating_add(127);
/// Longest that a model is waited for before it is asked again, at the provider's wish.
const MAX_RETRY_WAIT: Duration = Duration::from_secs(20);
/// The same where another model could answer at once.
const MAX_RETRY_WAIT_BEFORE_FALLBACK: Duration = Duration::from_secs(2);

/// A model with those that take its place.
#[derive(Debug)]
pub struct ModelChain {
    endpoints: Vec<Arc<Endpoint>>,
    allowed_models: Vec<String>,
    retry_policy: RetryConfig,
    /// By endpoint and model.
    breakers: Mutex<LruCache<(usize, String), Arc<CircuitBreaker>>>,
}

/// A model to ask.
struct Candidate {
    endpoint: Arc<Endpoint>,
    model: String,
    breaker: Arc<CircuitBreaker>,
}

/// What to do after a failure.
enum FailureReaction {
    /// Ask the same model after a while.
    RetryAfter(Duration),
    /// Ask the next one.
    FallBack,
}

impl ModelChain {
    /// The models that the configuration names. They keep connections open between answers.
    ///
    /// # Errors
    /// The HTTP client can not be built.
    pub fn new(config: &ProviderConfig) -> Result<Self, reqwest::Error> {
        let configs = std::iter::once(&config.primary).chain(&config.fallbacks);
        let endpoint = |endpoint: &EndpointConfig| {
            Endpoint::new(endpoint.clone(), config.timeouts, config.max_tokens).map(Arc::new)
        };
        Ok(Self {
            endpoints: configs.map(endpoint).collect::<Result<_, _>>()?,
            allowed_models: config.allowed_models.clone(),
            retry_policy: config.retry,
            breakers: Mutex::new(LruCache::new(MAX_BREAKERS)),
        })
    }

    fn primary(&self) -> &Endpoint {
        // There is always one: it is made of the primary and the fallbacks.
        &self.endpoints[0]
    }

    /// The models to ask, in order. A request may name the first one.
    fn candidates(&self, requested: Option<&str>) -> Vec<Candidate> {
        let mut breakers = self.breakers.lock().unwrap_or_else(PoisonError::into_inner);
        let candidate = |(place, endpoint): (usize, &Arc<Endpoint>)| {
            let model = requested.filter(|_| place == 0).unwrap_or(&endpoint.config.model).to_owned();
            let breaker = breakers
                .get_or_insert((place, model.clone()), || Arc::new(CircuitBreaker::new(self.retry_policy.breaker)));
            Candidate { endpoint: endpoint.clone(), breaker: breaker.clone(), model }
        };
        self.endpoints.iter().enumerate().map(candidate).collect()
    }

    /// What to do after the `attempt`-th failure of a model. The failures that it can be retried after are those of the
    /// moment; and only before anything was said, which the caller sees to.
    fn classify(&self, error: &ModelError, attempt: u32, is_last: bool, deadline: Instant) -> FailureReaction {
        // Who was waited for in vain once is not waited for again where another model could answer.
        let was_slow = error.kind == ModelErrorKind::Timeout && !is_last;
        if !error.kind.is_retryable() || was_slow || attempt >= self.retry_policy.max_attempts {
            return FailureReaction::FallBack;
        }
        let wait = backoff_delay(attempt, error.retry_after);
        let longest = if is_last { MAX_RETRY_WAIT } else { MAX_RETRY_WAIT_BEFORE_FALLBACK };
        let in_time = deadline.saturating_duration_since(Instant::now());
        if wait <= longest.min(in_time) { FailureReaction::RetryAfter(wait) } else { FailureReaction::FallBack }
    }
}

impl ChatModel for ModelChain {
    fn answer(self: Arc<Self>, request: ModelRequest) -> ModelStream {
        Box::pin(try_stream! {
            let candidates = self.candidates(request.model.as_deref());
            let last = candidates.len().saturating_sub(1);
            let mut failures = Vec::new();
            for (place, Candidate { endpoint, model, breaker }) in candidates.into_iter().enumerate() {
                let mut attempt = 1;
                let mut failed = None;
                let error = loop {
                    let mut permit = match breaker.admit() {
                        Ok(permit) => permit,
                        Err(open) => break failed.unwrap_or_else(|| circuit_open_error(open)),
                    };
                    let mut answer = endpoint.clone().answer(request.clone(), model.clone());
                    let mut has_begun = false;
                    let error = loop {
                        match answer.next().await {
                            Some(Ok(event)) => match event {
                                ModelEvent::Delta(_) => {
                                    if !has_begun {
                                        has_begun = true;
                                        permit.answer_began();
                                    }
                                    yield event;
                                }
                                ModelEvent::Usage { .. } => yield event,
                                ModelEvent::Finished { .. } | ModelEvent::ToolsCalled { .. } => {
                                    permit.succeeded();
                                    yield event;
                                    return;
                                }
                            },
                            Some(Err(error)) => break error,
                            None => break ModelError::new(ModelErrorKind::Truncated, "the answer has no end"),
                        }
                    };
                    drop(answer);
                    let is_over = Instant::now() >= request.deadline;
                    if !error.is_outage() {
                        // It is there, and refuses this request.
                        permit.succeeded();
                    } else if !(has_begun && is_over) {
                        permit.failed();
                    }
                    if has_begun {
                        // A second answer would be glued to the first.
                        Err(with_origin(error, &endpoint, &model))?;
                        return;
                    }
                    match self.classify(&error, attempt, place == last, request.deadline) {
                        FailureReaction::RetryAfter(wait) => {
                            tracing::warn!(%error, model, attempt, wait_ms = wait.as_millis(), "the model failed; it is asked again");
                            sleep(wait).await;
                            attempt += 1;
                            failed = Some(error);
                        }
                        FailureReaction::FallBack => break error,
                    }
                };
                if place < last {
                    tracing::warn!(%error, model, attempt, "the model failed; the next one is asked");
                }
                failures.push(with_origin(error, &endpoint, &model));
                if Instant::now() >= request.deadline {
                    break;
                }
            }
            Err(most_actionable(failures))?;
        })
    }

    fn name<'a>(&'a self, requested: Option<&'a str>) -> &'a str {
        requested.unwrap_or(&self.primary().config.model)
    }

    fn allows(&self, model: &str) -> bool {
        self.allowed_models.is_empty() || self.allowed_models.iter().any(|name| name == model)
    }

    fn warm_up(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.primary().warm_up())
    }
}

fn circuit_open_error(open: CircuitOpen) -> ModelError {
    let CircuitOpen(rest) = open;
    let detail = "it failed too often in a row and is not asked for a while";
    let retry_after = Some(rest.max(Duration::from_secs(1)));
    ModelError { retry_after, problem: Some("resting"), ..ModelError::new(ModelErrorKind::Unavailable, detail) }
}

fn with_origin(error: ModelError, endpoint: &Endpoint, model: &str) -> ModelError {
    ModelError { origin: Some(endpoint.origin(model, error.kind)), ..error }
}

/// Of the failures of all models, in their order, the first that may pass, or else the first: what the user can do something
/// about.
fn most_actionable(mut failures: Vec<ModelError>) -> ModelError {
    let place = failures.iter().position(|error| error.kind.is_retryable()).unwrap_or_default();
    if failures.is_empty() {
        return ModelError::new(ModelErrorKind::Unavailable, "there is no model");
    }
    failures.swap_remove(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_failures_the_first_that_may_pass_is_told() {
        let error = |kind| ModelError::new(kind, "");
        let told = |kinds: &[ModelErrorKind]| most_actionable(kinds.iter().copied().map(error).collect()).kind;
        use ModelErrorKind::{ModelNotFound, RateLimited, Unauthorized, Unavailable};
        assert_eq!(told(&[Unauthorized, RateLimited, Unavailable]), RateLimited);
        assert_eq!(told(&[Unauthorized, ModelNotFound]), Unauthorized);
    }
}
