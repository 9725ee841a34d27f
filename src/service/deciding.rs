//! Decisions: questions about an input with a few options each, answered by the probabilities of the options' letters.

use std::sync::Arc;

use super::aside::aside_until;
use super::prompts::check_bytes;
use super::reading::{Account, Judged, LabelPrompt, Turn};
use super::{Service, ServiceError};
use crate::engine::SubmitError;

/// A question, and what may be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    pub text: String,
    /// Two or more; no more than [`Service::max_options`].
    pub options: Vec<String>,
}

/// What the model makes of a question.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// Of each option; they sum to one.
    pub probabilities: Vec<f32>,
    /// What the letters had of all probability: low where the model does not answer with one.
    pub label_mass: f32,
}

impl Service {
    /// Options that a question may have.
    ///
    /// # Errors
    /// If the model cannot be asked at all, and why.
    pub fn max_options(&self) -> Result<usize, ServiceError> {
        self.options.check()?;
        Ok(self.options.max_options())
    }

    /// Answers questions about `input`. Each is read with its options in the given order and in the reverse, and averaged, so
    /// that a liking for a letter counts for every option. The judge's weights are asked, which do not change from day to day.
    ///
    /// # Errors
    /// What makes a prompt unservable, or a full queue. What is too long is found out with the first question that it is too long
    /// with, before the others are encoded.
    pub async fn decide(
        &self,
        input: String,
        questions: Vec<Question>,
        turn: Turn,
    ) -> Result<Judged<Vec<Decision>>, ServiceError> {
        let reader = Arc::clone(&self.options);
        let max_context = self.engine.capacity().max_context;
        let most = self.tokenizer.most_bytes(max_context);
        for question in &questions {
            let options = question.options.iter().map(String::len);
            let bytes = input.len() + question.text.len() + options.sum::<usize>();
            check_bytes(bytes, most)?;
        }
        let prompts = aside_until(turn.deadline, move |watch| {
            let mut prompts = Vec::with_capacity(2 * questions.len());
            for question in &questions {
                let given: Vec<&str> = question.options.iter().map(String::as_str).collect();
                let turned: Vec<&str> = given.iter().rev().copied().collect();
                for options in [given, turned] {
                    watch.check()?;
                    let (prompt, labels) =
                        reader.encode(&input, &question.text, &options, max_context)?;
                    let tokens = prompt.len();
                    if tokens >= max_context {
                        return Err(SubmitError::PromptTooLong {
                            tokens,
                            max_context,
                        }
                        .into());
                    }
                    prompts.push(LabelPrompt {
                        prompt,
                        labels,
                        reusable: None,
                    });
                }
            }
            Ok(prompts)
        })
        .await?;
        let mut account = Account::new(self.judging_weights(None));
        let reads = self.read_labels(turn, prompts, &mut account).await?;
        let decisions = reads
            .chunks_exact(2)
            .map(|both| average(&both[0], &both[1]));
        Ok(account.close(decisions.collect()))
    }
}

/// Both reads of a question, the second with its options turned around.
fn average(given: &[f32], turned: &[f32]) -> Decision {
    let mass = |logprobs: &[f32]| logprobs.iter().map(|p| p.exp()).sum::<f32>();
    let given_shares = shares(given);
    let turned_shares = shares(turned);
    let both = given_shares.iter().zip(turned_shares.iter().rev());
    Decision {
        probabilities: both.map(|(a, b)| (a + b) / 2.0).collect(),
        label_mass: (mass(given) + mass(turned)) / 2.0,
    }
}

/// Log-probabilities as shares of their sum, however small that is.
fn shares(logprobs: &[f32]) -> Vec<f32> {
    let most = logprobs.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if most == f32::NEG_INFINITY {
        // No letter has any probability: none is more likely than another.
        return vec![1.0 / logprobs.len() as f32; logprobs.len()];
    }
    let weights: Vec<f32> = logprobs.iter().map(|p| (p - most).exp()).collect();
    let sum: f32 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_liking_for_a_letter_cancels_out() {
        // Always the first letter, whatever it stands for.
        let blind = average(&[-0.1, -3.0, -4.0], &[-0.1, -3.0, -4.0]);
        assert!((blind.probabilities[0] - blind.probabilities[2]).abs() < 1e-6);
        // Always the last option: A once, C once.
        let sure = average(&[-9.0, -9.0, -0.1], &[-0.1, -9.0, -9.0]);
        assert!(sure.probabilities[2] > 0.99);
        assert!((sure.probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        let tiny = average(&[-200.0, -210.0], &[-210.0, -200.0]);
        assert!(tiny.probabilities[0] > 0.99 && tiny.label_mass == 0.0);
        let none = average(&[f32::NEG_INFINITY; 2], &[f32::NEG_INFINITY; 2]);
        assert_eq!((none.probabilities, none.label_mass), (vec![0.5; 2], 0.0));
    }
}
