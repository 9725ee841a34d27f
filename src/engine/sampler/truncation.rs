//! Truncation of the distribution: temperature, top-k, top-p and min-p, in the order of transformers' logits warpers.

use crate::SamplingParams;
use kernels::logits::weights;

/// A token and its weight: a probability up to a common factor.
pub type Candidate = (u32, f64);

/// Returns whether no truncation is set.
pub fn keeps_all(params: &SamplingParams) -> bool {
    params.top_k == 0 && params.top_p >= 1.0 && params.min_p <= 0.0
}

/// Returns the tokens that can be drawn at a temperature above 0, with their weights. The order is by falling
/// probability if any token was removed, by id otherwise.
pub fn candidates(params: &SamplingParams, logits: &[f32]) -> Vec<Candidate> {
    let least = kth_largest(logits, params.top_k).unwrap_or(f32::NEG_INFINITY);
    let weights = weights(logits, params.temperature);
    let mut kept: Vec<Candidate> = logits
        .iter()
        .zip(&weights)
        .enumerate()
        .filter(|&(_, (&logit, &weight))| logit >= least && weight > 0.0)
        .map(|(id, (_, &weight))| (id as u32, f64::from(weight)))
        .collect();
    if params.top_p < 1.0 {
        keep_top_p(&mut kept, f64::from(params.top_p));
    }
    if params.min_p > 0.0 {
        // The most probable token weighs 1.
        let least = f64::from(params.min_p);
        kept.retain(|&(_, weight)| weight >= least);
    }
    kept
}

/// Returns the k-th largest logit, or `None` if top-k removes no token.
fn kth_largest(logits: &[f32], k: usize) -> Option<f32> {
    if k == 0 || k >= logits.len() {
        return None;
    }
    let mut logits = logits.to_vec();
    let (_, kth, _) = logits.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    Some(*kth)
}

/// The number of candidates sorted first: sorting a whole vocabulary for a nucleus of a few tokens would be most of the cost.
const FIRST_LOOK: usize = 256;

/// Keeps the most probable candidates until they hold `p` of the total weight.
fn keep_top_p(candidates: &mut Vec<Candidate>, p: f64) {
    let total: f64 = candidates.iter().map(|c| c.1).sum();
    // Ties are broken by the lower id, so that the result does not depend on the sort.
    let order = |a: &Candidate, b: &Candidate| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let mut look = FIRST_LOOK;
    loop {
        if look < candidates.len() {
            candidates.select_nth_unstable_by(look, order);
        } else {
            look = candidates.len();
        }
        candidates[..look].sort_unstable_by(order);
        let mut before = 0.0;
        for (index, &(_, weight)) in candidates[..look].iter().enumerate() {
            // A candidate is removed if those before it already hold the mass `p`.
            if before >= p * total {
                return candidates.truncate(index.max(1));
            }
            before += weight;
        }
        if look == candidates.len() {
            return;
        }
        look *= 8;
    }
}
