use super::*;
use crate::claims::Yardstick;
use crate::claims::measure::{BestOfN, Measured};
use selfjudge::{eval::stats::Estimate, learn::LearnConfig};

#[test]
fn three_seeds_have_students_interval() {
    let over = OverSeeds::new(&[10.0, 12.0, 14.0]).unwrap();
    assert!((over.mean - 12.0).abs() < 1e-12);
    // 4.303 * 2 / sqrt(3)
    assert!((over.half - 4.968).abs() < 0.01, "{}", over.half);
    assert_eq!(OverSeeds::new(&[3.0]).unwrap().half, 0.0);
    assert!(OverSeeds::new(&[]).is_none());
}

/// Returns a run whose generations have these accuracies (%), with best of N above each by a fixed amount.
fn run(variant: Variant, seed: u64, accuracies: &[f64]) -> RunResult {
    let estimate = |percent: f64| Estimate {
        mean: percent / 100.0,
        low: percent / 100.0,
        high: percent / 100.0,
        count: 1,
    };
    let generations = accuracies.iter().map(|&accuracy| GenerationResult {
        name: accuracy.to_string(),
        outcome: None,
        measured: Measured {
            correct: estimate(accuracy),
            brief: estimate(accuracy),
            polite: estimate(accuracy),
            tokens: 3.0,
            best_of: [1, 2]
                .map(|n| BestOfN {
                    n,
                    correct: estimate(accuracy + n as f64),
                })
                .into(),
        },
    });
    RunResult {
        variant,
        seed,
        settings: LearnConfig::default(),
        yardstick: Yardstick {
            instructions: 1,
            samples: 1,
            best_of: 2,
        },
        generations: generations.collect(),
        pairs: PairTruth {
            pairs: 10,
            decidable: 5,
            right: 4,
        },
        seconds: 1.0,
    }
}

/// Returns a report with one run per seed, given the first and last accuracy of each.
fn report(variants: &[(Variant, [[f64; 2]; 3])]) -> Report {
    let runs = variants.iter().flat_map(|(variant, seeds)| {
        (1..)
            .zip(seeds)
            .map(|(seed, accuracies)| run(*variant, seed, accuracies))
    });
    Report::new(runs.collect())
}

fn holds(report: &Report, number: usize) -> Option<bool> {
    report.claims[number - 1].holds
}

#[test]
fn a_gain_must_be_certain_to_hold() {
    let steady = report(&[(Variant::Stages, [[60.0, 75.0], [61.0, 75.5], [60.0, 74.5]])]);
    assert_eq!(
        (holds(&steady, 1), holds(&steady, 3)),
        (Some(true), Some(true))
    );
    // The same mean, but one seed learned nothing.
    let uneven = report(&[(Variant::Stages, [[60.0, 82.0], [61.0, 61.0], [60.0, 82.0]])]);
    assert_eq!(
        (holds(&uneven, 1), holds(&uneven, 3)),
        (Some(false), Some(false))
    );
    assert_eq!(holds(&steady, 2), None, "nothing to compare with");
}

#[test]
fn variants_are_compared_seed_by_seed() {
    let seeds = |last: [f64; 3]| last.map(|last| [60.0, last]);
    // Seeds differ by more than the variants do, and the order of the variants is the same under every seed.
    let ordered = report(&[
        (Variant::AtOnce, seeds([83.0, 73.0, 93.0])),
        (Variant::OffPolicy, seeds([80.0, 70.0, 90.1])),
        (Variant::Offline, seeds([76.0, 66.1, 86.0])),
        (Variant::Stages, seeds([82.0, 74.0, 93.0])),
    ]);
    assert_eq!(holds(&ordered, 2), Some(true));
    assert_eq!(
        holds(&ordered, 4),
        Some(false),
        "before in one, behind in another"
    );
    let swapped = report(&[
        (Variant::AtOnce, seeds([80.0, 70.0, 90.0])),
        (Variant::OffPolicy, seeds([83.0, 73.0, 93.1])),
        (Variant::Offline, seeds([76.0, 66.1, 86.0])),
    ]);
    assert_eq!(holds(&swapped, 2), Some(false));
}

#[test]
fn a_principle_moves_its_property_and_costs_no_accuracy() {
    let moved = [[10.0, 30.0], [11.0, 30.0], [10.0, 29.0]];
    let both = report(&[(Variant::Brief, moved), (Variant::Polite, moved)]);
    assert_eq!(holds(&both, 5), Some(true));
    let unmoved = [[10.0, 10.0], [11.0, 12.0], [10.0, 9.0]];
    let one = report(&[(Variant::Brief, moved), (Variant::Polite, unmoved)]);
    assert_eq!(holds(&one, 5), Some(false));
}

#[test]
fn opposed_pairs_are_judged_by_the_generators() {
    let seeds = |last: [f64; 3]| last.map(|last| [60.0, last]);
    let mut report = report(&[
        (Variant::Plain, seeds([70.0, 71.0, 70.0])),
        (Variant::Contrast, seeds([90.0, 90.0, 90.0])),
        (Variant::ContrastGenerator, seeds([75.0, 76.0, 75.5])),
    ]);
    assert_eq!(holds(&report, 6), Some(false), "the pairs are no truer");
    for run in &mut report.runs {
        if run.variant == Variant::ContrastGenerator {
            run.pairs.right = 5;
        }
    }
    assert_eq!(holds(&Report::new(report.runs), 6), Some(true));
}

#[test]
fn what_was_not_run_is_not_claimed() {
    let report = Report::new(Vec::new());
    assert_eq!(report.claims.len(), 6);
    assert!(report.claims.iter().all(|claim| claim.holds.is_none()));
    assert!(report.table().contains("not measured"));
}
