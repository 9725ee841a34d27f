//! Reception of request bodies: within a time, a size and the memory of the call.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use futures::StreamExt;
use tokio::time::{Instant, timeout_at};

use super::error::ApiError;
use super::json;
use super::memory::{Gathered, Holding};
use super::unpack::{MaxBody, Packing};
use crate::call::offload;

/// Maximum bytes of a body that is parsed on the async thread; larger ones would delay other calls there.
const PARSED_AT_ONCE: usize = 64 << 10;

/// A body as received, or after unpacking.
#[derive(Debug)]
pub struct Received {
    pub bytes: Bytes,
    holding: Holding,
}

impl Received {
    /// Parses the body with `parse`. The parsed document is charged to the call while it is parsed, and afterwards only the body's
    /// length.
    pub async fn parsed<T: Send + 'static>(
        self,
        parse: impl FnOnce(&[u8]) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let Self { bytes, holding } = self;
        match bytes.len() <= PARSED_AT_ONCE {
            true => parse(&bytes),
            false => {
                let paid = move || {
                    let document = json::memory_of(&bytes);
                    holding.grow(document)?;
                    let parsed = parse(&bytes);
                    drop(bytes);
                    holding.shrink(document);
                    parsed
                };
                offload(paid).await?
            }
        }
    }
}

/// The time limits for receiving a body. A caller that sends a body has one of the places for concurrent calls, and must not keep it
/// by sending slowly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyTimeouts {
    /// Limit for bodies up to 64 KiB.
    pub small: Duration,
    /// Limit for any body. In between, the limit grows by a second per 160 KiB.
    pub longest: Duration,
}

/// Maximum bytes of a small body.
const SMALL_BODY: usize = 64 << 10;

/// Minimum rate of a larger body, in bytes per second.
const LEAST_RATE: usize = 160 << 10;

impl Default for BodyTimeouts {
    fn default() -> Self {
        Self {
            small: Duration::from_secs(10),
            longest: Duration::from_secs(60),
        }
    }
}

impl BodyTimeouts {
    /// Returns the time after which a body with `received` bytes so far must be complete or have made progress.
    fn after(self, received: usize) -> Duration {
        let more = received.saturating_sub(SMALL_BODY) as f64 / LEAST_RATE as f64;
        self.longest.min(self.small + Duration::from_secs_f64(more))
    }
}

/// Returns the error for a body above the size limit.
fn too_large(most: MaxBody) -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "body_too_large",
        format!("the body has more than {} bytes", most.0),
    )
}

/// Returns the length in a request's `Content-Length`; none without that header.
fn promised(headers: &HeaderMap) -> Option<u64> {
    let length = headers.get(header::CONTENT_LENGTH)?.to_str().ok()?;
    // A length that does not fit into the type is too large for any limit.
    Some(length.trim().parse().unwrap_or(u64::MAX))
}

/// Reads a body. A body that is too large by its header, or for which there is no memory, is refused before it is read.
pub async fn read(request: Request) -> Result<Received, ApiError> {
    let extensions = request.extensions();
    let timeouts: BodyTimeouts = extensions.get().copied().unwrap_or_default();
    let most: MaxBody = extensions.get().copied().unwrap_or_default();
    let holding: Holding = extensions.get().cloned().unwrap_or_default();
    let packing = Packing::of(request.headers())?;
    let promised = promised(request.headers()).unwrap_or(0);
    let expected = usize::try_from(promised)
        .ok()
        .filter(|&length| length <= most.0);
    let expected = expected.ok_or_else(|| too_large(most))?;
    let mut received = Gathered::begin(holding.clone(), expected)?;
    let begun = Instant::now();
    let mut pieces = request.into_body().into_data_stream();
    loop {
        let limit = timeouts.after(received.len());
        let Ok(piece) = timeout_at(begun + limit, pieces.next()).await else {
            return Err(ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                "body_timeout",
                format!("the body did not arrive within {} seconds", limit.as_secs()),
            ));
        };
        let Some(piece) = piece else { break };
        let piece = piece.map_err(|error| {
            let message = format!("the body cannot be read: {error}");
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_body", message)
        })?;
        if received.len() + piece.len() > most.0 {
            return Err(too_large(most));
        }
        received.push(&piece)?;
    }
    let packed = holding.bytes();
    let bytes = received.into_bytes()?.into();
    let bytes = packing.unpacked(bytes, most, holding.clone()).await?;
    if packing == Packing::Gzip {
        holding.shrink(packed);
    }
    Ok(Received { bytes, holding })
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::response::IntoResponse;
    use futures::stream;

    use super::super::memory::CallMemory;
    use super::*;
    use engine::{Tenant, TenantShare};
    use telemetry::Pace;

    /// Sends a body of `pieces` of the given size, one every `pause`, and then keeps it open. Time is simulated and advances when all wait.
    async fn sent(
        pieces: usize,
        bytes: usize,
        pause: Duration,
    ) -> (Result<Received, ApiError>, u64) {
        let piece = move |_| async move {
            tokio::time::sleep(pause).await;
            Ok::<_, std::io::Error>(Bytes::from(vec![b' '; bytes]))
        };
        let pieces = stream::iter(0..pieces).then(piece).chain(stream::pending());
        let begun = Instant::now();
        let read = read(Request::new(Body::from_stream(pieces))).await;
        (read, begun.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_comes_too_slowly_is_not_waited_for() {
        let second = Duration::from_secs(1);
        for (pieces, bytes, gives_up_after) in [
            (0, 0, 10),
            (1, 1, 10),
            (1000, 1, 10),
            // At the size limit of a small body.
            (8, 8 << 10, 10),
            // 32 KiB per second are too slow.
            (1000, 32 << 10, 11),
            // Fast enough at first, and then nothing more.
            (5, 320 << 10, 19),
        ] {
            let (read, seconds) = sent(pieces, bytes, second).await;
            let status = read.unwrap_err().into_response().status();
            assert_eq!(status, StatusCode::REQUEST_TIMEOUT);
            assert_eq!(seconds, gives_up_after, "{pieces} of {bytes}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_body_may_take_longer_than_the_longest() {
        let (read, seconds) = {
            let tiny = Duration::from_millis(1);
            let piece = move |_| async move {
                tokio::time::sleep(tiny).await;
                Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 1 << 10]))
            };
            // The maximum size without an end.
            let pieces = stream::iter(0..2000).then(piece).chain(stream::pending());
            let begun = Instant::now();
            let mut request = Request::new(Body::from_stream(pieces));
            let longest = Duration::from_secs(12);
            request.extensions_mut().insert(BodyTimeouts {
                longest,
                ..BodyTimeouts::default()
            });
            (read(request).await, begun.elapsed().as_secs())
        };
        assert!(read.is_err());
        assert_eq!(seconds, 12);
    }

    #[tokio::test]
    async fn a_body_that_is_there_is_read() {
        let request = Request::new(Body::from("{}"));
        assert_eq!(read(request).await.unwrap().bytes, "{}");
    }

    /// Returns a body that panics when it is read.
    fn untouchable() -> Body {
        Body::from_stream(stream::poll_fn(
            |_| -> std::task::Poll<Option<Result<Bytes, std::io::Error>>> {
                panic!("the body was asked for")
            },
        ))
    }

    #[tokio::test]
    async fn a_body_is_refused_by_its_header_before_it_is_read() {
        // A tenant may use 1 MiB.
        let memory = CallMemory::new(2 << 20, TenantShare::default(), Pace::default());
        let tenant = Tenant::of_key(&[1; 32]);
        let other = memory.open(tenant);
        other.grow(600_000).unwrap();
        for (length, status) in [
            ("9000000", 413),
            ("9223372036854775808", 413),
            ("18446744073709551616", 413),
            ("8388609", 413),
            // More than the share, and more than is left of it.
            ("1048577", 413),
            ("600000", 429),
        ] {
            let mut request = Request::new(untouchable());
            let headers = request.headers_mut();
            headers.insert("content-length", length.parse().unwrap());
            request.extensions_mut().insert(memory.open(tenant));
            let refused = read(request).await.unwrap_err().into_response();
            assert_eq!(refused.status().as_u16(), status, "{length}");
            let retry = refused.headers().contains_key("retry-after");
            assert_eq!(retry, status == 429, "{length}");
        }
        // A body without a length is refused while it grows.
        let pieces = stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 8192])));
        let mut request = Request::new(Body::from_stream(pieces));
        request.extensions_mut().insert(memory.open(tenant));
        let refused = read(request).await.unwrap_err().into_response();
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        // A refused call holds no memory.
        let last = memory.open(tenant);
        last.grow((1 << 20) - 600_000).unwrap();
    }

    #[tokio::test]
    async fn a_document_is_paid_for_while_it_is_parsed() {
        let memory = CallMemory::new(2 << 20, TenantShare::default(), Pace::default());
        let tenant = Tenant::of_key(&[1; 32]);
        let numbers = |count: usize| format!("[{}0]", "0,".repeat(count - 1));
        let text = format!("[{:?}]", "0, ".repeat(60_000));
        for (body, served) in [
            (numbers(10_000), true),
            // 160 KB of body, and some megabytes of parsed values.
            (numbers(80_000), false),
            (text, true),
        ] {
            let holding = memory.open(tenant);
            let length = body.len();
            let mut request = Request::new(Body::from(body));
            request.extensions_mut().insert(holding.clone());
            let received = read(request).await.unwrap();
            let parsed = received.parsed(|bytes| json::parse(bytes).map(|_| ()));
            assert_eq!(parsed.await.is_ok(), served, "{length}");
            assert!(holding.bytes() <= 2 * length, "{length}");
        }
    }
}
