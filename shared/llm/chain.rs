//! A model with its fallbacks: retries, backoff, circuit breakers, and the choice of the next model.
//!
//! ```text
//! NextCandidate → Attempt → Receive ⟲ → done
//!       ↑            ↑         │
//!       │            ├ Backoff ┤ retryable
//!       └────────────┴─────────┘ not retryable, or circuit open
//! ```
//!
//! Invariant: after the first delta no other attempt starts, because a second answer would be glued to the first
//! ([`ChainAnswer::fail`]).

use std::{
    mem,
    num::NonZero,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
    vec,
};

use async_stream::try_stream;
use futures_util::{StreamExt as _, future::BoxFuture};
use lru::LruCache;
use tokio::time::{Instant, sleep};
use tracing::Span;

use super::{
    error::{ModelError, ModelErrorKind},
    model::{ChatModel, ModelEvent, ModelRequest, ModelStream},
    openai::Endpoint,
};
use crate::{
    config::{EndpointConfig, ProviderConfig, RetryConfig},
    identity::UserId,
    provider::{CallPermit, CircuitBreaker, CircuitOpen, backoff_delay},
};

/// Requests may name any number of models, so breakers are evicted.
const MAX_BREAKERS: NonZero<usize> = NonZero::<usize>::MIN.saturating_add(127);
/// A provider may ask for a longer wait; then its model fails.
const MAX_RETRY_WAIT: Duration = Duration::from_secs(20);
/// The same while another model could answer at once.
const MAX_RETRY_WAIT_BEFORE_FALLBACK: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct ModelChain {
    /// The primary one first; never empty.
    endpoints: Vec<Arc<Endpoint>>,
    /// Empty = a request may name any model.
    allowed_models: Vec<String>,
    retry: RetryConfig,
    /// By index of the endpoint and name of the model.
    breakers: Mutex<LruCache<(usize, String), Arc<CircuitBreaker>>>,
}

impl ModelChain {
    pub fn new(config: &ProviderConfig) -> Result<Self, reqwest::Error> {
        let configs = std::iter::once(&config.primary).chain(&config.fallbacks);
        let endpoint = |endpoint: &EndpointConfig| {
            Endpoint::new(endpoint.clone(), config.timeouts, config.max_tokens).map(Arc::new)
        };
        Ok(Self {
            endpoints: configs.map(endpoint).collect::<Result<_, _>>()?,
            allowed_models: config.allowed_models.clone(),
            retry: config.retry,
            breakers: Mutex::new(LruCache::new(MAX_BREAKERS)),
        })
    }

    fn primary(&self) -> &Endpoint {
        &self.endpoints[0]
    }

    /// A request may name the first model.
    fn candidates(&self, requested: Option<&str>) -> Vec<Candidate> {
        let mut breakers = self.breakers.lock().unwrap_or_else(PoisonError::into_inner);
        let candidate = |(index, endpoint): (usize, &Arc<Endpoint>)| {
            let model = requested.filter(|_| index == 0).unwrap_or(&endpoint.config.model).to_owned();
            let new_breaker = || Arc::new(CircuitBreaker::new(self.retry.breaker));
            let breaker = breakers.get_or_insert((index, model.clone()), new_breaker).clone();
            Candidate { endpoint: endpoint.clone(), model, breaker, attempt: 1, last_error: None }
        };
        self.endpoints.iter().enumerate().map(candidate).collect()
    }

    /// The wait before the next attempt at the same model; `None` = it has failed. `can_fall_back`: another model is left.
    fn retry_wait(&self, error: &ModelError, attempt: u32, can_fall_back: bool, deadline: Instant) -> Option<Duration> {
        // A second timeout would cost the user more than another model.
        let is_too_slow = error.kind == ModelErrorKind::Timeout && can_fall_back;
        if !error.kind.is_retryable() || is_too_slow || attempt >= self.retry.max_attempts {
            return None;
        }
        let wait = backoff_delay(attempt, error.retry_after);
        let longest = if can_fall_back { MAX_RETRY_WAIT_BEFORE_FALLBACK } else { MAX_RETRY_WAIT };
        let time_left = deadline.saturating_duration_since(Instant::now());
        (wait <= longest.min(time_left)).then_some(wait)
    }
}

impl ChatModel for ModelChain {
    fn answer(self: Arc<Self>, request: ModelRequest) -> ModelStream {
        let mut answer = ChainAnswer::new(self, request);
        Box::pin(try_stream! {
            while let Some(event) = answer.next_event().await? {
                yield event;
            }
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

struct Candidate {
    endpoint: Arc<Endpoint>,
    model: String,
    breaker: Arc<CircuitBreaker>,
    /// From 1.
    attempt: u32,
    last_error: Option<ModelError>,
}

struct Attempt {
    candidate: Box<Candidate>,
    permit: CallPermit,
    answer: ModelStream,
    /// Whether a delta was delivered.
    has_begun: bool,
}

enum ChainStep {
    NextCandidate,
    Attempt(Box<Candidate>),
    Receive(Box<Attempt>),
    Backoff(Box<Candidate>, Duration),
    Done,
}

struct ChainAnswer {
    chain: Arc<ModelChain>,
    request: ModelRequest,
    candidates: vec::IntoIter<Candidate>,
    failures: Vec<ModelError>,
    step: ChainStep,
    /// The one in which the answer was requested. It is entered for logs only, not for each event.
    span: Span,
}

impl ChainAnswer {
    fn new(chain: Arc<ModelChain>, request: ModelRequest) -> Self {
        let candidates = chain.candidates(request.model.as_deref()).into_iter();
        Self { chain, request, candidates, failures: Vec::new(), step: ChainStep::NextCandidate, span: Span::current() }
    }

    async fn next_event(&mut self) -> Result<Option<ModelEvent>, ModelError> {
        loop {
            self.step = match mem::replace(&mut self.step, ChainStep::Done) {
                ChainStep::NextCandidate => self.next_candidate()?,
                ChainStep::Attempt(candidate) => self.attempt(candidate),
                ChainStep::Receive(mut attempt) => match attempt.answer.next().await {
                    Some(Ok(event)) => {
                        if !attempt.has_begun && matches!(event, ModelEvent::Delta(_)) {
                            // No other attempt follows that would need them.
                            self.request.messages = Arc::default();
                        }
                        self.step = attempt.step_after(&event);
                        return Ok(Some(event));
                    }
                    Some(Err(error)) => self.fail(*attempt, error)?,
                    None => self.fail(*attempt, ModelError::new(ModelErrorKind::Truncated, "the answer has no end"))?,
                },
                ChainStep::Backoff(candidate, wait) => {
                    sleep(wait).await;
                    ChainStep::Attempt(candidate)
                }
                ChainStep::Done => return Ok(None),
            };
        }
    }

    fn next_candidate(&mut self) -> Result<ChainStep, ModelError> {
        let is_too_late = !self.failures.is_empty() && Instant::now() >= self.request.deadline;
        match self.candidates.next() {
            Some(candidate) if !is_too_late => Ok(ChainStep::Attempt(Box::new(candidate))),
            _ => Err(most_actionable(mem::take(&mut self.failures))),
        }
    }

    fn attempt(&mut self, mut candidate: Box<Candidate>) -> ChainStep {
        match candidate.breaker.admit(self.request.user.as_ref().map(UserId::as_str)) {
            Ok(permit) => {
                let answer = candidate.endpoint.clone().answer(self.request.clone(), candidate.model.clone());
                ChainStep::Receive(Box::new(Attempt { candidate, permit, answer, has_begun: false }))
            }
            Err(open) => {
                let error = candidate.last_error.take().unwrap_or_else(|| circuit_open_error(open));
                self.fall_back(&candidate, error)
            }
        }
    }

    fn fail(&mut self, attempt: Attempt, error: ModelError) -> Result<ChainStep, ModelError> {
        let Attempt { mut candidate, permit, answer, has_begun } = attempt;
        drop(answer);
        let deadline = self.request.deadline;
        if !error.is_outage() {
            // The provider is up and rejects this request.
            permit.succeeded();
        } else if !(has_begun && Instant::now() >= deadline) {
            permit.failed();
        }
        if has_begun {
            return Err(with_origin(error, &candidate));
        }
        let Some(wait) = self.chain.retry_wait(&error, candidate.attempt, self.can_fall_back(), deadline) else {
            return Ok(self.fall_back(&candidate, error));
        };
        let Candidate { model, attempt, .. } = &*candidate;
        let wait_ms = wait.as_millis();
        self.span.in_scope(|| tracing::warn!(%error, model, attempt, wait_ms, "model attempt failed; retrying"));
        candidate.attempt += 1;
        candidate.last_error = Some(error);
        Ok(ChainStep::Backoff(candidate, wait))
    }

    fn can_fall_back(&self) -> bool {
        !self.candidates.as_slice().is_empty()
    }

    fn fall_back(&mut self, candidate: &Candidate, error: ModelError) -> ChainStep {
        if self.can_fall_back() {
            let Candidate { model, attempt, .. } = candidate;
            self.span.in_scope(|| tracing::warn!(%error, model, attempt, "model failed; falling back to the next one"));
        }
        self.failures.push(with_origin(error, candidate));
        ChainStep::NextCandidate
    }
}

impl Attempt {
    fn step_after(mut self: Box<Self>, event: &ModelEvent) -> ChainStep {
        match event {
            ModelEvent::Delta(_) => {
                if !mem::replace(&mut self.has_begun, true) {
                    self.permit.answer_began();
                }
                ChainStep::Receive(self)
            }
            ModelEvent::Usage { .. } => ChainStep::Receive(self),
            ModelEvent::Finished { .. } | ModelEvent::ToolsCalled { .. } => {
                self.permit.succeeded();
                ChainStep::Done
            }
        }
    }
}

fn circuit_open_error(CircuitOpen(cooldown): CircuitOpen) -> ModelError {
    let detail = "the circuit breaker of the model is open: too many consecutive failures";
    let retry_after = Some(cooldown.max(Duration::from_secs(1)));
    // `resting` is a wire name.
    ModelError { retry_after, problem: Some("resting"), ..ModelError::new(ModelErrorKind::Unavailable, detail) }
}

fn with_origin(error: ModelError, candidate: &Candidate) -> ModelError {
    let origin = candidate.endpoint.origin(&candidate.model, error.kind);
    ModelError { origin: Some(origin), ..error }
}

/// The first failure that a retry may solve, or else the first: it is the one that the user can act on.
fn most_actionable(mut failures: Vec<ModelError>) -> ModelError {
    if failures.is_empty() {
        return ModelError::new(ModelErrorKind::Unavailable, "no model is configured");
    }
    let index = failures.iter().position(|error| error.kind.is_retryable()).unwrap_or_default();
    failures.swap_remove(index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{BreakerSettings, ModelTimeouts, Provider};

    #[test]
    fn most_actionable_prefers_first_retryable_failure() {
        let error = |kind| ModelError::new(kind, "");
        let kind = |kinds: &[ModelErrorKind]| most_actionable(kinds.iter().copied().map(error).collect()).kind;
        use ModelErrorKind::{ModelNotFound, RateLimited, Unauthorized, Unavailable};
        assert_eq!(kind(&[Unauthorized, RateLimited, Unavailable]), RateLimited);
        assert_eq!(kind(&[Unauthorized, ModelNotFound]), Unauthorized);
    }

    /// Each open answer holds both streams: bytes here are bytes times the number of concurrent turns.
    #[tokio::test]
    async fn answer_streams_stay_small() {
        let second = Duration::from_secs(1);
        let primary = EndpointConfig {
            provider: Provider::Compatible,
            base_url: "http://127.0.0.1:1/v1".into(),
            api_key: None,
            model: "m".into(),
            key_variable: "K".into(),
            url_variable: "U",
        };
        let chain = ModelChain::new(&ProviderConfig {
            primary,
            fallbacks: Vec::new(),
            allowed_models: Vec::new(),
            timeouts: ModelTimeouts { connect: second, first_token: second, idle: second, total: second },
            retry: RetryConfig { max_attempts: 1, breaker: BreakerSettings { failures: 0, cooldown: second } },
            max_tokens: None,
            prices_file: None,
            tools_file: None,
        });
        let chain = Arc::new(chain.unwrap());
        let request = ModelRequest {
            user: None,
            model: None,
            messages: Arc::default(),
            temperature: None,
            max_tokens: None,
            tools: Arc::new([]),
            must_answer: false,
            deadline: Instant::now(),
        };
        let of_endpoint = size_of_val(&*chain.endpoints[0].clone().answer(request.clone(), "m".into()));
        let of_chain = size_of_val(&*chain.answer(request));
        assert!(of_endpoint <= 1024 && of_chain <= 768, "endpoint: {of_endpoint} bytes, chain: {of_chain} bytes");
    }
}
