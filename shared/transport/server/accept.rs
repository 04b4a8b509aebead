//! Accepts connections. After a failure it closes the oldest unauthenticated connection and waits: a process without free
//! descriptors would retry in a loop.

use std::{io, net::SocketAddr, time::Duration};

use tokio::time::{Instant, sleep_until};

use crate::transport::connection_slot::{ConnectionGuard, UnauthenticatedConnections};

/// Doubles with each failure in a row.
const MIN_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(1);

/// Only older connections without an authenticated call are closed. A younger one may be about to authenticate, and may be the
/// last that was accepted: without a free descriptor, the system reports a failure although no client waits.
const MIN_AGE: Duration = Duration::from_secs(1);

pub(super) struct Acceptor {
    connections: UnauthenticatedConnections,
    /// In a row.
    failures: u32,
    /// Stays when [`Acceptor::next`] is cancelled.
    retry_at: Option<Instant>,
}

impl Acceptor {
    pub(super) fn new(connections: UnauthenticatedConnections) -> Self {
        Self { connections, failures: 0, retry_at: None }
    }

    /// The next connection by `accept`, which can be cancelled.
    pub(super) async fn next<Stream, Accepting>(&mut self, accept: impl Fn() -> Accepting) -> (Stream, ConnectionGuard)
    where
        Accepting: Future<Output = io::Result<(Stream, SocketAddr)>>,
    {
        loop {
            if let Some(retry_at) = self.retry_at {
                sleep_until(retry_at).await;
                self.retry_at = None;
            }
            match accept().await {
                Ok((stream, address)) => {
                    self.failures = 0;
                    return (stream, self.connections.admit(address.ip()));
                }
                Err(error) if is_of_the_client(&error) => {}
                Err(error) => self.back_off(&error),
            }
        }
    }

    fn back_off(&mut self, error: &io::Error) {
        let has_closed = self.connections.close_oldest(MIN_AGE);
        let backoff = MIN_BACKOFF.saturating_mul(1 << self.failures.min(16)).min(MAX_BACKOFF);
        self.retry_at = Some(Instant::now() + backoff);
        self.failures = self.failures.saturating_add(1);
        if self.failures.is_power_of_two() {
            tracing::warn!(%error, failures = self.failures, has_closed, "a connection cannot be accepted");
        }
    }
}

/// The client has closed the connection before it was accepted.
fn is_of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::ready};

    use tokio::time::timeout;

    use super::*;

    const NO_DESCRIPTOR: i32 = 24;
    const MINUTE: Duration = Duration::from_mins(1);

    fn address() -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], 1))
    }

    #[tokio::test(start_paused = true)]
    async fn failed_accepts_are_retried_ever_more_slowly() {
        let mut acceptor = Acceptor::new(UnauthenticatedConnections::new(100));
        let attempts = Cell::new(0);
        let accept = || {
            attempts.set(attempts.get() + 1);
            ready(Err::<((), _), _>(io::Error::from_raw_os_error(NO_DESCRIPTOR)))
        };
        assert!(timeout(MINUTE, acceptor.next(accept)).await.is_err());
        assert!((60..70).contains(&attempts.get()), "{attempts:?}");
        // As when another connection of the server ends meanwhile.
        for _ in 0..1_000 {
            tokio::select! {
                biased;
                _ = acceptor.next(accept) => unreachable!("every accept fails"),
                () = ready(()) => {}
            }
        }
        assert!((60..71).contains(&attempts.get()), "a cancelled wait begins again: {attempts:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn failed_accept_closes_the_oldest_stranger() {
        let mut acceptor = Acceptor::new(UnauthenticatedConnections::new(100));
        let strangers: Vec<_> = (0..2).map(|_| acceptor.connections.admit(address().ip())).collect();
        let failures = Cell::new(1);
        let accept = || match failures.replace(0) {
            0 => ready(Ok(((), address()))),
            _ => ready(Err(io::Error::from_raw_os_error(NO_DESCRIPTOR))),
        };
        tokio::time::sleep(MIN_AGE).await;
        let young = acceptor.connections.admit(address().ip());
        let begin = Instant::now();
        let ((), _guard) = acceptor.next(accept).await;
        assert_eq!(begin.elapsed(), MIN_BACKOFF);
        strangers[0].0.closing().await;
        for other in [&strangers[1], &young] {
            assert!(timeout(MINUTE, other.0.closing()).await.is_err(), "one is enough");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn connection_that_its_client_has_closed_is_skipped_at_once() {
        let mut acceptor = Acceptor::new(UnauthenticatedConnections::new(100));
        let failures = Cell::new(100);
        let accept = || match failures.replace(failures.get().max(1) - 1) {
            0 => ready(Ok(((), address()))),
            _ => ready(Err(io::ErrorKind::ConnectionAborted.into())),
        };
        let begin = Instant::now();
        let ((), _guard) = acceptor.next(accept).await;
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }
}
