//! Functions that wait for a condition. No test measures speed: a deadline only ends a test that would never pass on the slowest
//! machine.

use std::time::{Duration, Instant};

use reqwest::blocking::Client;

/// The time after which a test fails.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// The longest interval between two checks of a condition.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Returns the interval to the next check: a tenth of the time so far, because a check may cost the server a millisecond of work.
fn pause(begun: Instant) -> Duration {
    (begun.elapsed() / 10).clamp(Duration::from_millis(5), LONGEST_PAUSE)
}

/// Returns the first value that `look` finds.
///
/// # Panics
/// If it finds none within [`PATIENCE`].
pub fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    eventually_or(|| what.to_owned(), look)
}

/// Does the same, and asks for the failure's message only then.
///
/// # Panics
/// As [`eventually`] does.
pub fn eventually_or<T>(what: impl Fn() -> String, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "{}: not reached within {PATIENCE:?}",
            what()
        );
        std::thread::sleep(pause(begun));
    }
}

/// Waits until the condition holds.
///
/// # Panics
/// If it does not hold within [`PATIENCE`].
pub async fn until(happened: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !happened().await {
        assert!(
            begun.elapsed() < PATIENCE,
            "the condition did not hold within {PATIENCE:?}"
        );
        tokio::time::sleep(pause(begun)).await;
    }
}

/// Returns a client that waits as long for an answer. The default timeout is 30 s.
pub fn client() -> Client {
    Client::builder().timeout(PATIENCE).build().unwrap()
}

/// Repeats a scenario that must be faster than the server until it was. `attempt` asserts the conditions that must hold in any
/// case, and returns whether it was fast enough.
///
/// # Panics
/// If it never is.
pub async fn until_quick_enough(attempt: impl AsyncFn() -> bool) {
    const ATTEMPTS: usize = 50;
    for _ in 0..ATTEMPTS {
        if attempt().await {
            return;
        }
    }
    panic!("the server was faster than the test {ATTEMPTS} times");
}
