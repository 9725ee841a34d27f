//! Pacing of refusals: a client that does nothing but be refused is answered at a limited rate.
//!
//! A refusal is cheap, but a client that calls again at once makes thousands of them a second, and they take the processor from
//! the answers of others. Refusals within the rate are sent at once. Those beyond it wait for their turn, a second at most.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;

use super::AppState;
use super::client_address::TrustedProxies;
use crate::engine::Tenant;

/// Time between two refusals of one address, once the burst is used up.
const EVERY: Duration = Duration::from_millis(10);

/// Refusals of one address that are sent at once.
const BURST: u32 = 100;

/// The longest wait.
const LONGEST: Duration = Duration::from_secs(1);

/// Addresses that are remembered; beyond them those whose refusals are all sent are forgotten.
const REMEMBERED: usize = 1024;

/// The turns of refusals, for each address.
#[derive(Debug, Default)]
pub struct RefusalPace {
    /// When the refusals of an address so far would have been sent at the rate, without a burst.
    sent: Mutex<HashMap<Tenant, Instant>>,
}

impl RefusalPace {
    /// Returns how long a refusal of an address waits that is due now, and books it.
    fn wait(&self, address: Tenant, now: Instant) -> Duration {
        // Whole after every change.
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        if sent.len() >= REMEMBERED && !sent.contains_key(&address) {
            sent.retain(|_, sent| *sent > now);
        }
        let turn = sent.entry(address).or_insert(now);
        // What waits the longest time already is no further behind.
        *turn = (*turn).clamp(now, now + EVERY * BURST + LONGEST) + EVERY;
        let ahead = turn.saturating_duration_since(now);
        ahead.saturating_sub(EVERY * BURST).min(LONGEST)
    }
}

/// The middleware: lets a refusal wait for its turn.
pub async fn pace(
    State((state, proxies)): State<(AppState, TrustedProxies)>,
    request: Request,
    next: Next,
) -> Response {
    let client = Tenant::of_address(proxies.client(&request));
    let response = next.run(request).await;
    if is_refusal(response.status()) {
        let wait = state.refusal_pace.wait(client, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
    response
}

/// Whether an answer of this status refuses its call.
pub(super) fn is_refusal(status: StatusCode) -> bool {
    status.is_client_error() || status == StatusCode::SERVICE_UNAVAILABLE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> Tenant {
        Tenant::of_address([192, 0, 2, last].into())
    }

    #[test]
    fn a_burst_is_sent_at_once_and_the_rest_at_the_rate() {
        let (pace, now) = (RefusalPace::default(), Instant::now());
        for _ in 0..BURST {
            assert_eq!(pace.wait(address(1), now), Duration::ZERO);
        }
        assert_eq!(pace.wait(address(1), now), EVERY);
        assert_eq!(pace.wait(address(1), now), 2 * EVERY);
        assert_eq!(pace.wait(address(2), now), Duration::ZERO);
        // Time gives turns back, at the rate and up to the burst.
        let later = now + 3 * EVERY;
        assert_eq!(pace.wait(address(1), later), Duration::ZERO);
        assert_eq!(pace.wait(address(1), later), EVERY);
        let much_later = now + 100 * EVERY * BURST;
        for _ in 0..BURST {
            assert_eq!(pace.wait(address(1), much_later), Duration::ZERO);
        }
        assert_eq!(pace.wait(address(1), much_later), EVERY);
    }

    #[test]
    fn no_refusal_waits_longer_than_a_second() {
        let (pace, now) = (RefusalPace::default(), Instant::now());
        let waits: Vec<Duration> = (0..10_000).map(|_| pace.wait(address(1), now)).collect();
        assert!(waits.is_sorted());
        assert_eq!(waits[9_999], LONGEST);
        let recovered = now + LONGEST + EVERY * (BURST + 2);
        assert_eq!(pace.wait(address(1), recovered), Duration::ZERO);
    }

    #[test]
    fn addresses_without_refusals_are_forgotten() {
        let (pace, now) = (RefusalPace::default(), Instant::now());
        for at in 0..4 * REMEMBERED {
            let address =
                Tenant::of_address(std::net::Ipv4Addr::from(at as u32 + (9 << 24)).into());
            pace.wait(address, now + EVERY * (2 * at as u32));
        }
        assert!(pace.sent.lock().unwrap().len() <= REMEMBERED);
    }

    #[test]
    fn what_a_client_did_wrong_and_what_the_server_has_no_room_for_are_refusals() {
        for status in [400, 401, 404, 408, 413, 429, 503] {
            assert!(
                is_refusal(StatusCode::from_u16(status).unwrap()),
                "{status}"
            );
        }
        for status in [200, 204, 304, 500, 504] {
            assert!(
                !is_refusal(StatusCode::from_u16(status).unwrap()),
                "{status}"
            );
        }
    }
}
