//! A run of another process, or one that is over, read from the store.

use std::{collections::VecDeque, pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use tokio::time::sleep;

use super::log::frames_of;
use crate::{
    chat::{TurnEvent, TurnFailure},
    conversation::{ConversationStore, RunState, StoreError},
    identity::{RequestId, UserId},
    proto::agent_v1 as pb,
    service::frames::{Envelope, FrameBuilder},
};

/// Time between two looks. Frames of another process come in pieces of about this length.
const INTERVAL: Duration = Duration::from_millis(250);
/// Looks that may fail one after the other.
const MAX_FAILURES: u32 = 20;

/// Frames without their envelope, and their numbers.
pub(in crate::service) struct Followed {
    pub(in crate::service) envelope: Envelope,
    pub(in crate::service) frames: Pin<Box<dyn Stream<Item = (u32, pb::ChatResponse)> + Send>>,
}

/// Reads what is kept of a run after the number that `after` tells, and then what comes. `None` = nothing is kept of it.
///
/// # Errors
/// The store failed, or `after` did.
pub(in crate::service) async fn follow<E: From<StoreError>>(
    store: Arc<dyn ConversationStore>,
    user: UserId,
    request: RequestId,
    after: impl FnOnce(&Envelope) -> Result<u32, E>,
    maker: FrameBuilder,
) -> Result<Option<Followed>, E> {
    let Some(run) = store.follow(&user, &request, 0).await? else { return Ok(None) };
    let envelope = Envelope::from_bytes(&run.head).ok_or(StoreError::Malformed("the head of a run"))?;
    let after = after(&envelope)?;
    let mut look = RunFollower {
        store,
        user,
        request,
        maker,
        number: after,
        frames: VecDeque::new(),
        state: run.state,
        failures: 0,
    };
    look.take(&run.chunks);
    let frames = stream::unfold(Some(look), |look| async move {
        let mut look = look?;
        let (frame, is_last) = look.next().await;
        Some((frame, (!is_last).then_some(look)))
    });
    Ok(Some(Followed { envelope, frames: Box::pin(frames) }))
}

struct RunFollower {
    store: Arc<dyn ConversationStore>,
    user: UserId,
    request: RequestId,
    maker: FrameBuilder,
    /// Of the last frame that was taken.
    number: u32,
    frames: VecDeque<(u32, pb::ChatResponse)>,
    state: RunState,
    failures: u32,
}

impl RunFollower {
    fn take(&mut self, chunks: &[crate::conversation::FrameChunk]) {
        for (number, frame) in chunks.iter().flat_map(frames_of) {
            // A gap would be text that is lost without a word.
            if number == self.number + 1 {
                self.number = number;
                self.frames.push_back((number, frame));
            }
        }
    }

    /// The next frame, and whether it is the last.
    async fn next(&mut self) -> ((u32, pb::ChatResponse), bool) {
        loop {
            if let Some(next) = self.frames.pop_front() {
                let is_last = next.1.finish_reason() != pb::FinishReason::Null;
                return (next, is_last);
            }
            match self.state {
                RunState::Running => {}
                // Its last frame bears a reason; without one it is as good as lost.
                RunState::Ended | RunState::Lost => return self.failed(TurnFailure::Abandoned),
            }
            sleep(INTERVAL).await;
            match self.store.follow(&self.user, &self.request, self.number).await {
                Ok(Some(run)) => {
                    self.failures = 0;
                    self.state = run.state;
                    self.take(&run.chunks);
                }
                Ok(None) => self.state = RunState::Lost,
                Err(error) => {
                    self.failures += 1;
                    if self.failures > MAX_FAILURES {
                        tracing::warn!(%error, "a run can not be followed");
                        return self.failed(TurnFailure::NotPersisted);
                    }
                }
            }
        }
    }

    fn failed(&mut self, failure: TurnFailure) -> ((u32, pb::ChatResponse), bool) {
        let frame = self.maker.build(TurnEvent::Failed(failure)).unwrap_or_default();
        ((self.number + 1, frame), true)
    }
}
