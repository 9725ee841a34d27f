//! Active preference learning (arXiv 2402.08114): which pairs of an update are the most instructive.

/// Returns the indices of the `wanted` best pairs for active preference learning (arXiv 2402.08114, section 3): those on whose prompts
/// the policy is least certain and whose implicit reward margin is largest in absolute value.
///
/// `entropy` holds the mean negative log-probability per token of each pair's answers, `margins` the implicit reward margins. Both
/// are compared by rank, because nats per token and rewards have no common scale.
pub fn most_instructive(
    entropy: &[f64],
    margins: &[f64],
    weight: f64,
    wanted: usize,
) -> Vec<usize> {
    let ranks = |values: Vec<f64>| {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&a, &b| values[a].total_cmp(&values[b]).then(b.cmp(&a)));
        let mut ranks = vec![0.0; values.len()];
        for (rank, at) in order.into_iter().enumerate() {
            ranks[at] = rank as f64;
        }
        ranks
    };
    let by_entropy = ranks(entropy.to_vec());
    let by_margin = ranks(margins.iter().map(|margin| margin.abs()).collect());
    let score = |at: usize| weight * by_entropy[at] + (1.0 - weight) * by_margin[at];
    let mut order: Vec<usize> = (0..entropy.len()).collect();
    order.sort_by(|&a, &b| score(b).total_cmp(&score(a)).then(a.cmp(&b)));
    order.truncate(wanted);
    order.sort_unstable();
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selection_takes_the_least_sure_or_the_most_certain() {
        let entropy = [0.1, 0.9, 0.5, 0.2];
        let margins = [2.0, 0.0, -3.0, 0.1];
        assert_eq!(most_instructive(&entropy, &margins, 1.0, 2), [1, 2]);
        assert_eq!(most_instructive(&entropy, &margins, 0.0, 2), [0, 2]);
        assert_eq!(most_instructive(&entropy, &margins, 0.5, 1), [2]);
        // At step 0 every margin is 0, and the order is that of the prompts.
        assert_eq!(most_instructive(&entropy, &[0.0; 4], 0.0, 2), [0, 1]);
        assert_eq!(most_instructive(&[], &[], 0.5, 3), [0usize; 0]);
    }
}
