//! The state of the exchange of requests and answers on a connection, shared by its stream and its service.
//!
//! A client may shut down its sending side after its request and still read the answer. At that moment it cannot be distinguished from a
//! client that has disconnected, so the treatment of such a connection depends on the state of the exchange; see [`AtEnd`].

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use axum::BoxError;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{Request, Response, Version};
use tower::Service;

use super::ConnectionTimeouts;
use crate::http::held::Held;

/// The state of a connection's exchange.
#[derive(Debug)]
pub struct Exchange {
    timeouts: ConnectionTimeouts,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Number of requests whose answers are not sent completely.
    answering: usize,
    /// Whether a request has begun whose head is incomplete.
    head: bool,
    /// The time at which that head, or without one the idle period, began.
    since: Instant,
    /// Whether the handler has not read the request's body completely.
    receiving: bool,
    /// Whether something was sent since the body was read.
    begun: bool,
    /// Whether the client understands interim answers, which HTTP/1.0 lacks.
    interim: bool,
    /// Whether bytes have arrived that belong to no answered request.
    unanswered: bool,
    /// Whether the last answer has been sent completely.
    flushed: bool,
    /// The reader to wake when the answer has been sent.
    reader: Option<Waker>,
}

impl State {
    fn wake_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// The meaning of the end of a client's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtEnd {
    /// The connection ends.
    Closes,
    /// The request may be incomplete, or the handler has not read it yet.
    Receiving,
    /// The client waits for an answer of which nothing was sent, or has disconnected.
    Waiting,
    /// The client reads an answer, or has disconnected: writing shows which.
    Reading,
}

/// A guard: the request is being answered until this is dropped.
pub struct Answering(Arc<Exchange>);

/// A guard: the request's body is being read until this is dropped.
pub struct Receiving(Arc<Exchange>);

impl Exchange {
    /// Creates the state of a new connection, on which a request is expected.
    pub fn new(timeouts: ConnectionTimeouts) -> Self {
        let state = State {
            answering: 0,
            head: true,
            since: Instant::now(),
            receiving: false,
            begun: false,
            interim: false,
            unanswered: false,
            flushed: true,
            reader: None,
        };
        Self {
            timeouts,
            state: Mutex::new(state),
        }
    }

    /// Locks the state, which is consistent after every change.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that bytes have arrived.
    pub fn received(&self) {
        let mut state = self.lock();
        if state.answering > 0 {
            return;
        }
        state.unanswered = true;
        if !state.head {
            state.head = true;
            state.since = Instant::now();
        }
    }

    /// Returns the time at which the connection is closed unless more bytes arrive; none while a request is being answered. `reader` is
    /// woken when that answer is complete.
    pub fn deadline(&self, reader: &Waker) -> Option<Instant> {
        let mut state = self.lock();
        if state.answering > 0 {
            state.reader = Some(reader.clone());
        }
        let timeout = match state.head {
            true => self.timeouts.headers,
            false => self.timeouts.idle,
        };
        (state.answering == 0).then(|| state.since + timeout)
    }

    /// Records that bytes have been sent.
    pub fn sent(&self) {
        self.lock().begun = true;
    }

    /// Records that all pending bytes have been sent.
    pub fn flushed(&self) {
        let mut state = self.lock();
        if state.answering == 0 && !std::mem::replace(&mut state.flushed, true) {
            state.wake_reader();
        }
    }

    /// Returns the meaning of the end of the client's data. `reader` is woken when it may have changed.
    pub fn at_end(&self, reader: &Waker) -> AtEnd {
        let mut state = self.lock();
        state.reader = Some(reader.clone());
        match state.answering {
            0 if state.unanswered => AtEnd::Receiving,
            0 if !state.flushed => AtEnd::Reading,
            0 => AtEnd::Closes,
            _ if !state.interim => AtEnd::Closes,
            _ if state.receiving => AtEnd::Receiving,
            _ if state.begun => AtEnd::Reading,
            _ => AtEnd::Waiting,
        }
    }

    fn answering(self: &Arc<Self>, version: Version) -> (Answering, Receiving) {
        let mut state = self.lock();
        state.answering += 1;
        state.head = false;
        state.unanswered = false;
        state.flushed = false;
        state.receiving = true;
        state.interim = version >= Version::HTTP_11;
        (Answering(Arc::clone(self)), Receiving(Arc::clone(self)))
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.receiving = false;
        // Bytes sent earlier were an interim answer, which asks for the body.
        state.begun = false;
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.answering -= 1;
        state.since = Instant::now();
        state.wake_reader();
    }
}

/// A service that records the beginning and the end of every answer.
#[derive(Clone)]
pub struct Watched<S> {
    inner: S,
    exchange: Arc<Exchange>,
}

impl<S> Watched<S> {
    pub fn new(inner: S, exchange: Arc<Exchange>) -> Self {
        Self { inner, exchange }
    }
}

impl<S, B> Service<Request<B>> for Watched<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: 'static,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (answering, receiving) = self.exchange.answering(request.version());
        let request = request.map(|body| Held::around(Body::new(body), receiving));
        let response = self.inner.call(request);
        Box::pin(async move {
            let response = response.await?;
            Ok(response.map(|body| Held::around(body, answering)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_end_means_depends_on_the_exchange() {
        let exchange = Arc::new(Exchange::new(ConnectionTimeouts::default()));
        let at_end = || exchange.at_end(Waker::noop());
        assert_eq!(at_end(), AtEnd::Closes, "nothing has come");
        exchange.received();
        assert_eq!(at_end(), AtEnd::Receiving, "a head, or a part of one");
        let (answering, receiving) = exchange.answering(Version::HTTP_11);
        assert_eq!(at_end(), AtEnd::Receiving);
        // `100 Continue`
        exchange.sent();
        assert_eq!(at_end(), AtEnd::Receiving);
        drop(receiving);
        assert_eq!(at_end(), AtEnd::Waiting);
        exchange.sent();
        assert_eq!(at_end(), AtEnd::Reading);
        drop(answering);
        assert_eq!(at_end(), AtEnd::Reading, "the last of it is not sent");
        exchange.flushed();
        assert_eq!(at_end(), AtEnd::Closes);
        let (_answering, receiving) = exchange.answering(Version::HTTP_10);
        drop(receiving);
        assert_eq!(at_end(), AtEnd::Closes);
    }
}
