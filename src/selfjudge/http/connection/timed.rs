//! A stream that fails when its peer takes too long or has disconnected.
//!
//! The end of a client's data means either that it has shut down its sending side and waits for its answer, or that it has disconnected.
//! To distinguish the two, an interim answer (`100 Continue`, which clients skip) is sent while the answer is computed: the operating
//! system of a disconnected client rejects it, and the next write fails.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::exchange::{AtEnd, Exchange};
use super::places::Place;

/// Bytes that a client must read within the timeout for unread answers, or all of them if fewer are pending.
const READ_AT_LEAST: usize = 8 << 10;

/// The interim answer that tests the connection.
const INTERIM: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The pauses before the first two interim answers: if the client had disconnected before the first, the second fails.
const FIRST_INTERIM: Duration = Duration::from_millis(250);

/// The pause before each later interim answer.
const NEXT_INTERIM: Duration = Duration::from_secs(10);

/// The time for reading the received part of a body after the end of the data. A body that is still awaited then is incomplete.
const INCOMPLETE_AFTER: Duration = Duration::from_secs(5);

/// The state after the end of a client's data.
struct Ended {
    since: Instant,
    interims: u32,
    next: Pin<Box<Sleep>>,
}

impl Ended {
    fn now() -> Self {
        let now = Instant::now();
        Self {
            since: now,
            interims: 0,
            next: Box::pin(sleep_until(now + FIRST_INTERIM)),
        }
    }
}

/// A stream with timeouts; see the module's documentation.
pub struct Timed<S> {
    stream: S,
    /// Whether the stream carries plain HTTP, without TLS.
    plain: bool,
    ended: Option<Ended>,
    exchange: Arc<Exchange>,
    unread: Duration,
    reading: Pin<Box<Sleep>>,
    writing: Pin<Box<Sleep>>,
    /// Bytes written since a write had to wait; none if no write waits.
    taken: Option<usize>,
    _place: Place,
}

impl<S> Timed<S> {
    pub fn new(
        stream: S,
        exchange: Arc<Exchange>,
        unread: Duration,
        plain: bool,
        place: Place,
    ) -> Self {
        let now = Instant::now();
        Self {
            stream,
            plain,
            ended: None,
            exchange,
            unread,
            reading: Box::pin(sleep_until(now)),
            writing: Box::pin(sleep_until(now)),
            taken: None,
            _place: place,
        }
    }

    /// Handles a read that has to wait.
    fn waits_to_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let deadline = self.exchange.deadline(cx.waker());
        let Some(deadline) = deadline.map(Instant::from_std) else {
            return Poll::Pending;
        };
        if self.reading.deadline() != deadline {
            self.reading.as_mut().reset(deadline);
        }
        match self.reading.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Records that bytes were sent.
    fn note_sent(&self, written: &Poll<io::Result<usize>>) {
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.exchange.sent();
        }
    }

    /// Handles the result of a write, and measures how long the client has not read.
    fn wrote<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
        bytes: impl FnOnce(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        match &written {
            Poll::Ready(Ok(count)) => {
                let taken = self.taken.map(|taken| taken + bytes(count));
                self.taken = taken.filter(|&taken| taken < READ_AT_LEAST);
                written
            }
            Poll::Ready(Err(_)) => written,
            Poll::Pending => {
                if self.taken.is_none() {
                    self.taken = Some(0);
                    self.writing.as_mut().reset(Instant::now() + self.unread);
                }
                match self.writing.as_mut().poll(cx) {
                    Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                    Poll::Pending => Poll::Pending,
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> Timed<S> {
    /// Handles a read after the end of the client's data: it waits as long as the client may wait for its answer.
    fn reads_behind_the_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = self.ended.get_or_insert_with(Ended::now);
        loop {
            let at_end = self.exchange.at_end(cx.waker());
            let incomplete =
                at_end == AtEnd::Receiving && ended.since.elapsed() >= INCOMPLETE_AFTER;
            if at_end == AtEnd::Closes || incomplete {
                return Poll::Ready(Ok(()));
            }
            ready!(ended.next.as_mut().poll(cx));
            if at_end == AtEnd::Waiting {
                match Pin::new(&mut self.stream).poll_write(cx, INTERIM) {
                    Poll::Ready(Ok(sent)) if sent == INTERIM.len() => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    // Nothing else is pending, so the socket of a connected client has room for it.
                    _ => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                }
                ended.interims += 1;
            }
            let pause = match ended.interims {
                0 | 1 => FIRST_INTERIM,
                _ => NEXT_INTERIM,
            };
            ended.next.as_mut().reset(Instant::now() + pause);
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Timed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ended.is_some() {
            return self.reads_behind_the_end(cx);
        }
        let before = buf.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Pending => self.waits_to_read(cx),
            Poll::Ready(Ok(())) if buf.filled().len() > before => {
                self.exchange.received();
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Ok(())) if self.plain && buf.remaining() > 0 => {
                self.reads_behind_the_end(cx)
            }
            read => read,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.note_sent(&written);
        self.wrote(cx, written, |&count| count)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.note_sent(&written);
        self.wrote(cx, written, |&count| count)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.exchange.flushed();
        }
        // Nothing is pending that the client could have read.
        self.wrote(cx, flushed, |()| READ_AT_LEAST)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.wrote(cx, closed, |()| READ_AT_LEAST)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::super::ConnectionTimeouts;
    use super::super::places::Places;
    use super::*;
    use engine::TenantShare;

    fn timed<S>(stream: S) -> Timed<S> {
        let place = Places::new(1, TenantShare::WHOLE).take(None).unwrap();
        let timeouts = ConnectionTimeouts::default();
        let exchange = Arc::new(Exchange::new(timeouts));
        Timed::new(stream, exchange, timeouts.unread, true, place)
    }

    /// Tests with simulated time, which advances when all tasks wait.
    #[tokio::test(start_paused = true)]
    async fn what_is_not_read_fails_and_what_is_read_slowly_does_not() {
        let (near, mut far) = duplex(1024);
        let mut near = timed(near);
        let error = near.write_all(&[0; 4096]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);

        let mut read = [0; 1024];
        far.read_exact(&mut read).await.unwrap();
        let (near, mut far) = duplex(1024);
        let mut near = timed(near);
        let writing = tokio::spawn(async move { near.write_all(&[0; 100_000]).await });
        for _ in 0..97 {
            // 8 KiB in 24 seconds.
            tokio::time::sleep(Duration::from_secs(3)).await;
            far.read_exact(&mut read).await.unwrap();
        }
        far.read_exact(&mut [0; 672]).await.unwrap();
        writing.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_now_and_then_does_not_keep_an_answer_going() {
        let (near, mut far) = duplex(1024);
        let mut near = timed(near);
        let writing = tokio::spawn(async move { near.write_all(&[0; 100_000]).await });
        let mut read = 0;
        while !writing.is_finished() {
            tokio::time::sleep(Duration::from_secs(1)).await;
            read += far.read(&mut [0; 1]).await.unwrap_or(0);
        }
        let error = writing.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(read < 1100, "{read}");
    }
}
