//! Places at which a test may have the process killed.
//!
//! Durability is what is left after `kill -9`, so the tests kill a real server in the middle of real work. The environment names the
//! place: `SELFJUDGE_FAULT=log.before_commit` kills the process the first time it comes there, `SELFJUDGE_FAULT=train.step:3` the
//! third time. Nothing else is done there, and unset it costs one load.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where to die, and at which visit.
struct Fault {
    place: String,
    visits_left: AtomicU64,
}

static FAULT: OnceLock<Option<Fault>> = OnceLock::new();

/// Dies here, as by `kill -9`, if the environment asks for it.
pub fn point(place: &str) {
    let fault = FAULT.get_or_init(|| {
        std::env::var("SELFJUDGE_FAULT")
            .ok()
            .map(|said| parse(&said))
    });
    let Some(fault) = fault.as_ref().filter(|fault| fault.place == place) else {
        return;
    };
    if fault.visits_left.fetch_sub(1, Ordering::Relaxed) == 1 {
        // SAFETY: two system calls without memory; SIGKILL cannot be caught, so no destructor and no flush runs.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
}

/// `place` or `place:visit`, visits counted from 1.
fn parse(said: &str) -> Fault {
    let (place, visit) = match said.rsplit_once(':') {
        Some((place, visit)) => (place, visit.parse().unwrap_or(1)),
        None => (said, 1),
    };
    Fault {
        place: place.to_owned(),
        visits_left: AtomicU64::new(visit),
    }
}

#[cfg(test)]
mod tests {
    use super::parse;
    use std::sync::atomic::Ordering;

    #[test]
    fn a_fault_has_a_place_and_a_visit() {
        let fault = parse("train.step:3");
        assert_eq!(fault.place, "train.step");
        assert_eq!(fault.visits_left.load(Ordering::Relaxed), 3);
        assert_eq!(parse("train.step").visits_left.load(Ordering::Relaxed), 1);
    }
}
