//! The stages of one turn, up to where the model is asked.

use std::{pin::pin, sync::Arc, time::Duration};

use async_stream::stream;
use futures_util::{Stream, StreamExt as _};
use jiff::Timestamp;
use tokio::time::{Instant, sleep, timeout};
use tracing::{Instrument as _, Span};

use super::{
    Assistant, HISTORY_TOKEN_BUDGET, RecalledMemory, RecordedCitation, Stage, TurnEvent, TurnFailure, TurnRecord,
    exchange::{Exchange, history_message, tool_result_content},
    input::{ToolResult, TurnInput},
    interruption::Interruption,
    rounds::RunningTurn,
};
use crate::{
    conversation::{History, Lease, PendingTurnId, StoreError, StoredTurn, ToolResultOutcome},
    llm::Message,
    memory::{CHAT_SOURCE_TYPE, DEFAULT_ALPHA, MAX_QUERY_BYTES, Memory, RetrievalQuery},
    tools::ToolSelection,
};

/// Most memories that a turn is grounded in.
const RECALL_LIMIT: usize = 8;
/// Least score of a memory that a turn is grounded in: below it, texts have hardly more in common than chance.
const RECALL_MIN_SCORE: f32 = 0.2;
/// Longest wait for the memory: an answer without it is better than a late one.
const RECALL_TIMEOUT: Duration = Duration::from_secs(3);

/// A turn that goes on, because all results of its tools are in.
#[derive(Debug)]
pub struct ResumedTurn {
    lease: Lease,
    exchange: Exchange,
    ticket: PendingTurnId,
}

impl ResumedTurn {
    /// BCP 47 tag of the language in which the turn began.
    #[must_use]
    pub fn language_tag(&self) -> &str {
        &self.exchange.language_tag
    }
}

impl Assistant {
    /// Runs a turn until it ends or is `interrupted`. Nothing is done before the stream is polled; dropping it cancels the
    /// turn with its provider call.
    ///
    /// The events are those of the contract, in its order; the last one is the only one of which [`Event::is_last`] is true.
    pub fn run_turn(
        self: Arc<Self>,
        request: TurnInput,
        interrupted: impl Future<Output = TurnFailure> + Send + 'static,
    ) -> impl Stream<Item = TurnEvent> + Send + 'static {
        let span = Span::current();
        stream! {
            let mut interruption = Interruption::new(interrupted);
            let deadline = Instant::now() + self.total_timeout;
            yield TurnEvent::StageEntered(Stage::Thinking);
            if !self.thinking_delay.is_zero()
                && let Err(failure) = interruption.unless(sleep(self.thinking_delay)).await
            {
                yield TurnEvent::Closing(Box::new(request.broken_off()));
                yield TurnEvent::Failed(failure);
                return;
            }

            let searches = request.recall.is_some() && self.memory.is_configured();
            if searches {
                yield TurnEvent::StageEntered(Stage::Searching);
            }
            let recall = async {
                if searches { self.recall(&request).await } else { Some(Vec::new()) }
            };
            let known = async { tokio::join!(recall, self.load_history(&request)) }.instrument(span);
            let (recalled, past) = match interruption.unless(known).await {
                Ok((recalled, Ok(past))) => (recalled, past),
                Ok((_, Err(error))) => {
                    // An answer that knows nothing of what was said would be taken for one that does.
                    tracing::warn!(%error, "the conversation can not be read");
                    yield TurnEvent::Failed(TurnFailure::NotPersisted);
                    return;
                }
                Err(failure) => {
                    yield TurnEvent::Closing(Box::new(request.broken_off()));
                    yield TurnEvent::Failed(failure);
                    return;
                }
            };
            let recall_failed = recalled.is_none();
            let recalled = recalled.unwrap_or_default();
            if !recalled.is_empty() {
                yield TurnEvent::Recalled(recalled.clone());
            }

            let running = match self.build_turn(request, past, &recalled, recall_failed, deadline) {
                Ok(running) => running,
                Err(error) => {
                    tracing::error!(%error, "the prompt can not be made");
                    yield TurnEvent::Failed(TurnFailure::Internal);
                    return;
                }
            };
            drop(recalled);
            let mut rounds = pin!(self.rounds(running, &mut interruption));
            while let Some(event) = rounds.next().await {
                yield event;
            }
        }
    }

    /// Goes on with a turn whose tools have run, as [`Assistant::turn`] does.
    pub fn resume_turn(
        self: Arc<Self>,
        turn: ResumedTurn,
        interrupted: impl Future<Output = TurnFailure> + Send + 'static,
    ) -> impl Stream<Item = TurnEvent> + Send + 'static {
        stream! {
            let mut interruption = Interruption::new(interrupted);
            let deadline = Instant::now() + self.total_timeout;
            yield TurnEvent::StageEntered(Stage::Thinking);
            let ResumedTurn { lease, exchange, ticket } = turn;
            let wanted = ToolSelection::Named(exchange.tools.clone());
            let offer = self.offer(&wanted, exchange.documents.is_some(), true);
            let user = lease.key.user.clone();
            let running = RunningTurn {
                user,
                lease: Some(lease),
                exchange,
                offer,
                recall_failed: false,
                deadline,
                ticket: Some(ticket),
            };
            let mut rounds = pin!(self.rounds(running, &mut interruption));
            while let Some(event) = rounds.next().await {
                yield event;
            }
        }
    }

    /// A call that brought a result while others are still missing.
    pub fn await_more_results() -> impl Stream<Item = TurnEvent> + Send + 'static {
        futures_util::stream::iter([TurnEvent::StageEntered(Stage::Thinking), TurnEvent::AwaitsMoreResults])
    }

    /// Takes what came of a tool that the client ran.
    ///
    /// # Errors
    /// The store failed or took too long; then the result is not taken.
    pub async fn record_tool_result(
        &self,
        lease: &Lease,
        result: ToolResult,
    ) -> Result<ToolResultOutcome<Box<ResumedTurn>>, StoreError> {
        let Some(conversations) = &self.conversations else { return Ok(ToolResultOutcome::UnknownCall) };
        let call_id = result.call_id.clone();
        let content = tool_result_content(result);
        let outcome = conversations.record_tool_result(lease, &call_id, content.as_bytes()).await?;
        Ok(outcome.and_then(|turn| match serde_json::from_slice::<Exchange>(&turn.state) {
            Ok(mut exchange) => {
                let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                exchange.push_tool_results(turn.results.into_iter().map(|(id, bytes)| (id, text(bytes))).collect());
                ToolResultOutcome::Complete(Box::new(ResumedTurn { lease: lease.clone(), exchange, ticket: turn.id }))
            }
            Err(error) => {
                tracing::error!(%error, "a pending turn of another version of the service cannot be resumed");
                ToolResultOutcome::UnknownCall
            }
        }))
    }

    /// What was said before in the conversation.
    async fn load_history(&self, request: &TurnInput) -> Result<History, StoreError> {
        match (&self.conversations, &request.lease) {
            (Some(conversations), Some(lease)) => {
                conversations.load_history(&lease.key.user, &lease.key.session, HISTORY_TOKEN_BUDGET).await
            }
            _ => Ok(History::default()),
        }
    }

    /// What the memory knows about the question; `None` where it failed.
    async fn recall(&self, request: &TurnInput) -> Option<Vec<RecalledMemory>> {
        let query = RetrievalQuery {
            text: head(&request.message, MAX_QUERY_BYTES).to_owned(),
            limit: RECALL_LIMIT,
            min_score: RECALL_MIN_SCORE,
            filter: request.recall.clone().unwrap_or_default(),
            alpha: DEFAULT_ALPHA,
            time_zone: request.profile.zone(),
        };
        match timeout(RECALL_TIMEOUT, self.memory.retrieve(&request.user, &query)).await {
            Ok(Ok(found)) => {
                let recalled = found.hits.into_iter().map(|(memory, score)| RecalledMemory { memory, score });
                Some(recalled.filter(|recalled| !is_echo(&recalled.memory, &request.message)).collect())
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "recall failed; the turn goes on without it");
                None
            }
            Err(_) => {
                tracing::warn!(
                    timeout_ms = RECALL_TIMEOUT.as_millis(),
                    "recall timed out; the turn goes on without it"
                );
                None
            }
        }
    }

    /// Everything that the model is asked with.
    fn build_turn(
        &self,
        request: TurnInput,
        past: History,
        recalled: &[RecalledMemory],
        recall_failed: bool,
        deadline: Instant,
    ) -> Result<RunningTurn, minijinja::Error> {
        let summary = past.summary.as_ref().map_or("", |summary| summary.text.as_str());
        let (profile, context) = (&request.profile, &request.extra_context);
        let system = self.prompts.system(profile, context, recalled, summary, Timestamp::now())?;
        let mut messages = vec![Message::System(system)];
        if past == History::default() {
            messages.extend(request.history.into_iter().map(history_message));
        } else {
            messages.extend(past.turns.iter().flat_map(messages_of_turn));
        }
        let begin = messages.len();
        messages.push(Message::User(request.message));
        let offer = self.offer(&request.tools, request.recall.is_some(), request.lease.is_some());
        let exchange = Exchange {
            messages: Arc::new(messages),
            begin,
            citations: recalled.iter().map(RecordedCitation::from).collect(),
            model: request.model,
            temperature: request.temperature,
            max_tokens: request.max_tokens,
            tools: offer.names(),
            rounds: 0,
            language_tag: request.profile.language_tag,
            timezone: request.profile.timezone,
            documents: request.recall.map(|filter| filter.document_ids),
        };
        let (user, lease) = (request.user, request.lease);
        Ok(RunningTurn { user, lease, exchange, offer, recall_failed, deadline, ticket: None })
    }
}

/// Whether a memory is the question itself, from when it was asked before: it fits best of all and tells nothing.
fn is_echo(memory: &Memory, question: &str) -> bool {
    memory.source_type == CHAT_SOURCE_TYPE && memory.content.trim() == question.trim()
}

/// What a model is told of an earlier turn. What it thought then is of no use any more.
fn messages_of_turn(turn: &StoredTurn) -> Vec<Message> {
    let record = match TurnRecord::from_bytes(&turn.record) {
        Ok(record) => record,
        Err(error) => {
            tracing::error!(%error, "a turn can not be read and is left out");
            return Vec::new();
        }
    };
    let has_answer = record.answer().is_some();
    let mut messages = record.messages;
    for message in &mut messages {
        if let Message::Assistant { reasoning, .. } = message {
            *reasoning = None;
        }
    }
    if !has_answer {
        // Two questions in a row would be answered both.
        messages.push(Message::Assistant { content: "…".to_owned(), reasoning: None, calls: Vec::new() });
    }
    messages
}

/// The longest beginning of a text within so many bytes.
fn head(text: &str, max_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(max_bytes)]
}
