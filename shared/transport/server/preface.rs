//! Notices when an HTTP/2 connection has begun: after the 24 bytes of the preface and the head of the client's first frame, which
//! is SETTINGS. An HTTP/1.1 connection begins with its first request. Stands above TLS, whose handshake says nothing about it.

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
/// RFC 9113, section 4.1.
const FRAME_HEAD_BYTES: usize = 9;

pub(super) struct PrefaceWatch<Io> {
    io: Io,
    /// `None` = nothing is left to watch.
    missing: Option<Missing>,
    has_begun: Arc<AtomicBool>,
}

#[derive(Clone, Copy)]
struct Missing {
    preface: &'static [u8],
    frame_head_bytes: usize,
}

impl<Io> PrefaceWatch<Io> {
    /// Sets the flag once the connection has begun with HTTP/2.
    pub(super) fn new(io: Io, has_begun: Arc<AtomicBool>) -> Self {
        Self { io, missing: Some(Missing { preface: PREFACE, frame_head_bytes: FRAME_HEAD_BYTES }), has_begun }
    }

    fn observe(&mut self, mut bytes: &[u8]) {
        let Some(Missing { preface, frame_head_bytes }) = self.missing else { return };
        let (expected, preface) = preface.split_at(bytes.len().min(preface.len()));
        match bytes.strip_prefix(expected) {
            Some(rest) => bytes = rest,
            // HTTP/1.1.
            None => {
                self.missing = None;
                return;
            }
        }
        let frame_head_bytes = frame_head_bytes.saturating_sub(bytes.len());
        self.missing = Some(Missing { preface, frame_head_bytes }).filter(|_| frame_head_bytes > 0);
        if self.missing.is_none() {
            self.has_begun.store(true, Ordering::Relaxed);
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
        if self.missing.is_some() {
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
    fn connection_begins_behind_the_preface_with_a_frame() {
        let has_begun = |pieces: &[&[u8]]| {
            let mut watch = PrefaceWatch::new((), Arc::default());
            pieces.iter().for_each(|piece| watch.observe(piece));
            watch.has_begun.load(Ordering::Relaxed)
        };
        let settings = b"\0\0\0\x04\0\0\0\0\0";
        let whole = [PREFACE, settings].concat();
        assert!(has_begun(&[&whole]) && has_begun(&[&whole, b"more"]));
        for cut in 0..whole.len() {
            let (first, second) = whole.split_at(cut);
            assert!(!has_begun(&[first]) && has_begun(&[first, second]), "{cut}");
        }
        for http1 in
            [&b"POST / HTTP/1.1\r\n\r\n"[..], b"P", b"PRI * HTTP/1.1\r\nhost: somewhere\r\n\r\n", b"\x16\x03\x01"]
        {
            assert!(!has_begun(&[http1, &whole]), "{http1:?}");
        }
    }
}
