//! Fault points of a program with debug assertions.

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The action of a fault point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Kill,
    Panic,
    Wait,
}

/// A fault: its action, its point, and the visits at which it happens.
struct Fault {
    action: Action,
    place: String,
    visits: RangeInclusive<u64>,
    visited: AtomicU64,
}

static FAULT: OnceLock<Option<Fault>> = OnceLock::new();

/// Marks a fault point: performs the action that the environment sets for it.
///
/// # Panics
/// If the action is a panic.
pub fn point(place: &str) {
    let fault = FAULT.get_or_init(|| {
        std::env::var("SELFJUDGE_FAULT")
            .ok()
            .map(|said| parse(&said))
    });
    let Some(fault) = fault.as_ref().filter(|fault| fault.place == place) else {
        return;
    };
    let visit = fault.visited.fetch_add(1, Ordering::Relaxed) + 1;
    if !fault.visits.contains(&visit) {
        return;
    }
    match fault.action {
        Action::Kill => {
            // SAFETY: two system calls that touch no memory; SIGKILL cannot be caught, so no destructor and no flush runs.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        }
        Action::Panic => panic!("visit {visit} of {place}, as a test asked"),
        Action::Wait => {
            let until = std::env::var_os("SELFJUDGE_FAULT_UNTIL").unwrap_or_default();
            while !Path::new(&until).exists() {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// Parses `[panic@|wait@]place[:visit[-[last visit]]]`, with visits counted from 1.
fn parse(said: &str) -> Fault {
    let (action, said) = match said.split_once('@') {
        Some(("panic", rest)) => (Action::Panic, rest),
        Some(("wait", rest)) => (Action::Wait, rest),
        _ => (Action::Kill, said),
    };
    let (place, visits) = said.rsplit_once(':').unwrap_or((said, "1"));
    let number = |text: &str, none| text.parse().unwrap_or(none);
    let visits = match visits.split_once('-') {
        Some((first, last)) => number(first, 1)..=number(last, u64::MAX),
        None => number(visits, 1)..=number(visits, 1),
    };
    Fault {
        action,
        place: place.to_owned(),
        visits,
        visited: AtomicU64::new(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_has_an_action_a_place_and_visits() {
        let cases = [
            ("train.step", Action::Kill, "train.step", 1..=1),
            ("train.step:3", Action::Kill, "train.step", 3..=3),
            ("panic@learn.stage:1-3", Action::Panic, "learn.stage", 1..=3),
            (
                "panic@learn.stage:2-",
                Action::Panic,
                "learn.stage",
                2..=u64::MAX,
            ),
            ("wait@publish.load:2", Action::Wait, "publish.load", 2..=2),
        ];
        for (said, action, place, visits) in cases {
            let fault = parse(said);
            assert_eq!(
                (fault.action, &*fault.place, fault.visits),
                (action, place, visits),
                "{said}"
            );
        }
    }
}
