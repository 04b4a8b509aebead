//! Ends responses that their clients do not read, so that they hold nothing for ever: over HTTP/2 a stream whose window is
//! exhausted is reset, and a connection whose socket takes no more bytes is closed. What the response reads is dropped with it.
//!
//! A body is polled only when there is space for its bytes. That tells a client that does not read from a service that has nothing
//! to send.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use http_body::{Frame, SizeHint};
use hyper::rt::Executor;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task_local,
    time::{Instant, Sleep, sleep},
};

/// In a timeout. A stream ends after the timeout, and at most one check later.
const CHECKS: u32 = 4;

task_local! {
    /// Of the HTTP/2 stream whose task is polled.
    static PROGRESS: Arc<Progress>;
}

#[derive(Debug, Default)]
struct Progress {
    /// How often the body of the response was polled.
    polls: AtomicU32,
    has_body: AtomicBool,
}

/// Spawns the tasks of HTTP/2 streams.
#[derive(Debug, Clone, Copy)]
pub(super) struct StreamExecutor {
    pub(super) timeout: Duration,
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for StreamExecutor {
    fn execute(&self, stream: F) {
        let mut watch = StreamWatch::new(self.timeout);
        tokio::spawn(async move {
            let mut stream = pin!(stream);
            // Dropping the stream before its end resets it.
            poll_fn(|context| watch.poll(stream.as_mut(), context)).await;
        });
    }
}

struct StreamWatch {
    progress: Arc<Progress>,
    interval: Duration,
    /// At the last check.
    seen_polls: u32,
    /// Checks in a row without a poll before them.
    quiet_checks: u32,
    timer: Option<Pin<Box<Sleep>>>,
}

impl StreamWatch {
    fn new(timeout: Duration) -> Self {
        Self { progress: Arc::default(), interval: timeout / CHECKS, seen_polls: 0, quiet_checks: 0, timer: None }
    }

    /// Ready when the stream has ended, or when its body was not polled for the timeout.
    fn poll(&mut self, stream: Pin<&mut impl Future<Output = ()>>, context: &mut Context<'_>) -> Poll<()> {
        if PROGRESS.sync_scope(self.progress.clone(), || stream.poll(context)).is_ready() {
            return Poll::Ready(());
        }
        if !self.progress.has_body.load(Relaxed) {
            return Poll::Pending;
        }
        if let Some(timer) = &self.timer
            && !timer.is_elapsed()
        {
            // The waker of a task stays the same.
            return Poll::Pending;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(self.interval)));
        while timer.as_mut().poll(context).is_ready() {
            // The task was woken by the timer, so a stream with space has polled its body above.
            let polls = self.progress.polls.load(Relaxed);
            self.quiet_checks = if polls == self.seen_polls { self.quiet_checks + 1 } else { 0 };
            self.seen_polls = polls;
            if self.quiet_checks >= CHECKS {
                tracing::info!("a stream that its client does not read is reset");
                return Poll::Ready(());
            }
            timer.as_mut().reset(Instant::now() + self.interval);
        }
        Poll::Pending
    }
}

/// The body of a response, whose polls the task of its stream observes.
pub(super) struct WatchedBody<B> {
    body: B,
    /// `None`: over HTTP/1.1, where the socket tells.
    progress: Option<Arc<Progress>>,
}

impl<B> WatchedBody<B> {
    /// Called in the task of the stream.
    pub(super) fn new(body: B) -> Self {
        let progress = PROGRESS.try_with(Arc::clone).ok();
        if let Some(progress) = &progress {
            progress.has_body.store(true, Relaxed);
        }
        Self { body, progress }
    }
}

impl<B: http_body::Body + Unpin> http_body::Body for WatchedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        if let Some(progress) = &self.progress {
            progress.polls.fetch_add(1, Relaxed);
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection that fails if its client takes no byte for the timeout.
pub(super) struct WriteTimeout<Io> {
    io: Io,
    timeout: Duration,
    /// While a write waits.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<Io> WriteTimeout<Io> {
    pub(super) fn new(io: Io, timeout: Duration) -> Self {
        Self { io, timeout, timer: None }
    }

    fn bound<T>(&mut self, context: &mut Context<'_>, write: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if write.is_ready() {
            self.timer = None;
            return write;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(self.timeout)));
        ready!(timer.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for WriteTimeout<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for WriteTimeout<Io> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.io).poll_write(context, bytes);
        self.bound(context, write)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.io).poll_write_vectored(context, slices);
        self.bound(context, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
