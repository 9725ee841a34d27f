//! Repetition, presence and frequency penalties on tokens that have occurred.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::SamplingParams;

/// The tokens that a request's penalties count.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Shared by the copies that look ahead of drafts.
    prompt: Arc<HashSet<u32>>,
    output: HashMap<u32, u32>,
}

impl Seen {
    /// Returns `None` if no penalty is set.
    pub fn new(params: &SamplingParams, prompt: &[u32]) -> Option<Self> {
        let repeats = params.repetition_penalty != 1.0;
        let counts = params.presence_penalty != 0.0 || params.frequency_penalty != 0.0;
        (repeats || counts).then(|| Self {
            prompt: Arc::new(prompt.iter().copied().filter(|_| repeats).collect()),
            output: HashMap::new(),
        })
    }

    pub fn push(&mut self, token: u32) {
        *self.output.entry(token).or_default() += 1;
    }

    /// Applies the repetition penalty as transformers does, then presence and frequency as OpenAI defines them (in vLLM's order).
    pub fn penalise(&self, params: &SamplingParams, logits: &mut [f32]) {
        if params.repetition_penalty != 1.0 {
            let unprompted = self.output.keys().filter(|id| !self.prompt.contains(id));
            for &id in self.prompt.iter().chain(unprompted) {
                let logit = &mut logits[id as usize];
                if *logit < 0.0 {
                    *logit *= params.repetition_penalty;
                } else {
                    *logit /= params.repetition_penalty;
                }
            }
        }
        for (&id, &count) in &self.output {
            logits[id as usize] -=
                params.presence_penalty + params.frequency_penalty * count as f32;
        }
    }
}
