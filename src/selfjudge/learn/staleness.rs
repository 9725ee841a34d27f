//! Staleness: the age of the policy that wrote an answer when the answer is trained on.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::LearnError;
use super::batch::UpdatePair;
use traffic_log::{GenerationState, StageId, TrafficLog};

/// Means over the answers of the last update's pairs.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[schema(as = StalenessBody)]
pub struct Staleness {
    /// Versions promoted since the answers were written: 0 for fresh pairs, more with replay and feedback.
    pub versions: f64,
    /// Updates of the stage since its own pairs were sampled: 0 if they are on-policy.
    pub updates: f64,
}

/// Which stage made which version, according to the log at the start or restart of a stage.
#[derive(Debug, Clone, Default)]
pub struct Ages {
    stage: i64,
    /// Stage by generation id. The base belongs to stage 0.
    made_by: HashMap<String, i64>,
    /// Earlier stages whose versions were promoted.
    promoted: Vec<i64>,
}

impl Ages {
    /// Reads the ages from the log.
    ///
    /// # Errors
    /// Errors from the log.
    pub async fn read(log: &TrafficLog, stage: StageId) -> Result<Self, LearnError> {
        let mut ages = Self {
            stage: stage.0,
            ..Self::default()
        };
        ages.made_by.insert("base".to_owned(), 0);
        for generation in log.generations.all().await? {
            let Some(StageId(made)) = generation.stage else {
                continue;
            };
            ages.made_by.insert(generation.id.to_string(), made);
            if made < stage.0 && generation.state == GenerationState::Promoted {
                ages.promoted.push(made);
            }
        }
        Ok(ages)
    }

    /// Returns the means over an update's pairs; answers of an unknown version are left out.
    pub fn of(&self, update: u64, pairs: &[UpdatePair]) -> Staleness {
        let (mut versions, mut updates) = (Mean::default(), Mean::default());
        for pair in pairs {
            for answer in [&pair.pair.chosen, &pair.pair.rejected] {
                if pair.source.is_some() {
                    versions.add(0);
                    updates.add(self.updates_behind(update, &answer.weights));
                } else if let Some(behind) = self.versions_behind(&answer.weights) {
                    versions.add(behind);
                }
            }
        }
        Staleness {
            versions: versions.value(),
            updates: updates.value(),
        }
    }

    /// Returns how many updates ago `weights` were current. They are the stage's start, or an update of it as the learner names them.
    fn updates_behind(&self, update: u64, weights: &str) -> u64 {
        let made = in_the_making(weights).and_then(|(stage, rest)| {
            let made = rest.strip_prefix("update-")?.parse().ok()?;
            (stage == self.stage).then_some(made)
        });
        update.saturating_sub(made.unwrap_or(0))
    }

    fn versions_behind(&self, weights: &str) -> Option<u64> {
        // Answers sampled during a stage are as old as the version from which it started.
        let of = match in_the_making(weights) {
            Some((stage, _)) => stage - 1,
            None => *self.made_by.get(weights)?,
        };
        Some(self.promoted.iter().filter(|made| **made > of).count() as u64)
    }
}

/// Returns the stage of unfinished weights, and the rest of their name.
fn in_the_making(weights: &str) -> Option<(i64, &str)> {
    let (stage, rest) = weights.strip_prefix("stage-")?.split_once('-')?;
    Some((stage.parse().ok()?, rest))
}

#[derive(Default)]
struct Mean {
    sum: u64,
    count: u64,
}

impl Mean {
    fn add(&mut self, number: u64) {
        self.sum += number;
        self.count += 1;
    }

    fn value(&self) -> f64 {
        self.sum as f64 / self.count.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::pairs::JudgedPair;
    use crate::learn::pairs::tests::answer;
    use crate::learn::rollout::Answer;
    use judge::PairVerdict;
    use traffic_log::{PairSource, RecordId};

    fn pair(weights: &str, fresh: bool) -> UpdatePair {
        let by = |ids: &[u32]| Answer {
            weights: weights.to_owned(),
            ..answer(ids)
        };
        UpdatePair {
            record: RecordId::parse(&"0".repeat(26)).unwrap(),
            prompt: vec![1],
            pair: JudgedPair {
                chosen: by(&[1]),
                rejected: by(&[2]),
                label: 1.0,
                verdict: PairVerdict::unread(),
            },
            source: fresh.then_some(PairSource::OnPolicy),
        }
    }

    #[test]
    fn ages_are_counted_in_versions_and_in_updates() {
        // Stages 1, 2 and 4 were promoted, 3 was not; 5 trains.
        let ages = Ages {
            stage: 5,
            made_by: [("base", 0), ("one", 1), ("four", 4)]
                .map(|(name, stage)| (name.to_owned(), stage))
                .into(),
            promoted: vec![1, 2, 4],
        };
        let of = |weights, fresh| {
            let Staleness { versions, updates } = ages.of(6, &[pair(weights, fresh)]);
            (versions, updates)
        };
        assert_eq!(of("stage-5-update-6", true), (0.0, 0.0), "on-policy");
        assert_eq!(of("stage-5-update-4", true), (0.0, 2.0));
        assert_eq!(of("four", true), (0.0, 6.0), "the stage's start");
        assert_eq!(of("stage-2-update-3", false), (2.0, 0.0), "replayed");
        assert_eq!(of("base", false), (3.0, 0.0), "feedback");
        assert_eq!(of("one", false), (2.0, 0.0));
        assert_eq!(of("nobody knows", false), (0.0, 0.0));
        let mixed = ages.of(6, &[pair("base", false), pair("stage-5-update-6", true)]);
        assert_eq!((mixed.versions, mixed.updates), (1.5, 0.0));
    }
}
