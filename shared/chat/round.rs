use std::{mem, sync::Arc};

use jiff::Timestamp;

use super::{
    assistant::Assistant,
    context::TurnContext,
    event::{FinishedTurn, TurnClosing, TurnEvent, TurnFailure},
    history::messages_before,
    input::TurnInput,
    prompt::SystemPrompt,
    recall::RecalledMemory,
    record::{RecordedCitation, TurnFinish, TurnRecord},
    usage::{UsageReport, UsageTally},
};
use crate::{
    conversation::{History, Lease, PendingTurnId},
    identity::UserId,
    llm::{Finish, Message, Prices, TokenUsage, ToolCall, estimate_tokens},
    tools::{ToolOffer, ToolSelection},
};

pub(super) struct RunningTurn {
    pub(super) user: UserId,
    /// `None`: a turn without persistence.
    pub(super) lease: Option<Lease>,
    pub(super) context: TurnContext,
    pub(super) offer: ToolOffer,
    pub(super) recall_failed: bool,
    pub(super) resumed: Option<PendingTurnId>,
    pub(super) progress: Progress,
}

#[derive(Default)]
pub(super) struct Progress {
    tally: UsageTally,
    pub(super) model: String,
    /// Of all rounds.
    pub(super) text: String,
    round_start: usize,
    /// The model whose usage the provider reported in this round.
    counted_model: Option<String>,
    /// The model may repeat an invalid tool call once, until tools run again.
    pub(super) has_repaired: bool,
}

pub(super) enum RoundOutcome {
    Finished(Finish),
    ToolsCalled { calls: Vec<ToolCall>, reasoning: Option<String> },
}

impl Progress {
    pub(super) fn new(model: &str) -> Self {
        Self { model: model.to_owned(), ..Self::default() }
    }

    pub(super) fn begin_round(&mut self) {
        self.round_start = self.text.len();
        self.counted_model = None;
    }

    pub(super) fn add_usage(&mut self, model: String, tokens: TokenUsage) {
        self.counted_model = Some(model.clone());
        self.tally.add(model, tokens);
    }

    pub(super) fn round_text(&self) -> &str {
        &self.text[self.round_start..]
    }
}

impl RunningTurn {
    pub(super) fn start(
        assistant: &Assistant,
        input: TurnInput,
        history: &History,
        recalled: &[RecalledMemory],
    ) -> Result<Self, minijinja::Error> {
        let system = assistant.prompts.render(&SystemPrompt {
            user: &input.user,
            profile: &input.profile,
            language: input.language,
            extra_context: &input.extra_context,
            recalled,
            summary: history.summary.as_ref().map_or("", |summary| summary.text.as_str()),
            now: Timestamp::now(),
        })?;
        let language_tag = input.language_tag().to_owned();
        let mut messages = vec![Message::System(system)];
        messages.extend(messages_before(history, input.history, &input.message));
        let begin = messages.len();
        messages.push(Message::User(input.message));
        let offer = assistant.offer_tools(&input.tools, input.recall.is_some(), input.lease.is_some());
        let progress = Progress::new(assistant.model.name(input.model.as_deref()));
        let context = TurnContext {
            messages: Arc::new(messages),
            begin,
            citations: recalled.iter().map(RecordedCitation::from).collect(),
            model: input.model,
            temperature: input.temperature,
            max_tokens: input.max_tokens,
            tools: offer.names(),
            rounds: 0,
            language_tag,
            timezone: input.profile.timezone,
            documents: input.recall.map(|filter| filter.document_ids),
            forgotten: 0,
            saved: 0,
            own_words: None,
            released_tokens: None,
        };
        let (user, lease) = (input.user, input.lease);
        Ok(Self { user, lease, context, offer, recall_failed: false, resumed: None, progress })
    }

    pub(super) fn resume(assistant: &Assistant, lease: Lease, context: TurnContext, id: PendingTurnId) -> Self {
        let selection = ToolSelection::Named(context.tools.clone());
        let offer = assistant.offer_tools(&selection, context.documents.is_some(), true);
        let progress = Progress::new(assistant.model.name(context.model.as_deref()));
        let user = lease.key.user.clone();
        Self { user, lease: Some(lease), context, offer, recall_failed: false, resumed: Some(id), progress }
    }

    pub(super) fn add_delta(&mut self, delta: &str) {
        // Without tools no request follows that would need the prompt again, which can be larger than all else of a stream.
        if self.progress.text.is_empty() && self.offer.is_empty() {
            self.context.release_prompt();
        }
        self.progress.text.push_str(delta);
    }

    /// Estimates the usage where the provider reported none.
    pub(super) fn end_round(&mut self, outcome: &Result<RoundOutcome, TurnFailure>) {
        let progress = &mut self.progress;
        // A fallback may have failed in the middle of its answer.
        if let Err(TurnFailure::Model(error)) = outcome
            && let Some(origin) = &error.origin
        {
            progress.model.clone_from(&origin.model);
        }
        let is_counted = progress.counted_model.as_ref() == Some(&progress.model);
        let is_spent = outcome.is_ok() || !progress.round_text().is_empty();
        if is_spent && !is_counted {
            let completion = estimate_completion(progress.round_text(), outcome);
            progress.tally.add_estimate(progress.model.clone(), self.context.estimate_tokens(), completion);
        }
    }

    pub(super) fn usage(&mut self, prices: &Prices) -> Option<UsageReport> {
        mem::take(&mut self.progress.tally).report(&self.progress.model, prices)
    }

    pub(super) fn to_record(&self, usage: Option<&UsageReport>, finish: TurnFinish) -> TurnRecord {
        self.context.to_record(self.progress.round_text(), &self.progress.model, usage, finish)
    }

    pub(super) fn closing(&mut self, turn: Option<FinishedTurn>) -> TurnEvent {
        TurnEvent::Closing(Box::new(TurnClosing { turn, resumed_turn: self.resumed.take() }))
    }
}

fn estimate_completion(text: &str, outcome: &Result<RoundOutcome, TurnFailure>) -> u32 {
    let tokens = estimate_tokens(text);
    let Ok(RoundOutcome::ToolsCalled { calls, reasoning }) = outcome else { return tokens };
    let message = Message::Assistant { content: String::new(), reasoning: reasoning.clone(), calls: calls.clone() };
    tokens.saturating_add(message.estimate_tokens())
}
