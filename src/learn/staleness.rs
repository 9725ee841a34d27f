//! How old the policy was that wrote an answer, when the answer is learned from.

use std::collections::HashMap;

use super::LearnError;
use super::update::UpdatePair;
use crate::preference::log::{GenerationState, StageId, TrafficLog};

/// Mean age of the policies that wrote an update's pairs.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize, serde::Deserialize)]
pub struct Staleness {
    /// Versions that were promoted since, up to the one that the stage started from. 0 of all that this stage drew itself; above that by
    /// replay and feedback.
    pub versions: f64,
    /// Updates of this stage since, of pairs that it drew itself: 0 on-policy.
    pub updates: f64,
}

/// Which stage made which version, as far as the log knows when a stage begins or goes on.
#[derive(Debug, Clone, Default)]
pub struct Ages {
    stage: i64,
    /// By the generation's id. The base is of stage 0.
    made_by: HashMap<String, i64>,
    /// Stages whose versions were promoted, before this one.
    promoted: Vec<i64>,
}

impl Ages {
    /// # Errors
    /// The log's.
    pub async fn read(log: &TrafficLog, stage: StageId) -> Result<Self, LearnError> {
        let mut ages = Self {
            stage: stage.0,
            ..Self::default()
        };
        ages.made_by.insert("base".to_owned(), 0);
        for generation in log.generations().await? {
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

    /// The means over an update's pairs; of pairs whose author nobody knows there is none.
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

    /// `weights` are those of the stage's start, or of one of its updates as the learner names them.
    fn updates_behind(&self, update: u64, weights: &str) -> u64 {
        let made = in_the_making(weights).and_then(|(stage, rest)| {
            let made = rest.strip_prefix("update-")?.parse().ok()?;
            (stage == self.stage).then_some(made)
        });
        update.saturating_sub(made.unwrap_or(0))
    }

    fn versions_behind(&self, weights: &str) -> Option<u64> {
        // What a stage drew while it trained is as old as the version that it started from.
        let of = match in_the_making(weights) {
            Some((stage, _)) => stage - 1,
            None => *self.made_by.get(weights)?,
        };
        Some(self.promoted.iter().filter(|made| **made > of).count() as u64)
    }
}

/// The stage of weights that are no version yet, and what the name says besides.
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
    use crate::learn::judging::JudgedPair;
    use crate::learn::judging::tests::answer;
    use crate::learn::rollout::Answer;
    use crate::preference::log::{PairSource, RecordId};
    use crate::service::PairVerdict;

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
