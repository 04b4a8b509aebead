//! The rounds of a turn: the model is asked, and asked again as long as it calls tools that the server runs.

use async_stream::stream;
use futures_util::{Stream, StreamExt as _};
use tokio::time::Instant;

use super::{
    Assistant, Stage, ToolExecution, TurnEvent, TurnFailure, TurnFinish,
    event::{FinishedTurn, TurnClosing},
    exchange::{Exchange, error_content, repair_messages},
    input::time_zone,
    interruption::Interruption,
    tally::UsageTally,
};
use crate::{
    conversation::{Lease, PendingTurnId},
    identity::UserId,
    llm::{Finish, Message, ModelEvent, ToolCall, estimate_tokens},
    tools::{ToolContext, ToolOffer, ToolRunner, ToolSelection, ValidatedCall},
};

/// A turn that has come to the model.
pub(super) struct RunningTurn {
    pub(super) user: UserId,
    /// The right to keep the turn; `None` = nothing of it is kept.
    pub(super) lease: Option<Lease>,
    pub(super) exchange: Exchange,
    pub(super) offer: ToolOffer,
    pub(super) recall_failed: bool,
    pub(super) deadline: Instant,
    /// Of a turn that was resumed.
    pub(super) ticket: Option<PendingTurnId>,
}

impl RunningTurn {
    fn closing(&mut self, turn: Option<FinishedTurn>) -> TurnEvent {
        TurnEvent::Closing(Box::new(TurnClosing { turn, resumed_turn: self.ticket.take() }))
    }
}

/// How a round ended that did not fail.
enum RoundOutcome {
    Finished(Finish),
    Called { calls: Vec<ToolCall>, reasoning: Option<String> },
}

impl Assistant {
    /// The tools for a turn; those of clients only where the turn can be kept meanwhile.
    pub(super) fn offer(&self, wanted: &ToolSelection, may_search: bool, may_keep: bool) -> ToolOffer {
        self.tools.offer(wanted, self.memory.is_configured(), may_search, may_keep)
    }

    /// Asks the model until it answers, fails, or wants the client to run tools.
    pub(super) fn rounds<'a, I>(
        &'a self,
        mut turn: RunningTurn,
        interruption: &'a mut Interruption<I>,
    ) -> impl Stream<Item = TurnEvent> + Send + 'a
    where
        I: Future<Output = TurnFailure> + Send,
    {
        stream! {
            let mut tally = UsageTally::default();
            let mut answering = self.model.name(turn.exchange.model.as_deref()).to_owned();
            let mut text = String::new();
            // How much of the text is in the exchange already.
            let mut said_before;
            // A call that is wrong may be repeated once before the next tools run.
            let mut was_told = false;
            yield TurnEvent::StageEntered(Stage::Generating { recall_failed: turn.recall_failed });
            let failure = 'rounds: loop {
                said_before = text.len();
                let mut counted = None;
                let mut answer = self.model.clone().answer(turn.exchange.model_request(&turn.offer, turn.deadline));
                let ended = loop {
                    match interruption.unless(answer.next()).await {
                        Ok(Some(Ok(ModelEvent::Delta(delta)))) => {
                            text.push_str(&delta);
                            yield TurnEvent::Delta(delta);
                        }
                        Ok(Some(Ok(ModelEvent::Usage { model, tokens }))) => {
                            counted = Some(model.clone());
                            tally.add(model, tokens);
                        }
                        Ok(Some(Ok(ModelEvent::Finished { model, finish }))) => {
                            answering = model;
                            break Ok(RoundOutcome::Finished(finish));
                        }
                        Ok(Some(Ok(ModelEvent::ToolsCalled { model, calls, reasoning }))) => {
                            answering = model;
                            break Ok(RoundOutcome::Called { calls, reasoning });
                        }
                        Ok(Some(Err(error))) => break Err(error.into()),
                        // A model ends its stream by an event; one that does not has a defect.
                        Ok(None) => break Err(TurnFailure::Internal),
                        Err(failure) => break Err(failure),
                    }
                };
                drop(answer);
                // Whose words broke off need not be the model that was asked first.
                if let Err(TurnFailure::Model(error)) = &ended
                    && let Some(origin) = &error.origin
                {
                    answering.clone_from(&origin.model);
                }
                let said = &text[said_before..];
                if counted.is_none_or(|model| model != answering) && (ended.is_ok() || !said.is_empty()) {
                    tally.add_estimate(answering.clone(), turn.exchange.estimate_tokens(), estimate_of(said, &ended));
                }
                let (calls, reasoning) = match ended {
                    Ok(RoundOutcome::Called { calls, reasoning }) => (calls, reasoning),
                    Ok(RoundOutcome::Finished(finish)) => {
                        let spent = tally.report(&answering, &self.prices);
                        if turn.lease.is_some() {
                            let record = turn.exchange.to_record(said, &answering, spent.as_ref(), finish.into());
                            yield turn.closing(Some(FinishedTurn { record, is_complete: true }));
                        }
                        if let Some(spent) = spent {
                            yield TurnEvent::Usage(spent);
                        }
                        yield TurnEvent::Answered { text, finish };
                        return;
                    }
                    Err(failure) => break failure,
                };

                if turn.exchange.must_answer() {
                    break TurnFailure::ToolRoundsExceeded;
                }
                turn.exchange.rounds += 1;
                let checked: Vec<_> = calls.iter().map(|call| turn.offer.validate(call)).collect();
                let content = said.to_owned();
                turn.exchange.push(Message::Assistant { content, reasoning, calls: calls.clone() });
                if checked.iter().any(Result::is_err) {
                    if std::mem::replace(&mut was_told, true) {
                        break TurnFailure::InvalidToolCall;
                    }
                    let problems: Vec<_> = checked.into_iter().map(Result::err).collect();
                    for message in repair_messages(&calls, &problems) {
                        turn.exchange.push(message);
                    }
                    continue;
                }
                was_told = false;

                yield TurnEvent::StageEntered(Stage::ExecutingTools);
                let mut awaited = Vec::new();
                for (call, checked) in calls.into_iter().zip(checked.into_iter().flatten()) {
                    if checked.runner == ToolRunner::Client {
                        awaited.push(call);
                        continue;
                    }
                    if Instant::now() >= turn.deadline {
                        break 'rounds TurnFailure::DeadlineExceeded;
                    }
                    match interruption.unless(self.execute_tool(&mut turn, call, checked)).await {
                        Ok(ran) => yield TurnEvent::ToolExecuted(ran),
                        Err(failure) => break 'rounds failure,
                    }
                }
                if awaited.is_empty() {
                    yield TurnEvent::StageEntered(Stage::Generating { recall_failed: turn.recall_failed });
                    continue;
                }
                match interruption.unless(self.store_pending_turn(&turn, &awaited)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(failure)) | Err(failure) => break failure,
                }
                for call in awaited {
                    yield TurnEvent::ToolCalled(call);
                }
                if let Some(spent) = tally.report(&answering, &self.prices) {
                    yield TurnEvent::Usage(spent);
                }
                yield TurnEvent::AwaitsTools;
                return;
            };
            let spent = tally.report(&answering, &self.prices);
            if turn.lease.is_some() {
                let is_stopped = matches!(failure, TurnFailure::Cancelled | TurnFailure::Abandoned);
                // A turn that may be tried again is no turn yet, unless the user has seen a part of it.
                let is_worth_keeping = is_stopped || !text.is_empty();
                let finish = if is_stopped { TurnFinish::Cancelled } else { TurnFinish::Failed };
                let record = || turn.exchange.to_record(&text[said_before..], &answering, spent.as_ref(), finish);
                let kept = is_worth_keeping.then(|| FinishedTurn { record: record(), is_complete: false });
                yield turn.closing(kept);
            }
            if let Some(spent) = spent {
                yield TurnEvent::Usage(spent);
            }
            yield TurnEvent::Failed(failure);
        }
    }

    /// Runs a tool of the server and tells the model what came of it.
    async fn execute_tool(&self, turn: &mut RunningTurn, call: ToolCall, checked: ValidatedCall) -> ToolExecution {
        let ToolCall { id, name, .. } = call;
        let context = ToolContext {
            user: turn.user.clone(),
            zone: time_zone(&turn.exchange.timezone),
            filter: turn.exchange.memory_filter(),
        };
        let outcome = match checked.runner {
            ToolRunner::Server(tool) => tool.run(&self.memory, &context, checked.arguments).await,
            ToolRunner::Client => Ok(checked.arguments),
        };
        let content = match &outcome {
            Ok(value) => value.to_string(),
            Err(failure) => error_content(&format!("{}; {}", failure.message, failure.suggestion)),
        };
        turn.exchange.push(Message::Tool { call_id: id.clone(), content });
        ToolExecution { call_id: id, name, outcome }
    }

    /// Keeps a turn until the client has run these calls.
    async fn store_pending_turn(&self, turn: &RunningTurn, awaited: &[ToolCall]) -> Result<(), TurnFailure> {
        // Without a place to keep turns no tool of the client is offered.
        let (Some(conversations), Some(lease)) = (&self.conversations, &turn.lease) else {
            return Err(TurnFailure::Internal);
        };
        let state = serde_json::to_vec(&turn.exchange).map_err(|_| TurnFailure::Internal)?;
        let calls: Vec<&str> = awaited.iter().map(|call| call.id.as_str()).collect();
        conversations.store_pending_turn(lease, &state, &calls).await.map_err(|error| {
            tracing::warn!(%error, "the turn can not be kept");
            TurnFailure::NotPersisted
        })
    }
}

/// Tokens of what a model said in a round whose provider did not count them.
fn estimate_of(said: &str, ended: &Result<RoundOutcome, TurnFailure>) -> u32 {
    let text = estimate_tokens(said);
    match ended {
        Ok(RoundOutcome::Called { calls, reasoning }) => {
            let message =
                Message::Assistant { content: String::new(), reasoning: reasoning.clone(), calls: calls.clone() };
            text.saturating_add(message.estimate_tokens())
        }
        _ => text,
    }
}
