//! A stream that can be cut from outside, whatever its user waits for.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
};

/// The stream.
pub(super) struct Cut<S> {
    stream: S,
    /// `None` once it is known that nobody will cut.
    signal: Option<oneshot::Receiver<()>>,
    is_cut: bool,
}

impl<S> Cut<S> {
    /// Returns the stream and what cuts it.
    pub(super) fn new(stream: S) -> (Self, oneshot::Sender<()>) {
        let (sender, signal) = oneshot::channel();
        let cut = Self {
            stream,
            signal: Some(signal),
            is_cut: false,
        };
        (cut, sender)
    }

    fn whole(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if let Some(signal) = &mut self.signal
            && let Poll::Ready(received) = Pin::new(signal).poll(context)
        {
            self.is_cut = received.is_ok();
            self.signal = None;
        }
        match self.is_cut {
            true => Err(io::ErrorKind::ConnectionAborted.into()),
            false => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Cut<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.whole(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Cut<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.whole(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
