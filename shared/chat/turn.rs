//! The state machine of a turn.
//!
//! ```text
//! Think → Recall → Prompt ─┬→ Request → Receive ⟲ ─┬→ finished or failed
//!                 Resume ──┤     ↑                 │
//!                          │     ├─ invalid calls ─┤
//!                 approved └──── └─ ExecuteTools ⟲ ┴→ Suspend → pending
//! ```
//!
//! Events of a step are delivered before the next step starts, so a slow reader holds the turn back (backpressure).
//! Nothing runs before the first poll; dropping the stream cancels the current step and its provider call.
//!
//! Only [`TurnMachine::end`] stops, so the last event is unique. Only `Receive` is part of the stream's own state;
//! futures of other steps are boxed, so that an open stream stays small. Other steps log under the span of the call.
//! `Receive` does not enter it for each delta: models log under the span in which their answer was requested.

use std::{collections::VecDeque, mem, sync::Arc};

use async_stream::stream;
use futures_util::{Stream, StreamExt as _, stream};
use tokio::time::{Instant, sleep};
use tracing::{Instrument as _, Span};

use super::{
    assistant::Assistant,
    context::{ApprovalAnswer, repair_messages},
    event::{FinishedTurn, Stage, TurnClosing, TurnEvent, TurnFailure},
    input::TurnInput,
    interruption::Interruption,
    pending::ResumedTurn,
    recall::{RecallHits, recall, select},
    record::{TurnFinish, TurnRecord},
    round::{RoundOutcome, RunningTurn},
    tool_calls::{ClientCall, ToolCalls, replace_ids_of_deletions},
};
use crate::{
    conversation::History,
    llm::{Finish, Message, ModelError, ModelEvent, ModelStream, ToolCall},
};

impl Assistant {
    pub fn run_turn(
        self: Arc<Self>,
        input: TurnInput,
        interrupted: impl Future<Output = TurnFailure> + Send + 'static,
    ) -> impl Stream<Item = TurnEvent> + Send + 'static {
        run(self, Step::Think(Box::new(input)), Interruption::new(interrupted))
    }

    pub fn resume_turn(
        self: Arc<Self>,
        turn: ResumedTurn,
        interrupted: impl Future<Output = TurnFailure> + Send + 'static,
    ) -> impl Stream<Item = TurnEvent> + Send + 'static {
        run(self, Step::Resume(Box::new(turn)), Interruption::new(interrupted))
    }

    pub fn await_more_results() -> impl Stream<Item = TurnEvent> + Send + 'static {
        stream::iter([TurnEvent::StageEntered(Stage::Thinking), TurnEvent::AwaitsMoreResults])
    }
}

fn run(assistant: Arc<Assistant>, step: Step, interruption: Interruption) -> impl Stream<Item = TurnEvent> + Send {
    let span = Span::current();
    stream! {
        let deadline = Instant::now() + assistant.total_timeout;
        let events = VecDeque::from([TurnEvent::StageEntered(Stage::Thinking)]);
        let mut turn = TurnMachine { assistant, interruption, deadline, span, events, step };
        while let Some(event) = turn.next_event().await {
            yield event;
        }
    }
}

struct TurnMachine {
    assistant: Arc<Assistant>,
    interruption: Interruption,
    deadline: Instant,
    /// Of the call.
    span: Span,
    events: VecDeque<TurnEvent>,
    step: Step,
}

enum Step {
    Think(Box<TurnInput>),
    Recall(Box<TurnInput>),
    Prompt(Box<PromptInput>),
    Resume(Box<ResumedTurn>),
    Request(Box<RunningTurn>),
    Receive(Box<RunningTurn>, ModelStream),
    ExecuteTools(Box<RunningTurn>, ToolCalls),
    Suspend(Box<RunningTurn>, Vec<ClientCall>),
    Done,
}

struct PromptInput {
    input: TurnInput,
    history: History,
    /// `None`: retrieval failed.
    recalled: Option<RecallHits>,
}

impl TurnMachine {
    async fn next_event(&mut self) -> Option<TurnEvent> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            let received = match &mut self.step {
                Step::Receive(turn, answer) => match self.interruption.race(answer.next()).await {
                    Ok(Some(Ok(ModelEvent::Delta(delta)))) => {
                        turn.add_delta(&delta);
                        return Some(TurnEvent::Delta(delta));
                    }
                    received => received,
                },
                Step::Done => return None,
                _ => {
                    let span = self.span.clone();
                    Box::pin(self.take_step()).instrument(span).await;
                    continue;
                }
            };
            let span = self.span.clone();
            span.in_scope(|| self.on_received(received));
        }
    }

    /// Every step but `Receive`.
    async fn take_step(&mut self) {
        self.step = match mem::replace(&mut self.step, Step::Done) {
            Step::Think(input) => self.think(input).await,
            Step::Recall(input) => self.recall(input).await,
            Step::Prompt(input) => self.prompt(*input),
            Step::Resume(turn) => self.resume(*turn),
            Step::Request(turn) => self.request(turn),
            Step::ExecuteTools(turn, calls) => self.execute_tools(turn, calls).await,
            Step::Suspend(turn, calls) => self.suspend(turn, calls).await,
            step @ (Step::Receive(..) | Step::Done) => step,
        };
    }

    fn emit(&mut self, event: TurnEvent) {
        debug_assert!(!event.is_last(), "a last event ends the turn");
        self.events.push_back(event);
    }

    fn end(&mut self, last: TurnEvent) -> Step {
        debug_assert!(last.is_last(), "a turn ends with a last event");
        self.events.push_back(last);
        Step::Done
    }

    async fn think(&mut self, input: Box<TurnInput>) -> Step {
        let delay = self.assistant.thinking_delay;
        if !delay.is_zero()
            && let Err(failure) = self.interruption.race(sleep(delay)).await
        {
            return self.interrupted_before_model(&input, failure);
        }
        if self.is_recalling(&input) {
            self.emit(TurnEvent::StageEntered(Stage::Searching));
        }
        Step::Recall(input)
    }

    fn is_recalling(&self, input: &TurnInput) -> bool {
        input.recall.is_some() && self.assistant.memory.is_configured()
    }

    async fn recall(&mut self, mut input: Box<TurnInput>) -> Step {
        let is_recalling = self.is_recalling(&input);
        let stored_history = input.stored_history.take();
        let recalled =
            async { if is_recalling { recall(&self.assistant.memory, &input).await } else { Some(Vec::new()) } };
        let history = async {
            match stored_history {
                Some(history) => Ok(history),
                None => self.assistant.load_history(&input).await,
            }
        };
        let loading = async { tokio::join!(recalled, history) };
        match self.interruption.race(loading).await {
            Ok((recalled, Ok(history))) => Step::Prompt(Box::new(PromptInput { input: *input, history, recalled })),
            Ok((_, Err(error))) => {
                // Without the history the answer would ignore the conversation, and the client could not tell.
                tracing::warn!(%error, "the conversation cannot be read");
                self.end(TurnEvent::Failed(TurnFailure::NotPersisted))
            }
            Err(failure) => self.interrupted_before_model(&input, failure),
        }
    }

    /// The question is worth persisting even without an answer.
    fn interrupted_before_model(&mut self, input: &TurnInput, failure: TurnFailure) -> Step {
        let messages = vec![Message::User(input.message.clone())];
        let mut record = TurnRecord::new(messages, input.model.clone().unwrap_or_default(), TurnFinish::Cancelled);
        input.language_tag().clone_into(&mut record.language_tag);
        record.timezone.clone_from(&input.profile.timezone);
        let turn = Some(FinishedTurn { record, is_complete: false });
        self.emit(TurnEvent::Closing(Box::new(TurnClosing { turn, resumed_turn: None })));
        self.end(TurnEvent::Failed(failure))
    }

    fn prompt(&mut self, input: PromptInput) -> Step {
        let PromptInput { input, history, recalled } = input;
        let recall_failed = recalled.is_none();
        let recalled = select(recalled.unwrap_or_default(), &input, &history);
        let turn = RunningTurn::start(&self.assistant, input, &history, &recalled);
        if !recalled.is_empty() {
            self.emit(TurnEvent::Recalled(recalled));
        }
        match turn {
            Ok(turn) => self.generate(Box::new(RunningTurn { recall_failed, ..turn })),
            Err(error) => {
                tracing::error!(%error, "the system prompt cannot be rendered");
                self.end(TurnEvent::Failed(TurnFailure::Internal))
            }
        }
    }

    fn resume(&mut self, ResumedTurn { lease, context, id, approvals }: ResumedTurn) -> Step {
        let turn = Box::new(RunningTurn::resume(&self.assistant, lease, context, id));
        if approvals.is_empty() { self.generate(turn) } else { self.resume_tools(turn, approvals) }
    }

    fn generate(&mut self, turn: Box<RunningTurn>) -> Step {
        self.emit(TurnEvent::StageEntered(Stage::Generating { recall_failed: turn.recall_failed }));
        Step::Request(turn)
    }

    fn request(&mut self, mut turn: Box<RunningTurn>) -> Step {
        turn.progress.begin_round();
        let request = turn.context.model_request(&turn.user, &turn.offer, self.deadline);
        let answer = self.assistant.model.clone().answer(request);
        Step::Receive(turn, answer)
    }

    /// Handles every outcome of a poll of the model but a delta.
    fn on_received(&mut self, received: Result<Option<Result<ModelEvent, ModelError>>, TurnFailure>) {
        let Step::Receive(mut turn, answer) = mem::replace(&mut self.step, Step::Done) else { return };
        let outcome = match received {
            Ok(Some(Ok(ModelEvent::Delta(delta)))) => {
                turn.add_delta(&delta);
                self.emit(TurnEvent::Delta(delta));
                self.step = Step::Receive(turn, answer);
                return;
            }
            Ok(Some(Ok(ModelEvent::Usage { model, tokens }))) => {
                turn.progress.add_usage(model, tokens);
                self.step = Step::Receive(turn, answer);
                return;
            }
            Ok(Some(Ok(ModelEvent::Finished { model, finish }))) => {
                turn.progress.model = model;
                Ok(RoundOutcome::Finished(finish))
            }
            Ok(Some(Ok(ModelEvent::ToolsCalled { model, calls, reasoning }))) => {
                turn.progress.model = model;
                Ok(RoundOutcome::ToolsCalled { calls, reasoning })
            }
            Ok(Some(Err(error))) => Err(error.into()),
            Ok(None) => Err(TurnFailure::Internal),
            Err(failure) => Err(failure),
        };
        drop(answer);
        turn.end_round(&outcome);
        self.step = match outcome {
            Ok(RoundOutcome::Finished(finish)) => self.finish(turn, finish),
            Ok(RoundOutcome::ToolsCalled { calls, reasoning }) => self.dispatch_tools(turn, calls, reasoning),
            Err(failure) => self.fail(turn, failure),
        };
    }

    fn dispatch_tools(
        &mut self,
        mut turn: Box<RunningTurn>,
        mut calls: Vec<ToolCall>,
        reasoning: Option<String>,
    ) -> Step {
        if turn.context.must_answer() {
            return self.fail(turn, TurnFailure::ToolRoundsExceeded);
        }
        // A call although no tool was offered, after text: there is no prompt left to repeat the request with.
        if turn.context.has_released_prompt() {
            return self.fail(turn, TurnFailure::InvalidToolCall);
        }
        turn.context.rounds += 1;
        replace_ids_of_deletions(&mut calls);
        let validated: Vec<_> = calls.iter().map(|call| turn.offer.validate(call)).collect();
        let content = turn.progress.round_text().to_owned();
        turn.context.push(Message::Assistant { content, reasoning, calls: calls.clone() });
        // All or none of the calls run, so that a repetition runs none of them twice.
        if validated.iter().any(Result::is_err) {
            if mem::replace(&mut turn.progress.has_repaired, true) {
                return self.fail(turn, TurnFailure::InvalidToolCall);
            }
            let problems: Vec<_> = validated.into_iter().map(Result::err).collect();
            for message in repair_messages(&calls, &problems) {
                turn.context.push(message);
            }
            return Step::Request(turn);
        }
        turn.progress.has_repaired = false;
        self.emit(TurnEvent::StageEntered(Stage::ExecutingTools));
        let calls = ToolCalls::new(calls.into_iter().zip(validated.into_iter().flatten()));
        Step::ExecuteTools(turn, calls)
    }

    fn resume_tools(&mut self, mut turn: Box<RunningTurn>, answers: Vec<ApprovalAnswer>) -> Step {
        // As in every round: clients expect the tools of an answer that is being generated.
        self.emit(TurnEvent::StageEntered(Stage::Generating { recall_failed: turn.recall_failed }));
        self.emit(TurnEvent::StageEntered(Stage::ExecutingTools));
        let (calls, events) = ToolCalls::of_answers(&mut turn, answers);
        self.events.extend(events);
        Step::ExecuteTools(turn, calls)
    }

    async fn execute_tools(&mut self, mut turn: Box<RunningTurn>, mut calls: ToolCalls) -> Step {
        let Some(call) = calls.server.next() else {
            return if calls.client.is_empty() { self.generate(turn) } else { Step::Suspend(turn, calls.client) };
        };
        if Instant::now() >= self.deadline {
            return self.fail(turn, TurnFailure::DeadlineExceeded);
        }
        let execution = call.run(&self.assistant, &mut turn);
        match self.interruption.race(execution).await {
            Ok(Ok(executed)) => self.emit(executed),
            Ok(Err(client_call)) => calls.client.push(client_call),
            Err(failure) => return self.fail(turn, failure),
        }
        Step::ExecuteTools(turn, calls)
    }

    async fn suspend(&mut self, mut turn: Box<RunningTurn>, calls: Vec<ClientCall>) -> Step {
        let call_ids: Vec<&str> = calls.iter().map(ClientCall::id).collect();
        let storing = self.assistant.store_pending_turn(turn.lease.as_ref(), &turn.context, &call_ids);
        if let Err(failure) = self.interruption.race(storing).await.flatten() {
            return self.fail(turn, failure);
        }
        self.events.extend(calls.into_iter().map(ClientCall::into_event));
        self.events.extend(turn.usage(&self.assistant.prices).map(TurnEvent::Usage));
        self.end(TurnEvent::AwaitsTools)
    }

    fn finish(&mut self, mut turn: Box<RunningTurn>, finish: Finish) -> Step {
        let usage = turn.usage(&self.assistant.prices);
        if turn.lease.is_some() {
            let record = turn.to_record(usage.as_ref(), finish.into());
            self.emit(turn.closing(Some(FinishedTurn { record, is_complete: true })));
        }
        self.events.extend(usage.map(TurnEvent::Usage));
        self.end(TurnEvent::Answered { text: turn.progress.text, finish })
    }

    fn fail(&mut self, mut turn: Box<RunningTurn>, failure: TurnFailure) -> Step {
        let usage = turn.usage(&self.assistant.prices);
        if turn.lease.is_some() {
            let is_stopped =
                matches!(failure, TurnFailure::Cancelled | TurnFailure::Abandoned | TurnFailure::Preempted);
            let finish = if is_stopped { TurnFinish::Cancelled } else { TurnFinish::Failed };
            // A failed turn may be retried, and is persisted only if the user has seen a part of it.
            let is_persisted = is_stopped || !turn.progress.text.is_empty();
            let finished = is_persisted
                .then(|| FinishedTurn { record: turn.to_record(usage.as_ref(), finish), is_complete: false });
            self.emit(turn.closing(finished));
        }
        self.events.extend(usage.map(TurnEvent::Usage));
        self.end(TurnEvent::Failed(failure))
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    fn size_of_stream<T, S>(_: impl FnOnce(Arc<Assistant>, T) -> S) -> usize {
        size_of::<S>()
    }

    /// Per open stream, so times the number of concurrent turns.
    #[test]
    fn turn_stream_stays_small() {
        let run = size_of_stream(|assistant, input: TurnInput| assistant.run_turn(input, pending()));
        let resume = size_of_stream(|assistant, turn: ResumedTurn| assistant.resume_turn(turn, pending()));
        assert!(run.max(resume) <= 1024, "run_turn: {run} bytes, resume_turn: {resume} bytes");
    }
}
