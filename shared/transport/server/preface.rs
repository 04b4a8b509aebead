//! Notices when the protocol of a connection is known: after the 24 bytes of the HTTP/2 preface, or the first byte that differs
//! from it, which begins an HTTP/1.1 request. Stands above TLS, whose handshake says nothing about it.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// RFC 9113, section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(super) struct PrefaceWatch<Io> {
    io: Io,
    /// Of the preface. Empty = the protocol is known.
    missing: &'static [u8],
    is_protocol_known: Arc<AtomicBool>,
}

impl<Io> PrefaceWatch<Io> {
    /// Also returns the flag that is set once the protocol is known.
    pub(super) fn new(io: Io) -> (Self, Arc<AtomicBool>) {
        let is_protocol_known = Arc::<AtomicBool>::default();
        (Self { io, missing: PREFACE, is_protocol_known: is_protocol_known.clone() }, is_protocol_known)
    }

    fn observe(&mut self, bytes: &[u8]) {
        let length = bytes.len().min(self.missing.len());
        let (expected, missing) = self.missing.split_at(length);
        self.missing = if bytes.starts_with(expected) { missing } else { &[] };
        if self.missing.is_empty() {
            self.is_protocol_known.store(true, Ordering::Relaxed);
        }
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for PrefaceWatch<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let begin = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(context, buffer))?;
        if !self.missing.is_empty() {
            self.observe(buffer.filled().get(begin..).unwrap_or_default());
        }
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for PrefaceWatch<Io> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocol_is_known_after_the_preface_or_another_byte() {
        let is_known_after = |pieces: &[&str]| {
            let (mut watch, is_known) = PrefaceWatch::new(());
            pieces.iter().for_each(|piece| watch.observe(piece.as_bytes()));
            is_known.load(Ordering::Relaxed)
        };
        let preface = std::str::from_utf8(PREFACE).unwrap();
        let (first, second) = preface.split_at(10);
        for known in [vec![preface], vec![first, second], vec!["P", "OST"], vec!["\u{16}"], vec!["PRI * HTTP/1.1"]] {
            assert!(is_known_after(&known), "{known:?}");
        }
        for unknown in [vec![], vec![""], vec!["P"], vec!["PRI", " * "], vec![&preface[..23]]] {
            assert!(!is_known_after(&unknown), "{unknown:?}");
        }
    }
}
