//! Log-probabilities of the model's own distribution, before penalties, temperature and truncation.

/// The requested log-probabilities at one token's position.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TokenLogprobs {
    /// Log-probability of the token itself.
    pub token: f32,
    /// The most probable tokens, in descending order; equally probable ones by id.
    pub top: Vec<(u32, f32)>,
    /// Log-probabilities of the requested ids, in their order.
    pub chosen: Vec<f32>,
}

/// Log-probabilities of a prompt token, given the tokens before it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PromptLogprobs {
    pub logprobs: TokenLogprobs,
    /// 1 for the most probable token; equally probable tokens have equal ranks.
    pub rank: usize,
}

impl PromptLogprobs {
    /// Takes `logits` as the model gave them for the token's position.
    pub fn new(logits: &[f32], token: u32, top: usize) -> Self {
        let own = logits[token as usize];
        Self {
            logprobs: TokenLogprobs::new(logits, token, top, &[]),
            rank: 1 + logits.iter().filter(|&&logit| logit > own).count(),
        }
    }
}

/// Returns the largest logit `max` and log Σ exp(logit − max), in f64 and in a fixed order, so that the result depends on the row alone.
fn normaliser(logits: &[f32]) -> (f32, f64) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&z| f64::from(z - max).exp()).sum();
    (max, sum.ln())
}

impl TokenLogprobs {
    /// Takes `logits` as the model gave them.
    pub fn new(logits: &[f32], token: u32, top: usize, chosen: &[u32]) -> Self {
        let (max, log_sum) = normaliser(logits);
        let logprob = |id: u32| (f64::from(logits[id as usize] - max) - log_sum) as f32;
        Self {
            token: logprob(token),
            top: most_probable(logits, top)
                .into_iter()
                .map(|id| (id, logprob(id)))
                .collect(),
            chosen: chosen.iter().map(|&id| logprob(id)).collect(),
        }
    }
}

fn most_probable(logits: &[f32], n: usize) -> Vec<u32> {
    if n == 0 {
        return Vec::new();
    }
    let order = |a: &u32, b: &u32| {
        let (x, y) = (logits[*a as usize], logits[*b as usize]);
        y.total_cmp(&x).then(a.cmp(b))
    };
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    if n < ids.len() {
        ids.select_nth_unstable_by(n, order);
        ids.truncate(n);
    }
    ids.sort_unstable_by(order);
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_those_of_the_softmax() {
        let logits = [1.0f32, 2.0, -1.0, 2.0];
        let sum: f64 = logits.iter().map(|&z| f64::from(z).exp()).sum();
        let exact = |id: usize| (f64::from(logits[id]).exp() / sum).ln() as f32;
        let got = TokenLogprobs::new(&logits, 2, 3, &[0, 3]);
        assert_eq!(got.token, exact(2));
        assert_eq!(got.top, [(1, exact(1)), (3, exact(3)), (0, exact(0))]);
        assert_eq!(got.chosen, [exact(0), exact(3)]);
        assert_eq!(TokenLogprobs::new(&logits, 0, 9, &[]).top.len(), 4);
    }

    #[test]
    fn huge_logits_do_not_overflow() {
        let got = TokenLogprobs::new(&[1e30, -1e30, 1e30], 0, 0, &[1]);
        assert!((got.token - 0.5f32.ln()).abs() < 1e-6);
        assert_eq!(got.chosen, [-2e30]);
    }
}
