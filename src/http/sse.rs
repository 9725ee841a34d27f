//! Answers in pieces, as server-sent events.

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

/// Events that wait for a slow reader; more are left with the engine.
const EVENTS_AHEAD: usize = 64;

/// How often a stream that has nothing to say sends a comment: proxies close what is silent for a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// An event, as the API's description has it.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventBody {
    /// One piece as JSON, of the shape of a whole answer; or `[DONE]`.
    data: String,
}

/// Where the pieces of an answer go.
#[derive(Clone)]
pub struct Pieces(mpsc::Sender<String>);

impl Pieces {
    pub async fn send(&self, piece: &impl Serialize) {
        let piece = serde_json::to_string(piece)
            .expect("answers have string keys and finite numbers; this is a bug");
        // A reader that is gone ends the whole answer, see `answer`.
        let _ = self.0.send(piece).await;
    }
}

/// Runs `work`, which sends the pieces, and says `[DONE]` after it, or what it failed with, a panic included. A client that goes
/// away drops it.
pub fn answer<F>(work: impl FnOnce(Pieces) -> F) -> Response
where
    F: Future<Output = Result<(), ApiError>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(EVENTS_AHEAD);
    let work = work(Pieces(sender.clone()));
    tokio::spawn(async move {
        let ended = tokio::select! {
            ended = AssertUnwindSafe(work).catch_unwind() => ended,
            () = sender.closed() => return,
        };
        // The panic itself has been reported where it happened.
        let last = match ended.unwrap_or_else(|_| Err(internal())) {
            Ok(()) => "[DONE]".to_owned(),
            Err(error) => {
                serde_json::to_string(&error.into_body()).expect("strings are JSON; this is a bug")
            }
        };
        // Whoever is gone hears nothing.
        let _ = sender.send(last).await;
    });
    let events = stream::unfold(receiver, |mut receiver| async move {
        let data = receiver.recv().await?;
        Some((Ok::<_, Infallible>(Event::default().data(data)), receiver))
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

    #[tokio::test]
    async fn a_panic_in_the_middle_of_a_stream_is_an_error_event() {
        let response = answer(|pieces| async move {
            pieces.send(&"one").await;
            match true {
                true => panic!("a defect"),
                false => Ok(()),
            }
        });
        let text = text(response).await;
        let events: Vec<&str> = text.split_terminator("\n\n").collect();
        assert_eq!(events[0], "data: \"one\"");
        assert!(events[1].contains("\"code\":\"internal\""), "{text}");
        assert_eq!(events.len(), 2);
    }

    #[tokio::test]
    async fn a_stream_that_ends_well_says_so() {
        let response = answer(|pieces| async move {
            pieces.send(&1).await;
            Ok(())
        });
        assert_eq!(text(response).await, "data: 1\n\ndata: [DONE]\n\n");
    }

    /// Time passes by itself where everything waits.
    #[tokio::test(start_paused = true)]
    async fn a_silent_stream_sends_comments() {
        let response = answer(|_| async {
            tokio::time::sleep(3 * KEEP_ALIVE).await;
            Ok(())
        });
        let text = text(response).await;
        assert!(text.starts_with(":\n\n:\n\n"), "{text}");
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    }
}
