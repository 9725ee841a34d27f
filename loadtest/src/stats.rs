//! Percentiles of a sample.

use serde::Serialize;

/// Percentiles of a sample, in the sample's unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
}

impl Spread {
    /// Computes the percentiles. An empty sample has none.
    pub fn of(mut sample: Vec<f64>) -> Option<Self> {
        if sample.is_empty() {
            return None;
        }
        sample.sort_unstable_by(f64::total_cmp);
        Some(Self {
            p50: percentile(&sample, 0.5),
            p90: percentile(&sample, 0.9),
            p99: percentile(&sample, 0.99),
        })
    }
}

/// Returns the value below which a share `q` of the sorted sample lies, by linear interpolation between two neighbours.
fn percentile(sorted: &[f64], q: f64) -> f64 {
    let at = (sorted.len() - 1) as f64 * q;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_between_neighbours() {
        let spread = Spread::of((0..=100).rev().map(f64::from).collect()).unwrap();
        assert_eq!((spread.p50, spread.p90, spread.p99), (50.0, 90.0, 99.0));
        let spread = Spread::of(vec![3.0, 1.0]).unwrap();
        assert!((spread.p50 - 2.0).abs() < 1e-12 && (spread.p99 - 2.98).abs() < 1e-12);
        let alone = Spread::of(vec![7.0]).unwrap();
        assert_eq!((alone.p50, alone.p99), (7.0, 7.0));
        assert_eq!(Spread::of(Vec::new()), None);
    }
}
