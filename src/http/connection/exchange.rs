//! How far the exchange of requests and answers on a connection is, known to its stream and to its service.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::Body;
use axum::http::{Request, Response};
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
    /// Requests whose answers are not sent.
    answering: usize,
    /// Whether a request has begun to come, of which there is no whole head yet.
    head: bool,
    /// Since when it is so.
    since: Instant,
}

/// A request that is being answered, until dropped.
pub struct Answering(Arc<Exchange>);

impl Exchange {
    /// Of a connection that begins now, and on which a request is due.
    pub fn new(timeouts: ConnectionTimeouts) -> Self {
        let state = State {
            answering: 0,
            head: true,
            since: Instant::now(),
        };
        Self {
            timeouts,
            state: Mutex::new(state),
        }
    }

    /// The state is whole after every change.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that bytes have come.
    pub fn received(&self) {
        let mut state = self.lock();
        if state.answering == 0 && !state.head {
            state.head = true;
            state.since = Instant::now();
        }
    }

    /// When the connection is to be closed if nothing more comes; never while a request is being answered.
    pub fn deadline(&self) -> Option<Instant> {
        let state = self.lock();
        let timeout = match state.head {
            true => self.timeouts.headers,
            false => self.timeouts.idle,
        };
        (state.answering == 0).then(|| state.since + timeout)
    }

    fn answering(self: &Arc<Self>) -> Answering {
        let mut state = self.lock();
        state.answering += 1;
        state.head = false;
        Answering(Arc::clone(self))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.answering -= 1;
        state.since = Instant::now();
    }
}

/// A service that notes from when to when a request is being answered.
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
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let answering = self.exchange.answering();
        let response = self.inner.call(request);
        Box::pin(async move {
            let response = response.await?;
            Ok(response.map(|body| Held::around(body, answering)))
        })
    }
}
