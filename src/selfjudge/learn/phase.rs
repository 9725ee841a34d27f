//! The phases of a stage, and the one function that says which phase follows.
//!
//! ```text
//! Pooling ── claimed ──▶ Training ── candidate written ──▶ Gating ── passed ──▶ Publishing ── served ──▶ Closed(promoted)
//!                         │    ▲                             │ │                    └─ policy moved ────▶ Closed(rejected)
//!                         └────┘ updated                     │ └─ passed, not to be promoted ───────────▶ Closed(passed)
//!                                                            ├─ refused ────────────────────────────────▶ Closed(rejected)
//!                                                            └─ candidate damaged ──────────────────────▶ Closed(failed)
//! ```
//!
//! The phase is saved with the stage's progress, in the transaction of what it follows from, so a restarted learner continues in the
//! phase in which it was killed. An abandoned stage is closed in the log, without an event here.

use serde::{Deserialize, Serialize};

use traffic_log::StageOutcome;

/// The phase of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The stage is open, and its prompts have yet to be chosen from its pool.
    #[default]
    Pooling,
    /// Its prompts are claimed, and its updates are made.
    Training,
    /// Its candidate is written, and the gates measure it.
    Gating,
    /// Its candidate passed all gates and is to serve.
    Publishing,
    /// The stage has ended.
    Closed(StageOutcome),
}

/// What happened to a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StageEvent {
    /// Its prompts were claimed.
    Claimed,
    /// An update was made and recorded.
    Updated,
    /// The trained adapter was written as a generation.
    CandidateWritten,
    /// The candidate passed all gates; `promote` tells whether it is to serve without an operator.
    Passed { promote: bool },
    /// A gate refused the candidate.
    Refused,
    /// The candidate's files cannot be used.
    CandidateDamaged,
    /// The pointers moved to the candidate.
    Served,
    /// The policy is no longer the one that the candidate was trained from, because an operator moved it.
    PolicyMoved,
}

/// The error for an event that cannot happen in a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} does not happen to a stage in the phase {phase:?}")]
pub struct NoTransition {
    pub phase: Phase,
    pub event: StageEvent,
}

impl Phase {
    /// Returns the phase that follows an event.
    ///
    /// # Errors
    /// Fails if the event cannot happen in this phase.
    pub fn after(self, event: StageEvent) -> Result<Self, NoTransition> {
        use StageOutcome::{Failed, Passed, Promoted, Rejected};
        Ok(match (self, event) {
            (Self::Pooling, StageEvent::Claimed) => Self::Training,
            (Self::Training, StageEvent::Updated) => Self::Training,
            (Self::Training, StageEvent::CandidateWritten) => Self::Gating,
            (Self::Gating, StageEvent::Passed { promote: true }) => Self::Publishing,
            (Self::Gating, StageEvent::Passed { promote: false }) => Self::Closed(Passed),
            (Self::Gating, StageEvent::Refused) => Self::Closed(Rejected),
            (Self::Gating, StageEvent::CandidateDamaged) => Self::Closed(Failed),
            (Self::Publishing, StageEvent::Served) => Self::Closed(Promoted),
            (Self::Publishing, StageEvent::PolicyMoved) => Self::Closed(Rejected),
            (phase, event) => return Err(NoTransition { phase, event }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [StageEvent; 9] = [
        StageEvent::Claimed,
        StageEvent::Updated,
        StageEvent::CandidateWritten,
        StageEvent::Passed { promote: true },
        StageEvent::Passed { promote: false },
        StageEvent::Refused,
        StageEvent::CandidateDamaged,
        StageEvent::Served,
        StageEvent::PolicyMoved,
    ];

    fn phases() -> Vec<Phase> {
        let open = [
            Phase::Pooling,
            Phase::Training,
            Phase::Gating,
            Phase::Publishing,
        ];
        let closed = StageOutcome::ALL.map(Phase::Closed);
        open.into_iter().chain(closed).collect()
    }

    #[test]
    fn each_phase_has_its_events_and_no_others() {
        use Phase::{Closed, Gating, Pooling, Publishing, Training};
        use StageOutcome::{Failed, Passed, Promoted, Rejected};
        let allowed = [
            (Pooling, StageEvent::Claimed, Training),
            (Training, StageEvent::Updated, Training),
            (Training, StageEvent::CandidateWritten, Gating),
            (Gating, StageEvent::Passed { promote: true }, Publishing),
            (
                Gating,
                StageEvent::Passed { promote: false },
                Closed(Passed),
            ),
            (Gating, StageEvent::Refused, Closed(Rejected)),
            (Gating, StageEvent::CandidateDamaged, Closed(Failed)),
            (Publishing, StageEvent::Served, Closed(Promoted)),
            (Publishing, StageEvent::PolicyMoved, Closed(Rejected)),
        ];
        for phase in phases() {
            for event in EVENTS {
                let found = allowed
                    .iter()
                    .find(|(from, on, _)| (*from, *on) == (phase, event));
                let expected = found
                    .map(|(.., to)| *to)
                    .ok_or(NoTransition { phase, event });
                assert_eq!(phase.after(event), expected, "{phase:?} {event:?}");
            }
        }
    }

    #[test]
    fn every_outcome_can_be_reached_and_is_final() {
        let mut reached = vec![Phase::default()];
        let mut at = 0;
        while let Some(&phase) = reached.get(at) {
            for next in EVENTS
                .into_iter()
                .filter_map(|event| phase.after(event).ok())
            {
                if !reached.contains(&next) {
                    reached.push(next);
                }
            }
            at += 1;
        }
        assert_eq!(reached.len(), phases().len());
    }

    #[test]
    fn a_phase_is_saved_under_its_name() {
        let saved = |phase| serde_json::to_value(phase).unwrap();
        assert_eq!(saved(Phase::Gating), "gating");
        let closed = Phase::Closed(StageOutcome::Promoted);
        assert_eq!(saved(closed), serde_json::json!({"closed": "promoted"}));
        for phase in phases() {
            assert_eq!(
                serde_json::from_value::<Phase>(saved(phase)).unwrap(),
                phase
            );
        }
    }
}
