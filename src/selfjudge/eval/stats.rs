//! Estimates with intervals: the cluster bootstrap.
//!
//! Samples of one instruction are not independent of each other, so instructions are resampled, each with
//! all its measurements.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// A mean with its 95 % percentile interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    pub mean: f64,
    pub low: f64,
    pub high: f64,
    /// Number of observations in all clusters together.
    pub count: usize,
}

/// The measurements on one instruction.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Cluster {
    pub sum: f64,
    pub count: usize,
}

impl Cluster {
    pub fn push(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }
}

const RESAMPLES: usize = 1000;

/// Returns the mean over all observations of all clusters, with an interval from drawing clusters with replacement.
///
/// `None` if there are no observations.
pub fn bootstrap(clusters: &[Cluster]) -> Option<Estimate> {
    let mean = |clusters: &mut dyn Iterator<Item = Cluster>| {
        let (sum, count) = clusters.fold((0.0, 0), |(sum, count), cluster| {
            (sum + cluster.sum, count + cluster.count)
        });
        (count > 0).then(|| sum / count as f64)
    };
    // Clusters without observations contribute neither to the mean nor to its variation.
    let clusters: Vec<Cluster> = clusters.iter().copied().filter(|c| c.count > 0).collect();
    let whole = mean(&mut clusters.iter().copied())?;
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            mean(&mut (0..clusters.len()).map(|_| {
                let at = (u64::from(rng.next_u32()) * clusters.len() as u64) >> 32;
                clusters[at as usize]
            }))
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let quantile = |q: f64| means[((means.len() - 1) as f64 * q).round() as usize];
    Some(Estimate {
        mean: whole,
        low: quantile(0.025),
        high: quantile(0.975),
        count: clusters.iter().map(|c| c.count).sum(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_has_the_width_theory_gives() {
        let clusters: Vec<Cluster> = (0..400)
            .map(|i| Cluster {
                sum: f64::from(i % 2),
                count: 1,
            })
            .collect();
        let estimate = bootstrap(&clusters).unwrap();
        assert!((estimate.mean - 0.5).abs() < 1e-12);
        // 1.96 sqrt(0.25 / 400) = 0.049
        assert!((estimate.high - estimate.low - 0.098).abs() < 0.02);
    }

    #[test]
    fn observations_of_one_cluster_count_as_one_draw() {
        let narrow: Vec<Cluster> = (0..100)
            .map(|i| Cluster {
                sum: 50.0 * f64::from(i % 2),
                count: 50,
            })
            .collect();
        let estimate = bootstrap(&narrow).unwrap();
        assert_eq!(estimate.count, 5000);
        assert!(estimate.high - estimate.low > 0.15);
    }

    #[test]
    fn nothing_observed_is_no_estimate() {
        assert!(bootstrap(&[]).is_none());
        assert!(bootstrap(&[Cluster::default()]).is_none());
    }
}
