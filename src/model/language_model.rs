//! A loaded model with its tokenizer and chat template: what generates and what is read as a judge.

use std::path::Path;

use super::error::ModelError;

/// How [`LanguageModel::sample`] draws.
#[derive(Debug, Clone)]
pub struct SampleParams {
    /// 0 is greedy.
    pub temperature: f32,
    pub max_new_tokens: usize,
    /// Sequence `i` of a call draws from stream `i` of this seed.
    pub seed: u64,
    /// Generation ends after any of these; the stop id is part of the completion.
    pub stop_ids: Vec<u32>,
}

/// What one prompt was continued with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    pub ids: Vec<u32>,
    /// Whether a stop id ended it, rather than the token cap.
    pub finished: bool,
}

pub struct LanguageModel {}

impl LanguageModel {
    pub fn load(_dir: &Path) -> Result<Self, ModelError> {
        unimplemented!()
    }

    /// Continues every prompt once, all of them in batches.
    pub fn sample(
        &self,
        _prompts: &[Vec<u32>],
        _params: &SampleParams,
    ) -> Result<Vec<Completion>, ModelError> {
        unimplemented!()
    }

    /// Raw full-vocabulary log-probabilities (natural log) of two label tokens at the position after each prompt.
    pub fn label_logprobs(
        &self,
        _prompts: &[Vec<u32>],
        _labels: [u32; 2],
    ) -> Result<Vec<[f32; 2]>, ModelError> {
        unimplemented!()
    }
}
