//! A program whose instructions are counted, by valgrind: `.ci/full inlining` compares those of its builds.
//!
//! `instructions PROMPT TOKENS` computes a prompt of so many tokens with the pocket model, then decodes so many, on one thread. The
//! difference between two calls is the work of a prefill or of decoding steps without the program's start.

use std::path::Path;

use engine::{InlineEngine, SamplingParams};
use model::{LanguageModel, LoadOptions, WeightStore};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    kernels::device::init_threads(Some(1))?;
    let mut counts = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"))
        .map(|argument| argument.parse::<usize>());
    let (Some(prompt), Some(tokens)) = (counts.next().transpose()?, counts.next().transpose()?)
    else {
        return Err("usage: instructions PROMPT TOKENS".into());
    };
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket");
    let model = LanguageModel::load(&dir, &LoadOptions::default())?;
    let vocabulary = model.decoder().spec().vocab_size as u32;
    let mut engine = InlineEngine::new(WeightStore::new(model.decoder().clone()))?;
    let prompt = (0..prompt as u32).map(|at| at * 31 % vocabulary).collect();
    let params = SamplingParams {
        seed: Some(1),
        ..SamplingParams::new(tokens, Vec::new())
    };
    let completed = engine.complete(&[prompt], &params)?;
    assert_eq!(completed[0].ids.len(), tokens, "the model ended early");
    Ok(())
}
