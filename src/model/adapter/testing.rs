//! Adapters for tests, large enough to change answers.

use candle_core::{Device, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{AdapterWeights, LoraConfig, LoraPair};
use crate::DecoderSpec;

/// Returns an adapter with both factors random, of rank `r`, on the linear layers with the given names.
pub fn random(
    spec: &DecoderSpec,
    r: usize,
    modules: &[&str],
    seed: u64,
) -> (LoraConfig, AdapterWeights) {
    let config = LoraConfig {
        r,
        target_modules: modules.iter().map(|name| (*name).to_owned()).collect(),
        ..LoraConfig::default()
    };
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut factor = |rows: usize, columns: usize, bound: f32| {
        let values: Vec<f32> = (0..rows * columns)
            .map(|_| rng.random_range(-bound..bound))
            .collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).expect("a matrix")
    };
    let mut weights = AdapterWeights::new();
    for (name, _) in spec.parameters() {
        let path = name.trim_end_matches(".weight");
        if let Some([out, input]) = spec.linear_shape(path).filter(|_| config.targets(path)) {
            let pair = LoraPair {
                a: factor(r, input, 1.0 / (input as f32).sqrt()),
                b: factor(out, r, 0.05),
            };
            weights.insert(path.to_owned(), pair);
        }
    }
    assert!(!weights.is_empty(), "{modules:?} name no layer");
    (config, weights)
}
