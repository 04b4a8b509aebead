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
    call::{RpcCall, RpcContext},
    frames::{Envelope, FrameBuilder},
    parse::{
        self,
        chat::{ChatCall, ChatInput},
    },
    run::{self, AdmittedRun, LogReader, RunRegistry, TurnEvents, events_or_defect},
};
use crate::{
    chat::{Assistant, Profile, TurnFailure, TurnInput},
    config::QuotasByPlan,
    conversation::{AdmitOutcome, Lease, NewRun, QuotaKind, RunKey, StoreError, ToolResultOutcome},
    error::{InvalidArgument, Problem},
    identity::{AuthnError, Principal, RequestId, SessionId, TraceId, UserId},
    language::Language,
    proto::agent_v1 as pb,
};

/// Metadata that names the last frame which a client saw before it lost its connection.
pub(super) const LAST_RESPONSE_ID: &str = "x-last-response-id";

/// Lets calls in.
pub(super) struct Admission {
    pub(super) assistant: Arc<Assistant>,
    pub(super) context: RpcContext,
    /// Where conversations are kept; `None` = they are not.
    pub(super) runs: Option<RunRegistry>,
    pub(super) limits: Option<QuotasByPlan>,
    /// One for each answer that this process may give at the same time.
    pub(super) permits: Arc<Semaphore>,
}

/// A call that was let in.
pub(super) struct AdmittedCall {
    pub(super) envelope: Envelope,
    pub(super) source: FrameSource,
}

/// Why a call was not let in.
#[derive(Debug)]
pub(super) enum AdmissionError {
    /// By what it says, or who makes it.
    Authn(AuthnError),
    /// The store of conversations can not be asked in time.
    StoreUnavailable(StoreError),
    /// The conversation answers another request.
    Busy(std::time::Duration),
    /// The user has used up what they may.
    QuotaExceeded(QuotaKind, std::time::Duration),
    /// This process answers as many as it can.
    Overloaded,
}

impl<R: Into<AuthnError>> From<R> for AdmissionError {
    fn from(refusal: R) -> Self {
        Self::Authn(refusal.into())
    }
}

impl From<StoreError> for AdmissionError {
    fn from(error: StoreError) -> Self {
        Self::StoreUnavailable(error)
    }
}

/// Where the frames of a call come from.
pub(super) enum FrameSource {
    /// Straight from a turn, of which nothing is kept.
    Direct { events: TurnEvents, maker: FrameBuilder, number: u32, _place: OwnedSemaphorePermit },
    /// From a run of this process.
    Live(LogReader),
    /// From what is kept of a run.
    Replay(Pin<Box<dyn Stream<Item = (u32, pb::ChatResponse)> + Send>>),
}

impl FrameSource {
    /// The next frame without its envelope, and its number.
    pub(super) fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<(u32, pb::ChatResponse)>> {
        match self {
            Self::Direct { events, maker, number, .. } => loop {
                let event = std::task::ready!(events.as_mut().poll_next(context));
                let Some(event) = event else { return Poll::Ready(None) };
                if let Some(frame) = maker.build(event) {
                    *number += 1;
                    return Poll::Ready(Some((*number, frame)));
                }
            },
            Self::Live(reader) => reader.poll_next_unpin(context),
            Self::Replay(frames) => frames.as_mut().poll_next(context),
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
    fn with(&self, known: &str) -> FrameBuilder {
        let tag = if self.language_tag.is_empty() { known } else { &self.language_tag };
        FrameBuilder::new(Language::from_tag(tag), self.whole_citations)
    }
}

impl Admission {
    /// Lets a call in or turns it away. `over` ends its turn from outside.
    pub(super) async fn admit(
        &self,
        call: &RpcCall,
        metadata: &MetadataMap,
        trace: TraceId,
        request: pb::ChatRequest,
        over: impl Future<Output = TurnFailure> + Send + 'static,
    ) -> Result<AdmittedCall, AdmissionError> {
        let caller = self.context.authenticate(&request.user_id, metadata).await?;
        call.set_user(&caller.user);
        let wish = self.understand(caller, metadata, request)?;
        let model = match &wish.input {
            ChatInput::Message(turn) => turn.model.as_deref(),
            ChatInput::ToolResult(_) => None,
        };
        call.set_request(&wish.session, &wish.request, self.assistant.model.name(model));
        match &self.runs {
            Some(runs) => self.begin_or_attach(runs, trace, wish, over).await,
            None => self.begin_straight(trace, wish, over, self.place(), false),
        }
    }

    fn understand(
        &self,
        caller: Principal,
        metadata: &MetadataMap,
        mut request: pb::ChatRequest,
    ) -> Result<Wish, AdmissionError> {
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
        let ChatCall { session, request, whole_citations, language_tag, input } =
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

    fn place(&self) -> Result<OwnedSemaphorePermit, AdmissionError> {
        self.permits.clone().try_acquire_owned().map_err(|_| AdmissionError::Overloaded)
    }

    /// Begins a turn of which nothing is kept; `is_told` = although it should be.
    fn begin_straight(
        &self,
        trace: TraceId,
        wish: Wish,
        over: impl Future<Output = TurnFailure> + Send + 'static,
        place: Result<OwnedSemaphorePermit, AdmissionError>,
        is_told: bool,
    ) -> Result<AdmittedCall, AdmissionError> {
        if wish.last_seen.is_some() {
            return Err(not_of_this_answer().into());
        }
        // Nothing that could wait for a result is kept.
        let ChatInput::Message(turn) = wish.input else { return Err(unknown_call().into()) };
        let place = place?;
        let events: TurnEvents = Box::pin(self.assistant.clone().run_turn(*turn, over));
        let events = Box::pin(events_or_defect(events));
        let way =
            FrameSource::Direct { events, maker: wish.maker_of.with("").not_kept(is_told), number: 0, _place: place };
        Ok(AdmittedCall { envelope: Envelope::new(wish.session, wish.request, trace), source: way })
    }

    /// Begins a run, or joins the one that the same request began.
    async fn begin_or_attach(
        &self,
        runs: &RunRegistry,
        trace: TraceId,
        wish: Wish,
        over: impl Future<Output = TurnFailure> + Send + 'static,
    ) -> Result<AdmittedCall, AdmissionError> {
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
            quotas: self.limits.map(|limits| limits.for_plan(wish.is_pro)),
        };
        let admission = match runs.store.admit(&run).await {
            Err(error) if error.is_unreachable() && needs_nothing_kept => {
                tracing::warn!(%error, "the store of conversations is out of reach; the turn is answered and not kept");
                return self.begin_straight(trace, wish, over, place, true);
            }
            admission => admission?,
        };
        match admission {
            AdmitOutcome::Started { lease, profile } => {
                let place = place?;
                self.begin(runs, wish, envelope, lease, profile, place, over).await
            }
            AdmitOutcome::Known { session: _, fingerprint } => {
                if fingerprint != wish.fingerprint {
                    let problem = Problem::Contradicts { other: "an earlier request of the same id" };
                    return Err(InvalidArgument::new("request_id", problem).into());
                }
                attach(runs, wish).await
            }
            AdmitOutcome::Unknown if wish.last_seen.is_none() => Err(AdmissionError::Overloaded),
            AdmitOutcome::Unknown => Err(not_of_this_answer().into()),
            AdmitOutcome::Busy { retry_after } => Err(AdmissionError::Busy(retry_after)),
            AdmitOutcome::QuotaExceeded { quota: limit, retry_after } => {
                Err(AdmissionError::QuotaExceeded(limit, retry_after))
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "all that was found out at the door")]
    async fn begin(
        &self,
        runs: &RunRegistry,
        wish: Wish,
        envelope: Envelope,
        lease: Lease,
        profile: Option<Vec<u8>>,
        place: OwnedSemaphorePermit,
        over: impl Future<Output = TurnFailure> + Send + 'static,
    ) -> Result<AdmittedCall, AdmissionError> {
        let known: Profile = profile.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let assistant = self.assistant.clone();
        let new_owner =
            |maker, profile| AdmittedRun { lease: lease.clone(), envelope, builder: maker, profile, permit: place };
        let reader = match wish.input {
            ChatInput::Message(turn) => {
                let profile = turn.profile.clone().with_defaults_from(known.clone());
                let changed = (profile != known).then(|| serde_json::to_vec(&profile).ok()).flatten();
                let maker = wish.maker_of.with(&profile.language_tag);
                let turn = TurnInput { lease: Some(lease.clone()), profile, ..*turn };
                runs.start(new_owner(maker, changed), |stop| Box::pin(assistant.run_turn(turn, either(stop, over))))
            }
            ChatInput::ToolResult(result) => {
                let taken = match assistant.record_tool_result(&lease, result).await {
                    Ok(taken) => taken,
                    Err(error) => {
                        abandon(runs, &lease).await;
                        return Err(error.into());
                    }
                };
                match taken {
                    ToolResultOutcome::Pending => {
                        let maker = wish.maker_of.with(&known.language_tag);
                        runs.start(new_owner(maker, None), |_| Box::pin(Assistant::await_more_results()))
                    }
                    ToolResultOutcome::Complete(turn) => {
                        // A result need not repeat the profile that its turn began with.
                        let maker = wish.maker_of.with(turn.language_tag());
                        runs.start(new_owner(maker, None), |stop| {
                            Box::pin(assistant.resume_turn(*turn, either(stop, over)))
                        })
                    }
                    refused => {
                        abandon(runs, &lease).await;
                        return Err(match refused {
                            ToolResultOutcome::Busy { retry_after } => AdmissionError::Busy(retry_after),
                            ToolResultOutcome::Duplicate => duplicate_call().into(),
                            _ => unknown_call().into(),
                        });
                    }
                }
            }
        };
        Ok(AdmittedCall { envelope: reader.envelope().clone(), source: FrameSource::Live(reader) })
    }
}

/// Joins a run behind the last frame that the client saw.
async fn attach(runs: &RunRegistry, wish: Wish) -> Result<AdmittedCall, AdmissionError> {
    let seen = |envelope: &Envelope| match &wish.last_seen {
        Some(id) => envelope.number_of(id).ok_or_else(|| AdmissionError::from(not_of_this_answer())),
        None => Ok(0),
    };
    if let Some(log) = runs.find(&wish.user, &wish.request) {
        let after = seen(&log.envelope)?;
        let reader = log.read(after);
        return Ok(AdmittedCall { envelope: log.envelope.clone(), source: FrameSource::Live(reader) });
    }
    let maker = wish.maker_of.with("");
    let kept = run::follow(runs.store.clone(), wish.user.clone(), wish.request.clone(), seen, maker).await?;
    let Some(kept) = kept else { return Err(not_of_this_answer().into()) };
    Ok(AdmittedCall { envelope: kept.envelope, source: FrameSource::Replay(kept.frames) })
}

/// Takes back an admission. Where that fails, the lease ends by itself.
async fn abandon(runs: &RunRegistry, lease: &Lease) {
    if let Err(error) = runs.store.revoke_admission(lease).await {
        tracing::warn!(%error, "a run that was refused is still kept");
    }
}

/// What ends a turn: its owner, or something outside.
async fn either(stop: oneshot::Receiver<TurnFailure>, over: impl Future<Output = TurnFailure>) -> TurnFailure {
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
