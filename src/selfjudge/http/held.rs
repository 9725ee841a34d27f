//! Bodies that hold a resource until they are sent.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use http_body::{Frame, SizeHint};

/// Bytes passed on at once. The server takes the next piece after it has sent most of the last ones, so the resource is not released
/// before all but some hundred KiB of the body are sent.
const PIECE: usize = 64 << 10;

/// A body with a resource that is dropped once it is sent, or its client has disconnected.
pub struct Held<T> {
    body: Body,
    /// The part of the body's last piece that has not been passed on.
    rest: Bytes,
    _held: T,
}

impl<T: Send + Unpin + 'static> Held<T> {
    /// Wraps `body` so that it holds `held`.
    pub fn around(body: Body, held: T) -> Body {
        Body::new(Self {
            body,
            rest: Bytes::new(),
            _held: held,
        })
    }

    /// Passes on a piece of `data` and keeps the rest.
    fn hand_on(&mut self, mut data: Bytes) -> Frame<Bytes> {
        if data.len() > PIECE {
            self.rest = data.split_off(PIECE);
        }
        Frame::data(data)
    }
}

impl<T: Send + Unpin + 'static> HttpBody for Held<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        if !this.rest.is_empty() {
            let rest = std::mem::take(&mut this.rest);
            return Poll::Ready(Some(Ok(this.hand_on(rest))));
        }
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        frame.map_ok(|frame| match frame.into_data() {
            Ok(data) => this.hand_on(data),
            Err(trailers) => trailers,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, of_body) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(of_body.lower() + rest);
        if let Some(upper) = of_body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::body::to_bytes;
    use futures::{FutureExt, StreamExt};

    use super::*;

    #[tokio::test]
    async fn a_body_holds_until_its_last_piece_is_taken() {
        let text: Vec<u8> = (0..200_000u32).map(|at| at as u8).collect();
        let held = Arc::new(());
        let body = Held::around(Body::from(text.clone()), Arc::clone(&held));
        assert_eq!(HttpBody::size_hint(&body).exact(), Some(200_000));
        let mut pieces = body.into_data_stream();
        let mut whole = Vec::new();
        for _ in 0..3 {
            whole.extend(pieces.next().now_or_never().unwrap().unwrap().unwrap());
            assert_eq!(Arc::strong_count(&held), 2);
        }
        whole.extend(pieces.next().await.unwrap().unwrap());
        assert_eq!(whole, text);
        drop(pieces);
        assert_eq!(Arc::strong_count(&held), 1);
        let body = Held::around(Body::from(text.clone()), Arc::clone(&held));
        assert_eq!(to_bytes(body, usize::MAX).await.unwrap(), text);
        assert!(HttpBody::is_end_stream(&Held::around(Body::empty(), held)));
    }
}
