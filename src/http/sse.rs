//! Answers in pieces, as server-sent events.

use std::convert::Infallible;

use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde::Serialize;
use tokio::sync::mpsc;
use utoipa::ToSchema;

use super::error::ApiError;
use super::permit::Permit;

/// Events that wait for a slow reader; more are left with the engine.
const EVENTS_AHEAD: usize = 64;

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

/// Runs `work`, which sends the pieces, and says `[DONE]` after it, or what it failed with. A client that goes away drops it.
pub fn answer<F>(permit: Permit, work: impl FnOnce(Pieces) -> F) -> Response
where
    F: Future<Output = Result<(), ApiError>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(EVENTS_AHEAD);
    let work = work(Pieces(sender.clone()));
    tokio::spawn(async move {
        let _permit = permit;
        let ended = tokio::select! {
            ended = work => ended,
            () = sender.closed() => return,
        };
        let last = match ended {
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
    Sse::new(events).into_response()
}
