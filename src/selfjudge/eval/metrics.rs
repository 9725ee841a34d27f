//! Statistics of evaluation: shares with intervals, calibration, separation.

use serde::{Deserialize, Serialize};

/// A share of `total` with its 95 % Wilson score interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Share {
    pub hits: u64,
    pub total: u64,
    /// The share; none if `total` is 0.
    pub share: Option<f64>,
    /// The bounds of its interval; none if `total` is 0.
    pub low: Option<f64>,
    pub high: Option<f64>,
}

impl Share {
    pub fn new(hits: u64, total: u64) -> Self {
        let (low, high) = wilson(hits, total).unzip();
        Self {
            hits,
            total,
            share: (total > 0).then(|| hits as f64 / total as f64),
            low,
            high,
        }
    }

    /// Returns the share of `true`.
    pub fn of(outcomes: impl IntoIterator<Item = bool>) -> Self {
        let (mut hits, mut total) = (0, 0);
        for outcome in outcomes {
            hits += u64::from(outcome);
            total += 1;
        }
        Self::new(hits, total)
    }
}

/// Returns the 95 % Wilson score interval (E. B. Wilson, 1927); none if `total` is 0.
pub fn wilson(hits: u64, total: u64) -> Option<(f64, f64)> {
    const Z: f64 = 1.959_963_984_540_054;
    if total == 0 {
        return None;
    }
    let (n, p) = (total as f64, hits as f64 / total as f64);
    let scale = 1.0 + Z * Z / n;
    let centre = p + Z * Z / (2.0 * n);
    let reach = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    Some((
        ((centre - reach) / scale).max(0.0),
        ((centre + reach) / scale).min(1.0),
    ))
}

/// One bin of a reliability diagram.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    pub count: u64,
    /// The mean confidence; none in an empty bin.
    pub mean_confidence: Option<f64>,
    /// The share of right answers; none in an empty bin.
    pub accuracy: Option<f64>,
}

/// Expected calibration error over bins of equal width of the confidence in the given answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// The error; none without answers.
    pub ece: Option<f64>,
    /// Bins of confidences from 0.5 to 1: the chosen one of two answers has at least 0.5.
    pub bins: Vec<Bin>,
}

impl Calibration {
    /// Computes the error; `answers` holds the confidence in each given answer (0.5 to 1) and whether it was right.
    pub fn new(answers: &[(f64, bool)], bins: usize) -> Self {
        let bins = bins.max(1);
        let mut sums = vec![(0u64, 0.0, 0u64); bins];
        for &(confidence, right) in answers {
            let at = ((confidence - 0.5) * 2.0 * bins as f64) as usize;
            let bin = &mut sums[at.min(bins - 1)];
            bin.0 += 1;
            bin.1 += confidence;
            bin.2 += u64::from(right);
        }
        let mut ece = 0.0;
        let bins = sums
            .into_iter()
            .map(|(count, confidence, right)| {
                let means = (count > 0).then(|| {
                    let n = count as f64;
                    let (mean_confidence, accuracy) = (confidence / n, right as f64 / n);
                    ece += n / answers.len() as f64 * (accuracy - mean_confidence).abs();
                    (mean_confidence, accuracy)
                });
                let (mean_confidence, accuracy) = means.unzip();
                Bin {
                    count,
                    mean_confidence,
                    accuracy,
                }
            })
            .collect();
        Self {
            ece: (!answers.is_empty()).then_some(ece),
            bins,
        }
    }
}

/// Returns the area under the ROC curve: the probability that a random positive scores above a random negative, ties counting half.
/// `None` if either list is empty.
pub fn auc(positives: &[f64], negatives: &[f64]) -> Option<f64> {
    if positives.is_empty() || negatives.is_empty() {
        return None;
    }
    let mut negatives = negatives.to_vec();
    negatives.sort_by(f64::total_cmp);
    let above: f64 = positives
        .iter()
        .map(|score| {
            let below = negatives.partition_point(|other| other < score);
            let up_to = negatives.partition_point(|other| other <= score);
            (below + up_to) as f64 / 2.0
        })
        .sum();
    Some(above / (positives.len() * negatives.len()) as f64)
}

/// Returns the value below which a fraction `q` of the values lies (nearest rank); none for no values.
pub fn quantile(values: &[f64], q: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (q * sorted.len() as f64).ceil() as usize;
    let at = rank.saturating_sub(1).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied()
}

/// Returns the mean; none for no values.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 5e-4, "{a} is not {b}");
    }

    #[test]
    fn wilson_intervals_match_published_values() {
        // Newcombe (1998), table I, method 3: 81/263, 15/148, 0/20 and 1/29.
        for (hits, total, low, high) in [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ] {
            let (found_low, found_high) = wilson(hits, total).unwrap();
            near(found_low, low);
            near(found_high, high);
        }
        let all = Share::of([true; 20]);
        near(all.low.unwrap(), 1.0 - 0.1611);
        assert_eq!((all.share, all.high), (Some(1.0), Some(1.0)));
        let nothing = Share::of([]);
        assert_eq!(
            (nothing.share, nothing.low, nothing.high),
            (None, None, None)
        );
    }

    #[test]
    fn calibration_by_hand() {
        // Bins [0.5, 0.75) and [0.75, 1]: confidence 0.6, right 1 of 2; confidence 0.9 and 1.0, right 1 of 2.
        let answers = [(0.6, true), (0.6, false), (0.9, true), (1.0, false)];
        let found = Calibration::new(&answers, 2);
        near(found.bins[0].mean_confidence.unwrap(), 0.6);
        near(found.bins[1].accuracy.unwrap(), 0.5);
        near(found.ece.unwrap(), 0.5 * 0.1 + 0.5 * 0.45);
        let nothing = Calibration::new(&[], 10);
        assert_eq!((nothing.ece, nothing.bins[0].accuracy), (None, None));
        let sure = Calibration::new(&[(1.0, true), (1.0, true)], 10);
        near(sure.ece.unwrap(), 0.0);
        assert_eq!(sure.bins[0].mean_confidence, None);
    }

    #[test]
    fn separation_by_hand() {
        // Of the six comparisons 3 > 1, 3 > 2, 2 > 1 win, 2 = 2 draws, and 0 < 1, 0 < 2 lose.
        assert_eq!(auc(&[3.0, 2.0, 0.0], &[1.0, 2.0]), Some(3.5 / 6.0));
        assert_eq!(auc(&[], &[1.0]), None);
        assert_eq!(auc(&[1.0], &[0.0]), Some(1.0));
    }

    #[test]
    fn quantiles_are_values() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(quantile(&values, 0.05), Some(5.0));
        assert_eq!(quantile(&values, 1.0), Some(100.0));
        assert_eq!(quantile(&values, 0.0), Some(1.0));
        assert_eq!(mean(&[1.0, 2.0]), Some(1.5));
        assert_eq!((quantile(&[], 0.5), mean(&[])), (None, None));
    }
}
