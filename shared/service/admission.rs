//! Admission: everything that can refuse a turn before its first frame.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::{Stream, StreamExt as _};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tonic::metadata::MetadataMap;

use super::{
    call::{Call, Gate},
    frames::{Envelope, FrameMaker},
    parse::{
        self,
        chat::{ChatCommand, ChatInput},
    },
    run::{self, Events, LogReader, NewOwner, Runs, events_or_defect},
};
use crate::{
    chat::{Assistant, Failure, Profile, Taken, TurnRequest},
    config::LimitsByPlan,
    conversation::{Admission, Lease, Limit, NewRun, RunKey, StoreError},
    error::{InvalidArgument, Problem},
    identity::{Caller, Refusal, RequestId, SessionId, TraceId, UserId},
    language::Language,
    proto::agent_v1 as pb,
};

/// Metadata that names the last frame which a client saw before it lost its connection.
pub(super) const LAST_RESPONSE_ID: &str = "x-last-response-id";

/// Lets calls in.
pub(super) struct Door {
    pub(super) assistant: Arc<Assistant>,
    pub(super) gate: Gate,
    /// Where conversations are kept; `None` = they are not.
    pub(super) runs: Option<Runs>,
    pub(super) limits: Option<LimitsByPlan>,
    /// One for each answer that this process may give at the same time.
    pub(super) places: Arc<Semaphore>,
}

/// A call that was let in.
pub(super) struct Admitted {
    pub(super) envelope: Envelope,
    pub(super) way: Way,
}

/// Why a call was not let in.
#[derive(Debug)]
pub(super) enum TurnedAway {
    /// By what it says, or who makes it.
    Refused(Refusal),
    /// The store of conversations can not be asked in time.
    Store(StoreError),
    /// The conversation answers another request.
    Busy(std::time::Duration),
    /// The user has used up what they may.
    Over(Limit, std::time::Duration),
    /// This process answers as many as it can.
    Full,
}

impl<R: Into<Refusal>> From<R> for TurnedAway {
    fn from(refusal: R) -> Self {
        Self::Refused(refusal.into())
    }
}

impl From<StoreError> for TurnedAway {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Where the frames of a call come from.
pub(super) enum Way {
    /// Straight from a turn, of which nothing is kept.
    Straight { events: Events, maker: FrameMaker, number: u32, _place: OwnedSemaphorePermit },
    /// From a run of this process.
    Here(LogReader),
    /// From what is kept of a run.
    Kept(Pin<Box<dyn Stream<Item = (u32, pb::ChatResponse)> + Send>>),
}

impl Way {
    /// The next frame without its envelope, and its number.
    pub(super) fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<(u32, pb::ChatResponse)>> {
        match self {
            Self::Straight { events, maker, number, .. } => loop {
                let event = std::task::ready!(events.as_mut().poll_next(context));
                let Some(event) = event else { return Poll::Ready(None) };
                if let Some(frame) = maker.frame(event) {
                    *number += 1;
                    return Poll::Ready(Some((*number, frame)));
                }
            },
            Self::Here(reader) => reader.poll_next_unpin(context),
            Self::Kept(frames) => frames.as_mut().poll_next(context),
        }
    }
}

/// What a call wants, once it is understood.
struct Wish {
    user: UserId,
    session: SessionId,
    request: RequestId,
    fingerprint: [u8; 32],
    /// The last frame that the client saw.
    last_seen: Option<String>,
    is_pro: bool,
    /// Whether it needs nothing that was said before, or brings it along.
    brings_all: bool,
    maker_of: MakerOf,
    input: ChatInput,
}

/// What frames are made with, as far as the request tells.
struct MakerOf {
    language_tag: String,
    whole_citations: bool,
}

impl MakerOf {
    /// A maker that speaks the language of the request, or else of the profile that is known.
    fn with(&self, known: &str) -> FrameMaker {
        let tag = if self.language_tag.is_empty() { known } else { &self.language_tag };
        FrameMaker::new(Language::from_tag(tag), self.whole_citations)
    }
}

impl Door {
    /// Lets a call in or turns it away. `over` ends its turn from outside.
    pub(super) async fn admit(
        &self,
        call: &Call,
        metadata: &MetadataMap,
        trace: TraceId,
        request: pb::ChatRequest,
        over: impl Future<Output = Failure> + Send + 'static,
    ) -> Result<Admitted, TurnedAway> {
        let caller = self.gate.caller(&request.user_id, metadata).await?;
        call.is_of(&caller.user);
        let wish = self.understand(caller, metadata, request)?;
        let model = match &wish.input {
            ChatInput::Message(turn) => turn.model.as_deref(),
            ChatInput::ToolResult(_) => None,
        };
        call.is_for(&wish.session, &wish.request, self.assistant.model.name(model));
        match &self.runs {
            Some(runs) => self.begin_or_attach(runs, trace, wish, over).await,
            None => self.begin_straight(trace, wish, over, self.place(), false),
        }
    }

    fn understand(
        &self,
        caller: Caller,
        metadata: &MetadataMap,
        mut request: pb::ChatRequest,
    ) -> Result<Wish, TurnedAway> {
        let last_seen = match metadata.get(LAST_RESPONSE_ID).map(|value| value.to_str()) {
            None => None,
            Some(Ok(id)) => Some(id.to_owned()),
            Some(Err(_)) => return Err(not_of_this_answer().into()),
        };
        let claimed_pro = request.user_profile.as_ref().is_some_and(|profile| profile.is_pro);
        // The same request may name its user in its body or in its metadata.
        caller.user.as_str().clone_into(&mut request.user_id);
        let brings_all = request.session_id.is_empty() || !request.history.is_empty();
        let fingerprint = Sha256::digest(request.encode_to_vec()).into();
        let ChatCommand { session, request, whole_citations, language_tag, input } =
            parse::chat::parse(caller.user.clone(), request)?;
        if let ChatInput::Message(turn) = &input
            && let Some(model) = &turn.model
            && !self.assistant.model.allows(model)
        {
            return Err(InvalidArgument::new("config.model", Problem::Unknown { what: "allowed model" }).into());
        }
        Ok(Wish {
            is_pro: caller.is_pro.unwrap_or(claimed_pro),
            brings_all,
            user: caller.user,
            session,
            request,
            fingerprint,
            last_seen,
            maker_of: MakerOf { language_tag, whole_citations },
            input,
        })
    }

    fn place(&self) -> Result<OwnedSemaphorePermit, TurnedAway> {
        self.places.clone().try_acquire_owned().map_err(|_| TurnedAway::Full)
    }

    /// Begins a turn of which nothing is kept; `is_told` = although it should be.
    fn begin_straight(
        &self,
        trace: TraceId,
        wish: Wish,
        over: impl Future<Output = Failure> + Send + 'static,
        place: Result<OwnedSemaphorePermit, TurnedAway>,
        is_told: bool,
    ) -> Result<Admitted, TurnedAway> {
        if wish.last_seen.is_some() {
            return Err(not_of_this_answer().into());
        }
        // Nothing that could wait for a result is kept.
        let ChatInput::Message(turn) = wish.input else { return Err(unknown_call().into()) };
        let place = place?;
        let events: Events = Box::pin(self.assistant.clone().turn(*turn, over));
        let events = Box::pin(events_or_defect(events));
        let way = Way::Straight { events, maker: wish.maker_of.with("").not_kept(is_told), number: 0, _place: place };
        Ok(Admitted { envelope: Envelope::new(wish.session, wish.request, trace), way })
    }

    /// Begins a run, or joins the one that the same request began.
    async fn begin_or_attach(
        &self,
        runs: &Runs,
        trace: TraceId,
        wish: Wish,
        over: impl Future<Output = Failure> + Send + 'static,
    ) -> Result<Admitted, TurnedAway> {
        let envelope = Envelope::new(wish.session.clone(), wish.request.clone(), trace.clone());
        // A conversation that begins here, or that the client brings along, can be answered without the store.
        let needs_nothing_kept = wish.brings_all && wish.last_seen.is_none();
        // Whoever only reads along takes no place.
        let place = self.place();
        let run = NewRun {
            key: RunKey { user: wish.user.clone(), session: wish.session.clone(), request: wish.request.clone() },
            fingerprint: wish.fingerprint,
            head: envelope.to_bytes(),
            takes_session: matches!(wish.input, ChatInput::Message(_)),
            resumes: wish.last_seen.is_some() || place.is_err(),
            limits: self.limits.map(|limits| limits.of(wish.is_pro)),
        };
        let admission = match runs.store.admit(&run).await {
            Err(error) if error.is_out_of_reach() && needs_nothing_kept => {
                tracing::warn!(%error, "the store of conversations is out of reach; the turn is answered and not kept");
                return self.begin_straight(trace, wish, over, place, true);
            }
            admission => admission?,
        };
        match admission {
            Admission::Started { lease, profile } => {
                let place = place?;
                self.begin(runs, wish, envelope, lease, profile, place, over).await
            }
            Admission::Known { session: _, fingerprint } => {
                if fingerprint != wish.fingerprint {
                    let problem = Problem::Contradicts { other: "an earlier request of the same id" };
                    return Err(InvalidArgument::new("request_id", problem).into());
                }
                attach(runs, wish).await
            }
            Admission::Unknown if wish.last_seen.is_none() => Err(TurnedAway::Full),
            Admission::Unknown => Err(not_of_this_answer().into()),
            Admission::Busy { retry_after } => Err(TurnedAway::Busy(retry_after)),
            Admission::Over { limit, retry_after } => Err(TurnedAway::Over(limit, retry_after)),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "all that was found out at the door")]
    async fn begin(
        &self,
        runs: &Runs,
        wish: Wish,
        envelope: Envelope,
        lease: Lease,
        profile: Option<Vec<u8>>,
        place: OwnedSemaphorePermit,
        over: impl Future<Output = Failure> + Send + 'static,
    ) -> Result<Admitted, TurnedAway> {
        let known: Profile = profile.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let assistant = self.assistant.clone();
        let new_owner = |maker, profile| NewOwner { lease: lease.clone(), envelope, maker, profile, place };
        let reader = match wish.input {
            ChatInput::Message(turn) => {
                let profile = turn.profile.clone().or(known.clone());
                let changed = (profile != known).then(|| serde_json::to_vec(&profile).ok()).flatten();
                let maker = wish.maker_of.with(&profile.language_tag);
                let turn = TurnRequest { lease: Some(lease.clone()), profile, ..*turn };
                runs.start(new_owner(maker, changed), |stop| Box::pin(assistant.turn(turn, either(stop, over))))
            }
            ChatInput::ToolResult(result) => {
                let taken = match assistant.accept(&lease, result).await {
                    Ok(taken) => taken,
                    Err(error) => {
                        abandon(runs, &lease).await;
                        return Err(error.into());
                    }
                };
                match taken {
                    Taken::Waiting => {
                        let maker = wish.maker_of.with(&known.language_tag);
                        runs.start(new_owner(maker, None), |_| Box::pin(Assistant::wait()))
                    }
                    Taken::Resumed(turn) => {
                        // A result need not repeat the profile that its turn began with.
                        let maker = wish.maker_of.with(turn.language_tag());
                        runs.start(new_owner(maker, None), |stop| Box::pin(assistant.resume(*turn, either(stop, over))))
                    }
                    refused => {
                        abandon(runs, &lease).await;
                        return Err(match refused {
                            Taken::Busy(retry_after) => TurnedAway::Busy(retry_after),
                            Taken::Duplicate => duplicate_call().into(),
                            _ => unknown_call().into(),
                        });
                    }
                }
            }
        };
        Ok(Admitted { envelope: reader.envelope().clone(), way: Way::Here(reader) })
    }
}

/// Joins a run behind the last frame that the client saw.
async fn attach(runs: &Runs, wish: Wish) -> Result<Admitted, TurnedAway> {
    let seen = |envelope: &Envelope| match &wish.last_seen {
        Some(id) => envelope.number_of(id).ok_or_else(|| TurnedAway::from(not_of_this_answer())),
        None => Ok(0),
    };
    if let Some(log) = runs.find(&wish.user, &wish.request) {
        let after = seen(&log.envelope)?;
        let reader = log.read(after);
        return Ok(Admitted { envelope: log.envelope.clone(), way: Way::Here(reader) });
    }
    let maker = wish.maker_of.with("");
    let kept = run::follow(runs.store.clone(), wish.user.clone(), wish.request.clone(), seen, maker).await?;
    let Some(kept) = kept else { return Err(not_of_this_answer().into()) };
    Ok(Admitted { envelope: kept.envelope, way: Way::Kept(kept.frames) })
}

/// Takes back an admission. Where that fails, the lease ends by itself.
async fn abandon(runs: &Runs, lease: &Lease) {
    if let Err(error) = runs.store.abandon(lease).await {
        tracing::warn!(%error, "a run that was refused is still kept");
    }
}

/// What ends a turn: its owner, or something outside.
async fn either(stop: oneshot::Receiver<Failure>, over: impl Future<Output = Failure>) -> Failure {
    tokio::select! {
        // An owner that is gone ends nothing.
        Ok(failure) = stop => failure,
        failure = over => failure,
    }
}

fn unknown_call() -> InvalidArgument {
    let problem = Problem::Unknown { what: "pending tool call of this session" };
    InvalidArgument::new("tool_result.tool_call_id", problem)
}

fn duplicate_call() -> InvalidArgument {
    let problem = Problem::Unknown { what: "tool call that still waits for a result" };
    InvalidArgument::new("tool_result.tool_call_id", problem)
}

fn not_of_this_answer() -> InvalidArgument {
    InvalidArgument::new(LAST_RESPONSE_ID, Problem::Unknown { what: "frame of an answer to this request" })
}
