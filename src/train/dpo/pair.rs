//! A preference pair in tokens, and the checks for pairs that cannot be trained on.

use super::pack::Group;
use model::DecoderSpec;

/// Two completions of one prompt, as token ids. They are never tokenised again and nothing is added: a truncated completion has no
/// end-of-sequence token and must not get one.
#[derive(Debug, Clone, PartialEq)]
pub struct PairExample {
    pub prompt: Vec<u32>,
    pub chosen: Vec<u32>,
    pub rejected: Vec<u32>,
    /// The probability that `chosen` is the better one, in [0, 1].
    pub label: f32,
    /// The pair's weight in its batch; positive.
    pub weight: f32,
}

/// The reason why a pair cannot be trained on.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PairError {
    #[error("the {0} is empty")]
    Empty(&'static str),
    #[error("the two completions are equal")]
    Equal,
    #[error("{tokens} tokens do not fit the model's context of {max}")]
    TooLong { tokens: usize, max: usize },
    #[error("token {id} is outside the vocabulary of {vocab}")]
    Token { id: u32, vocab: usize },
    #[error("the label must be a probability, not {0}")]
    Label(f32),
    #[error("the weight must be positive and finite, not {0}")]
    Weight(f32),
}

impl PairExample {
    /// Creates a pair with a hard label and weight 1.
    pub fn new(prompt: Vec<u32>, chosen: Vec<u32>, rejected: Vec<u32>) -> Self {
        Self {
            prompt,
            chosen,
            rejected,
            label: 1.0,
            weight: 1.0,
        }
    }

    pub(super) fn group(&self) -> Group<'_, 2> {
        Group {
            prompt: &self.prompt,
            completions: [&self.chosen, &self.rejected],
        }
    }

    /// Checks whether a model of this shape can be trained on the pair.
    ///
    /// # Errors
    /// The first problem found.
    pub fn check(&self, spec: &DecoderSpec) -> Result<(), PairError> {
        check_tokens(spec, &self.prompt, &self.chosen, "chosen completion")?;
        check_tokens(spec, &self.prompt, &self.rejected, "rejected completion")?;
        if self.chosen == self.rejected {
            return Err(PairError::Equal);
        }
        if !(0.0..=1.0).contains(&self.label) {
            return Err(PairError::Label(self.label));
        }
        if !(self.weight.is_finite() && self.weight > 0.0) {
            return Err(PairError::Weight(self.weight));
        }
        Ok(())
    }
}

/// Checks whether a completion of a prompt can be scored.
pub(super) fn check_tokens(
    spec: &DecoderSpec,
    prompt: &[u32],
    completion: &[u32],
    what: &'static str,
) -> Result<(), PairError> {
    if prompt.is_empty() {
        return Err(PairError::Empty("prompt"));
    }
    if completion.is_empty() {
        return Err(PairError::Empty(what));
    }
    let (tokens, max) = (prompt.len() + completion.len(), spec.max_context());
    if tokens > max {
        return Err(PairError::TooLong { tokens, max });
    }
    let vocab = spec.vocab_size;
    match prompt
        .iter()
        .chain(completion)
        .find(|&&id| id as usize >= vocab)
    {
        Some(&id) => Err(PairError::Token { id, vocab }),
        None => Ok(()),
    }
}
