//! Pacing of refusals: a client whose calls are all refused gets its answers at a limited rate.
//!
//! A refusal is cheap, but a client that retries immediately causes thousands per second, which takes processor time from other
//! calls. Refusals within the rate are sent at once; those beyond it are delayed, by a second at most.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;

use super::AppState;
use super::client_address::TrustedProxies;
use engine::Tenant;

/// Interval between two refusals to one address, once the burst is used up.
const EVERY: Duration = Duration::from_millis(10);

/// Number of refusals to one address that are sent without delay.
const BURST: u32 = 100;

/// Maximum delay.
const LONGEST: Duration = Duration::from_secs(1);

/// Maximum number of addresses in the table; beyond it, addresses without pending refusals are removed.
const REMEMBERED: usize = 1024;

/// The schedule of refusals, per address.
#[derive(Debug, Default)]
pub struct RefusalPace {
    /// The time at which all refusals to an address so far would have been sent at the rate, without a burst.
    sent: Mutex<HashMap<Tenant, Instant>>,
}

impl RefusalPace {
    /// Schedules a refusal to an address at `now`, and returns its delay.
    fn wait(&self, address: Tenant, now: Instant) -> Duration {
        // Consistent after every change.
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        if sent.len() >= REMEMBERED && !sent.contains_key(&address) {
            sent.retain(|_, sent| *sent > now);
        }
        let turn = sent.entry(address).or_insert(now);
        // Refusals at the maximum delay do not push the schedule back any further.
        *turn = (*turn).clamp(now, now + EVERY * BURST + LONGEST) + EVERY;
        let ahead = turn.saturating_duration_since(now);
        ahead.saturating_sub(EVERY * BURST).min(LONGEST)
    }
}

/// Delays refusals (middleware).
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

/// Returns whether an answer with this status is a refusal.
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
        // The burst is replenished over time, at the rate.
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
