//! Decisions: multiple-choice questions about an input, answered by the probabilities of the options' letters.

use std::sync::Arc;

use super::Service;
use super::prompts::check_bytes;
use crate::call::{CallError, Turn, spawn_blocking_until};
use crate::judging::{Account, Judged, LabelPrompt};
use engine::SubmitError;

/// A question and its options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    pub text: String,
    /// Two or more, at most [`Service::max_options`].
    pub options: Vec<String>,
}

/// The model's answer to a question.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The probability of each option; they sum to 1.
    pub probabilities: Vec<f32>,
    /// The total probability of the letters before normalisation. It is low if the model does not answer with a letter.
    pub label_mass: f32,
}

impl Service {
    /// Returns the maximum number of options of a question.
    ///
    /// # Errors
    /// Errors with the reason if the model cannot answer such questions at all.
    pub fn max_options(&self) -> Result<usize, CallError> {
        self.options.check()?;
        Ok(self.options.max_options())
    }

    /// Answers questions about `input` with the judge's weights, which change less often than the policy's. Each question is read with
    /// its options in the given and in the reverse order, and the results are averaged, so that a bias towards a letter favours no
    /// option.
    ///
    /// # Errors
    /// Errors if a prompt cannot be served or the queue is full. A prompt that is too long is an error at once, before later questions
    /// are encoded.
    pub async fn decide(
        &self,
        input: String,
        questions: Vec<Question>,
        turn: Turn,
    ) -> Result<Judged<Vec<Decision>>, CallError> {
        let reader = Arc::clone(&self.options);
        let max_context = self.engine.capacity().max_context;
        let most = self.tokenizer.most_bytes(max_context);
        for question in &questions {
            let options = question.options.iter().map(String::len);
            let bytes = input.len() + question.text.len() + options.sum::<usize>();
            check_bytes(bytes, most)?;
        }
        let prompts = spawn_blocking_until(turn.deadline, move |watch| {
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
        let mut account = Account::new(self.judge.judging_weights(None));
        let reads = self.judge.read_labels(turn, prompts, &mut account).await?;
        let decisions = reads
            .chunks_exact(2)
            .map(|both| average(&both[0], &both[1]));
        Ok(account.close(decisions.collect()))
    }
}

/// Averages both reads of a question, of which the second has its options in reverse order.
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

/// Converts log-probabilities to shares of their sum, also if the sum underflows.
fn shares(logprobs: &[f32]) -> Vec<f32> {
    let most = logprobs.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if most == f32::NEG_INFINITY {
        // No letter has any probability: all options are equally likely.
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
        // Always the first letter, regardless of its option.
        let blind = average(&[-0.1, -3.0, -4.0], &[-0.1, -3.0, -4.0]);
        assert!((blind.probabilities[0] - blind.probabilities[2]).abs() < 1e-6);
        // Always the last option: letter C in one order, letter A in the other.
        let sure = average(&[-9.0, -9.0, -0.1], &[-0.1, -9.0, -9.0]);
        assert!(sure.probabilities[2] > 0.99);
        assert!((sure.probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        let tiny = average(&[-200.0, -210.0], &[-210.0, -200.0]);
        assert!(tiny.probabilities[0] > 0.99 && tiny.label_mass == 0.0);
        let none = average(&[f32::NEG_INFINITY; 2], &[f32::NEG_INFINITY; 2]);
        assert_eq!((none.probabilities, none.label_mass), (vec![0.5; 2], 0.0));
    }
}
