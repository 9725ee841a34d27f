//! Streamed answers, as server-sent events.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::{FutureExt, stream};
use serde::Serialize;
use tokio::sync::mpsc;
use utoipa::ToSchema;

use super::error::ApiError;
use super::layers::internal;

/// Maximum number of events buffered for a slow reader; further ones stay in the engine.
const EVENTS_AHEAD: usize = 64;

/// Interval of comments on an idle stream, because proxies close connections that are silent for a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// An event in the API description.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventBody {
    /// One piece as JSON, in the format of a whole answer; or `[DONE]`.
    data: String,
}

/// One event of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The text of the `event:` line, if there is one.
    name: Option<&'static str>,
    data: String,
}

impl Frame {
    /// Returns an event with a piece as JSON.
    pub fn of(piece: &impl Serialize) -> Self {
        let data = serde_json::to_string(piece)
            .expect("answers have string keys and finite numbers; this is a bug");
        Self { name: None, data }
    }

    /// Returns the event with a name.
    pub fn named(self, name: &'static str) -> Self {
        Self {
            name: Some(name),
            ..self
        }
    }

    /// Returns the last event of OpenAI's streams of completions.
    pub fn done() -> Self {
        Self {
            name: None,
            data: "[DONE]".to_owned(),
        }
    }
}

impl From<Frame> for Event {
    fn from(frame: Frame) -> Self {
        let event = match frame.name {
            Some(name) => Self::default().event(name),
            None => Self::default(),
        };
        event.data(frame.data)
    }
}

/// The sender of an answer's pieces.
#[derive(Clone)]
pub struct Pieces(mpsc::Sender<Frame>);

impl Pieces {
    /// Sends events in order.
    pub async fn send(&self, frames: Vec<Frame>) {
        for frame in frames {
            // If the reader has disconnected, the whole answer is cancelled, see `answer`.
            let _ = self.0.send(frame).await;
        }
    }
}

/// Runs `work`, which sends the pieces, and then sends the events that `last` returns for its result, including a panic. The work is
/// dropped if the client disconnects.
pub fn answer<F>(
    work: impl FnOnce(Pieces) -> F,
    last: impl FnOnce(Result<(), ApiError>) -> Vec<Frame> + Send + 'static,
) -> Response
where
    F: Future<Output = Result<(), ApiError>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(EVENTS_AHEAD);
    let pieces = Pieces(sender.clone());
    let work = work(pieces.clone());
    tokio::spawn(async move {
        let ended = tokio::select! {
            ended = AssertUnwindSafe(work).catch_unwind() => ended,
            () = sender.closed() => return,
        };
        // The panic has been reported where it happened.
        let last = last(ended.unwrap_or_else(|_| Err(internal())));
        pieces.send(last).await;
    });
    let events = stream::unfold(receiver, |mut receiver| async move {
        let frame = receiver.recv().await?;
        Some((Ok::<_, Infallible>(Event::from(frame)), receiver))
    });
    let silence = KeepAlive::new().interval(KEEP_ALIVE);
    Sse::new(events).keep_alive(silence).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    async fn text(response: Response) -> String {
        let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    fn last(ended: Result<(), ApiError>) -> Vec<Frame> {
        vec![match ended {
            Ok(()) => Frame::done(),
            Err(error) => Frame::of(&error.into_body()).named("error"),
        }]
    }

    #[tokio::test]
    async fn a_panic_in_the_middle_of_a_stream_is_an_error_event() {
        let work = |pieces: Pieces| async move {
            pieces.send(vec![Frame::of(&"one")]).await;
            match true {
                true => panic!("a defect"),
                false => Ok(()),
            }
        };
        let response = answer(work, last);
        let text = text(response).await;
        let events: Vec<&str> = text.split_terminator("\n\n").collect();
        assert_eq!(events[0], "data: \"one\"");
        assert!(events[1].starts_with("event: error\ndata: "), "{text}");
        assert!(events[1].contains("\"code\":\"internal\""), "{text}");
        assert_eq!(events.len(), 2);
    }

    #[tokio::test]
    async fn a_stream_that_ends_well_says_so() {
        let work = |pieces: Pieces| async move {
            pieces.send(vec![Frame::of(&1)]).await;
            Ok(())
        };
        let response = answer(work, last);
        assert_eq!(text(response).await, "data: 1\n\ndata: [DONE]\n\n");
    }

    /// Tests with simulated time, which advances when all tasks wait.
    #[tokio::test(start_paused = true)]
    async fn a_silent_stream_sends_comments() {
        let work = |_| async {
            tokio::time::sleep(3 * KEEP_ALIVE).await;
            Ok(())
        };
        let response = answer(work, last);
        let text = text(response).await;
        assert!(text.starts_with(":\n\n:\n\n"), "{text}");
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    }
}
