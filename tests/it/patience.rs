//! Waiting for a condition. No test is about speed: a deadline is there to end a test that will never pass, on the slowest machine.

use std::time::{Duration, Instant};

use reqwest::blocking::Client;

/// Time until a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(10);

/// Returns what `look` finds, once it finds something.
///
/// # Panics
/// If it finds nothing within [`PATIENCE`].
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "{what}: not within {PATIENCE:?}"
        );
        std::thread::sleep(LOOK);
    }
}

/// Waits until the condition holds.
///
/// # Panics
/// If it does not within [`PATIENCE`].
pub async fn until(happened: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !happened().await {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}");
        tokio::time::sleep(LOOK).await;
    }
}

/// A client that waits as long for an answer: by default one gives up after 30 s.
pub fn client() -> Client {
    Client::builder().timeout(PATIENCE).build().unwrap()
}

/// Repeats a scenario that depends on being quicker than the server, until it was. `attempt` asserts whatever must hold in any
/// case and says whether it was quick enough.
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
    panic!("the server was quicker {ATTEMPTS} times");
}
