//! The subject of an evaluation: it answers conversations and compares answers.

use super::EvalError;
use engine::{InlineEngine, SamplingParams};
use judge::{Comparison, Judge, Verdict};
use text::Message;
use text::{ChatTemplate, RenderOptions, Tokenizer};

/// A policy that is its own judge.
pub trait Subject {
    /// Returns one answer to each conversation: greedy at temperature 0, otherwise sampled with `seed` and a separate random stream per
    /// conversation, numbered by its position.
    fn answer(
        &mut self,
        conversations: &[Vec<Message>],
        temperature: f32,
        seed: u64,
    ) -> Result<Vec<String>, EvalError>;

    /// Returns a verdict on each comparison, with both orders read.
    fn compare(&mut self, comparisons: &[Comparison]) -> Result<Vec<Verdict>, EvalError>;
}

/// A model as policy and judge, computed by the engine as the server computes it.
pub struct ModelSubject {
    pub engine: InlineEngine,
    pub tokenizer: Tokenizer,
    pub chat: ChatTemplate,
    pub judge: Judge,
    pub stop_ids: Vec<u32>,
    pub max_new_tokens: usize,
}

impl Subject for ModelSubject {
    fn answer(
        &mut self,
        conversations: &[Vec<Message>],
        temperature: f32,
        seed: u64,
    ) -> Result<Vec<String>, EvalError> {
        let options = RenderOptions::for_generation();
        let prompts = conversations
            .iter()
            .map(|messages| {
                let rendered = self.chat.render(messages, &options)?;
                Ok(self.tokenizer.encode_rendered(&rendered)?.ids)
            })
            .collect::<Result<Vec<_>, EvalError>>()?;
        let params = SamplingParams {
            temperature,
            seed: Some(seed),
            ..SamplingParams::new(self.max_new_tokens, self.stop_ids.clone())
        };
        let completions = self.engine.complete(&prompts, &params)?;
        completions
            .iter()
            .map(|completion| Ok(self.tokenizer.decode(&completion.ids, true)?))
            .collect()
    }

    fn compare(&mut self, comparisons: &[Comparison]) -> Result<Vec<Verdict>, EvalError> {
        let verdicts = self.judge.judge(comparisons, |prompts, labels| {
            self.engine.label_logprobs(prompts, labels)
        })?;
        Ok(verdicts)
    }
}
