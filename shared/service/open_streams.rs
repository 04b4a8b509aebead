//! The open streams of stored conversations in this process: a bound on what readers hold, who need no concurrency permit.
//!
//! A stream counts as a reader of its user unless it reads the run that its own call started and that has not ended.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};
use tokio_util::sync::CancellationToken;

use super::run::FrameLog;
use crate::identity::{RequestId, UserId};

/// Far more than the devices and pages of a person. Together the streams of a user hold a few megabytes at most.
pub(super) const MAX_READERS_PER_USER: usize = 32;
/// A reader that gives way ends at once, unless its client does not read.
const GIVE_WAY_TIMEOUT: Duration = Duration::from_millis(500);

#[derive(Clone)]
pub(super) struct OpenStreams {
    max_streams: usize,
    state: Arc<Mutex<StreamsByUser>>,
    closed: Arc<Notify>,
}

#[derive(Default)]
struct StreamsByUser {
    streams: usize,
    next_id: u64,
    by_user: HashMap<UserId, Vec<CountedStream>>,
}

struct CountedStream {
    id: u64,
    kind: StreamKind,
}

enum StreamKind {
    /// Reads the run that its call started.
    Started(Arc<FrameLog>),
    Reader {
        request: RequestId,
        gives_way: CancellationToken,
    },
}

impl CountedStream {
    fn is_reader(&self) -> bool {
        match &self.kind {
            StreamKind::Started(log) => log.has_ended(),
            StreamKind::Reader { .. } => true,
        }
    }
}

impl OpenStreams {
    /// `max_runs` is the number of answers at the same time; as many readers may come to them.
    pub(super) fn new(max_runs: usize) -> Self {
        let max_streams = max_runs.saturating_add(max_runs.max(MAX_READERS_PER_USER));
        Self { max_streams, state: Arc::default(), closed: Arc::default() }
    }

    /// Whether a call of the user may open another stream, or can take the place of a reader of its request.
    pub(super) fn may_open(&self, user: &UserId, request: &RequestId) -> bool {
        let state = self.state();
        state.has_space(user, self.max_streams) || state.oldest_reader(user, request).is_some()
    }

    /// Without space the oldest reader of the same request gives way: probably its client has lost the connection, which the
    /// server does not know yet. `None`: the user or the process has too many.
    pub(super) async fn open_reader(&self, user: &UserId, request: &RequestId) -> Option<OpenStreamGuard> {
        if let Some(guard) = self.try_open_reader(user, request) {
            return Some(guard);
        }
        let opening = async {
            loop {
                let closed = self.closed.notified();
                if let Some(guard) = self.try_open_reader(user, request) {
                    return Some(guard);
                }
                // The same one until it has gone, so that a client that tries again does not end one reader after another.
                self.state().oldest_reader(user, request)?.cancel();
                closed.await;
            }
        };
        timeout(GIVE_WAY_TIMEOUT, opening).await.ok().flatten()
    }

    fn try_open_reader(&self, user: &UserId, request: &RequestId) -> Option<OpenStreamGuard> {
        let mut state = self.state();
        let has_space = state.has_space(user, self.max_streams);
        let kind = || StreamKind::Reader { request: request.clone(), gives_way: CancellationToken::new() };
        has_space.then(|| self.insert(&mut state, user, kind()))
    }

    pub(super) fn open_started(&self, user: &UserId, log: Arc<FrameLog>) -> OpenStreamGuard {
        self.insert(&mut self.state(), user, StreamKind::Started(log))
    }

    fn insert(&self, state: &mut StreamsByUser, user: &UserId, kind: StreamKind) -> OpenStreamGuard {
        let id = state.next_id;
        state.next_id += 1;
        state.streams += 1;
        let gives_way = match &kind {
            StreamKind::Started(_) => None,
            StreamKind::Reader { gives_way, .. } => Some(gives_way.clone()),
        };
        state.by_user.entry(user.clone()).or_default().push(CountedStream { id, kind });
        OpenStreamGuard { streams: self.clone(), user: user.clone(), id, gives_way }
    }

    fn state(&self) -> MutexGuard<'_, StreamsByUser> {
        // No holder of the lock leaves the state half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StreamsByUser {
    fn oldest_reader(&self, user: &UserId, request: &RequestId) -> Option<&CancellationToken> {
        self.by_user.get(user)?.iter().find_map(|stream| match &stream.kind {
            StreamKind::Reader { request: read, gives_way } if read == request => Some(gives_way),
            _ => None,
        })
    }

    fn has_space(&self, user: &UserId, max_streams: usize) -> bool {
        let streams = self.by_user.get(user).map(Vec::as_slice).unwrap_or_default();
        self.streams < max_streams
            && (streams.len() < MAX_READERS_PER_USER
                || streams.iter().filter(|stream| stream.is_reader()).count() < MAX_READERS_PER_USER)
    }
}

/// The stream is open until it is dropped.
pub(super) struct OpenStreamGuard {
    streams: OpenStreams,
    user: UserId,
    id: u64,
    /// Cancelled when the stream has to end. `None`: it reads the run that its call started.
    pub(super) gives_way: Option<CancellationToken>,
}

impl Drop for OpenStreamGuard {
    fn drop(&mut self) {
        let mut state = self.streams.state();
        let Some(streams) = state.by_user.get_mut(&self.user) else { return };
        streams.retain(|stream| stream.id != self.id);
        if streams.is_empty() {
            state.by_user.remove(&self.user);
        }
        state.streams -= 1;
        drop(state);
        self.streams.closed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chat::TurnFailure,
        language::Language,
        service::{frame::FrameBuilder, run::FrameLog},
    };

    fn user(id: &str) -> UserId {
        UserId::parse("user_id", id).unwrap()
    }

    fn request(id: &str) -> RequestId {
        RequestId::parse("request_id", id).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn readers_of_a_user_are_bounded_and_others_are_not_concerned() {
        let streams = OpenStreams::new(1_000);
        let open = |request_id| streams.try_open_reader(&user("ann"), &request(request_id));
        let mut readers: Vec<_> = (0..MAX_READERS_PER_USER).map(|_| open("r").unwrap()).collect();
        assert!(!streams.may_open(&user("ann"), &request("other")));
        assert!(streams.open_reader(&user("ann"), &request("other")).await.is_none());
        assert!(streams.may_open(&user("bob"), &request("r")));
        readers.pop();
        assert!(open("other").is_some(), "a reader that left makes space");
        drop(readers);
        let state = streams.state();
        assert_eq!((state.streams, state.by_user.len()), (0, 0));
    }

    #[test]
    fn streams_of_a_process_are_bounded() {
        let streams = OpenStreams::new(1);
        let readers: Vec<_> = (0..=MAX_READERS_PER_USER)
            .map(|number| streams.try_open_reader(&user(&format!("user-{number}")), &request("r")).unwrap())
            .collect();
        assert!(!streams.may_open(&user("another"), &request("r")));
        drop(readers);
        assert!(streams.may_open(&user("another"), &request("r")));
    }

    #[test]
    fn started_stream_is_a_reader_once_its_run_has_ended() {
        let streams = OpenStreams::new(1_000);
        let log = FrameLog::example();
        let _started: Vec<_> =
            (0..MAX_READERS_PER_USER).map(|_| streams.open_started(&user("ann"), log.clone())).collect();
        assert!(streams.may_open(&user("ann"), &request("r")));
        log.push_last(&FrameBuilder::new(Language::English, false).failure(&TurnFailure::Internal), true);
        assert!(!streams.may_open(&user("ann"), &request("r")));
    }

    #[tokio::test(start_paused = true)]
    async fn oldest_reader_of_the_request_gives_way() {
        let streams = OpenStreams::new(1_000);
        let open = |request_id| streams.try_open_reader(&user("ann"), &request(request_id)).unwrap();
        let mut readers: Vec<_> = (1..MAX_READERS_PER_USER - 1).map(|_| open("other")).collect();
        let oldest = open("r");
        readers.push(open("r"));
        // It does not read, and so does not end. A client that tries again does not end the next one.
        for _ in 0..3 {
            assert!(streams.open_reader(&user("ann"), &request("r")).await.is_none());
        }
        assert!(oldest.gives_way.as_ref().unwrap().is_cancelled());
        drop(oldest);
        assert!(readers.iter().all(|reader| !reader.gives_way.as_ref().unwrap().is_cancelled()));
        let (reader, _last) = (readers.pop().unwrap(), open("other"));
        let give_way = async {
            reader.gives_way.clone().unwrap().cancelled().await;
            drop(reader);
        };
        let (user, request) = (user("ann"), request("r"));
        let (opened, ()) = tokio::join!(streams.open_reader(&user, &request), give_way);
        assert!(opened.is_some());
    }
}
