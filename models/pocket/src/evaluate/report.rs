//! The report: all measurements, and the bounds that they must satisfy.

use serde::{Deserialize, Serialize};

use super::PocketOptions;
use super::own_samples::{self, OwnSamples};
use super::principles::{self, Following, PrincipleReport};
use crate::world::Kind;
use crate::world::corpus::held_out_tasks;
use crate::world::task::LEVEL_WEIGHTS;
use selfjudge::eval::{Estimate, EvalError, Subject};

/// The report of `pocket evaluate`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PocketReport {
    pub options: PocketOptions,
    pub own: OwnSamples,
    pub principles: Vec<PrincipleReport>,
    pub following: Vec<Following>,
    pub thresholds: Vec<Threshold>,
}

/// A bound that the default model must satisfy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Threshold {
    pub what: String,
    pub value: Option<f64>,
    pub at_least: Option<f64>,
    pub at_most: Option<f64>,
    pub kept: bool,
}

impl Threshold {
    fn new(what: &str, value: Option<f64>, at_least: Option<f64>, at_most: Option<f64>) -> Self {
        let kept = value.is_some_and(|value| {
            at_least.is_none_or(|least| value >= least) && at_most.is_none_or(|most| value <= most)
        });
        Self {
            what: what.to_string(),
            value,
            at_least,
            at_most,
            kept,
        }
    }
}

/// Evaluates a subject on the pocket world.
///
/// # Errors
/// Returns an error if the options select nothing, or if the subject fails.
pub fn measure<S: Subject>(
    subject: &mut S,
    options: &PocketOptions,
) -> Result<PocketReport, EvalError> {
    let nothing = [options.instructions, options.comparisons, options.following].contains(&0);
    if nothing || options.seeds.is_empty() {
        return Err(EvalError::Options(
            "instructions, comparisons, following and seeds must not be empty",
        ));
    }
    if !options.samples.is_power_of_two() || options.samples < 2 {
        return Err(EvalError::Options(
            "samples must be a power of two, at least 2",
        ));
    }
    let tasks = held_out_tasks(
        options.world_seed,
        options.instructions,
        &Kind::ALL,
        &LEVEL_WEIGHTS,
    );
    let own = own_samples::measure(subject, &tasks, options)?;
    let principles = principles::measure(subject, options)?;
    let following = principles::following(subject, &tasks, options)?;
    let thresholds = thresholds(&own, &principles);
    Ok(PocketReport {
        options: options.clone(),
        own,
        principles,
        following,
        thresholds,
    })
}

fn thresholds(own: &OwnSamples, principles: &[PrincipleReport]) -> Vec<Threshold> {
    let mean = |estimate: Option<Estimate>| estimate.map(|e| e.mean);
    let gain = own.best_of.iter().find(|row| row.n == 8).map(|row| {
        let one = own.best_of[0].tournament.mean;
        row.tournament.mean - one
    });
    let least_rise = own
        .best_of
        .windows(2)
        .map(|pair| pair[1].tournament.mean - pair[0].tournament.mean)
        .min_by(f64::total_cmp);
    let mut rows = vec![
        Threshold::new(
            "sampled accuracy at temperature 1",
            Some(own.sampled.mean),
            Some(0.40),
            Some(0.75),
        ),
        Threshold::new(
            "judge accuracy on own samples",
            mean(own.judge),
            Some(0.85),
            None,
        ),
        Threshold::new(
            "orders that disagree",
            mean(own.disagreement),
            None,
            Some(0.10),
        ),
        Threshold::new("label mass", mean(own.label_mass), Some(0.98), None),
        Threshold::new("best of 8 above one sample", gain, Some(0.10), None),
        Threshold::new(
            "least rise from one N to the next",
            least_rise,
            Some(f64::MIN_POSITIVE),
            None,
        ),
    ];
    for report in principles {
        let what = format!("agreement under \"{}\"", report.name);
        rows.push(Threshold::new(
            &what,
            Some(report.agreement.mean),
            Some(0.80),
            None,
        ));
    }
    rows
}

impl PocketReport {
    /// Returns whether all bounds are satisfied.
    pub fn passed(&self) -> bool {
        self.thresholds.iter().all(|t| t.kept)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::world::comparison::Source;
    use crate::world::content::stable_hash;
    use crate::world::principle::satisfied;
    use crate::world::{CurriculumOptions, Dice, Principle, Split, Style, Task};
    use judge::{Bracket, Comparison, Method, OnDisagreement, Orders, Outcome, PairVerdict};
    use selfjudge::eval::Contest;
    use text::Message;

    /// A subject that answers right with probability `skill`, and judges like the checker with probability `sight`.
    struct Fake {
        tasks: HashMap<String, Task>,
        skill: f64,
        sight: f64,
    }

    impl Fake {
        fn new(options: &PocketOptions, skill: f64, sight: f64) -> Self {
            use crate::world::corpus::{HeldOut, held_out_comparisons};
            let mut tasks = held_out_tasks(
                options.world_seed,
                options.instructions,
                &Kind::ALL,
                &LEVEL_WEIGHTS,
            );
            let mut sets = vec![
                HeldOut::Correct,
                HeldOut::TrainedCombination,
                HeldOut::HeldOutCombination,
            ];
            sets.extend(Principle::ALL[1..].iter().map(|&p| HeldOut::Single(p)));
            for set in sets {
                let world = CurriculumOptions::default();
                let pairs =
                    held_out_comparisons(options.world_seed, set, options.comparisons, &world);
                tasks.extend(pairs.into_iter().map(|pair| pair.task));
            }
            let tasks = tasks.into_iter().map(|t| (t.prompt.clone(), t)).collect();
            Self {
                tasks,
                skill,
                sight,
            }
        }
    }

    impl Subject for Fake {
        fn answer(
            &mut self,
            conversations: &[Vec<Message>],
            temperature: f32,
            seed: u64,
        ) -> Result<Vec<String>, EvalError> {
            let source = Source::world(Split::HeldOut);
            Ok(conversations
                .iter()
                .enumerate()
                .map(|(i, messages)| {
                    let dice = &mut Dice::new(seed, i as u64);
                    let task = &self.tasks[&messages.last().unwrap().content];
                    let style = Style::default_mixture(dice);
                    if temperature == 0.0 || dice.chance(self.skill) {
                        task.right(style, dice)
                    } else {
                        task.wrong(style, source.severity(dice), dice)
                    }
                })
                .collect())
        }

        fn compare(&mut self, comparisons: &[Comparison]) -> Result<Vec<PairVerdict>, EvalError> {
            Ok(comparisons
                .iter()
                .map(|asked| {
                    let task = &self.tasks[&asked.context[0].content];
                    let mut principles: Vec<Principle> = asked
                        .principles
                        .iter()
                        .map(|name| Principle::from_name(name).unwrap())
                        .collect();
                    if principles.is_empty() {
                        principles.push(Principle::Correct);
                    }
                    let score = |text: &str| satisfied(&principles, &task.check(text));
                    let (a, b) = (score(&asked.a), score(&asked.b));
                    let key = format!("{}|{}|{}", asked.context[0].content, asked.a, asked.b);
                    let sees = Dice::new(stable_hash(&key), 0).chance(self.sight);
                    let first = if a == b || !sees {
                        Dice::new(stable_hash(&key), 1).chance(0.5)
                    } else {
                        a > b
                    };
                    let (high, low) = (0.9_f32.ln(), 0.09_f32.ln());
                    let read = if first { [high, low] } else { [low, high] };
                    let reads = [read, [read[1], read[0]]];
                    PairVerdict::join(&[], Orders::Both, OnDisagreement::Average, &reads, false)
                })
                .collect())
        }

        fn winners(&mut self, contests: &[Contest]) -> Result<Vec<usize>, EvalError> {
            let winner = |contest: &Contest| {
                let count = contest.candidates.len();
                let mut bracket = Bracket::new(count, Method::Knockout, contest.seed).unwrap();
                while !bracket.round().is_empty() {
                    let text = |at: usize| contest.candidates[at].clone();
                    let pair = |a: &String, b: &String| Comparison {
                        context: contest.context.clone(),
                        a: a.clone(),
                        b: b.clone(),
                        principles: Vec::new(),
                    };
                    let outcomes = bracket.round().iter().map(|played| {
                        let (a, b) = (text(played.first), text(played.second));
                        // A verdict does not depend on which answer is the first of its match.
                        let verdict = match a.cmp(&b) {
                            std::cmp::Ordering::Equal => PairVerdict::identical(),
                            std::cmp::Ordering::Less => self.compare(&[pair(&a, &b)])?.remove(0),
                            std::cmp::Ordering::Greater => {
                                self.compare(&[pair(&b, &a)])?.remove(0).swapped()
                            }
                        };
                        Ok(verdict.outcome())
                    });
                    let outcomes = outcomes.collect::<Result<Vec<Outcome>, EvalError>>()?;
                    bracket.record(&outcomes).unwrap();
                }
                Ok(bracket.ranking()[0])
            };
            contests.iter().map(winner).collect()
        }
    }

    fn small() -> PocketOptions {
        PocketOptions {
            instructions: 60,
            comparisons: 40,
            following: 20,
            ..PocketOptions::default()
        }
    }

    #[test]
    fn a_judge_that_sees_everything_is_the_oracle() {
        let options = small();
        let mut fake = Fake::new(&options, 0.5, 1.0);
        let report = measure(&mut fake, &options).unwrap();
        assert!((report.own.sampled.mean - 0.5).abs() < 0.05);
        assert_eq!(report.own.greedy.mean, 1.0);
        assert_eq!(report.own.judge.unwrap().mean, 1.0);
        for row in &report.own.best_of {
            assert_eq!(row.tournament, row.oracle, "best of {}", row.n);
        }
        let eight = &report.own.best_of[3];
        assert!(eight.n == 8 && eight.oracle.mean > 0.95 && eight.gain.mean > 0.4);
        assert!(
            report
                .principles
                .iter()
                .all(|row| row.agreement.mean == 1.0)
        );
        let table = report.table();
        assert!(table.contains("held-out combinations") && table.contains("Be brief."));
        assert!(report.passed() || table.contains("FAIL"));
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(
            serde_json::from_str::<PocketReport>(&json)
                .unwrap()
                .thresholds
                .len(),
            report.thresholds.len()
        );
    }

    #[test]
    fn a_judge_that_sees_nothing_gains_nothing_and_fails() {
        let options = PocketOptions {
            instructions: 200,
            ..small()
        };
        let mut fake = Fake::new(&options, 0.5, 0.0);
        let report = measure(&mut fake, &options).unwrap();
        assert!((report.own.judge.unwrap().mean - 0.5).abs() < 0.1);
        for row in &report.own.best_of {
            // A verdict is the same whenever the same two texts meet. A sample that beats one copy of the right answer beats
            // every copy. So a blind judge of many samples does worse than chance; it must never do better.
            assert!(row.gain.mean < 0.06, "best of {}: {row:?}", row.n);
            if row.n <= 2 {
                assert!(row.gain.mean.abs() < 0.06, "best of {}: {row:?}", row.n);
            }
            assert!((row.random.mean - report.own.sampled.mean).abs() < 1e-9);
        }
        assert!(!report.passed());
    }

    #[test]
    fn options_that_ask_for_nothing_are_refused() {
        let mut fake = Fake::new(&small(), 0.5, 0.5);
        for options in [
            PocketOptions {
                samples: 6,
                ..small()
            },
            PocketOptions {
                instructions: 0,
                ..small()
            },
            PocketOptions {
                seeds: vec![],
                ..small()
            },
        ] {
            assert!(measure(&mut fake, &options).is_err());
        }
    }
}
