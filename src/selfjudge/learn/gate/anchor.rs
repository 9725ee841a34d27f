//! The anchor set: uncontroversial preference pairs, fixed for the life of a server.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use futures::stream::{self, StreamExt, TryStreamExt};

use crate::learn::LearnError;
use crate::learn::pairs::PinnedJudge;
use crate::learn::rollout::{WINDOW, mean_logprob};
use crate::service::Service;
use judge::{Format, Polarity, PreferencePair, RankedDraw, WeightedPrinciple, read_pairs};
use model::WeightsLease;
use text::{Message, Role};
use train::digest::FileDigest;

/// The tokens of a prompt and of an answer.
pub type Sequence = (Vec<u32>, Vec<u32>);

/// Pairs on which accuracy must not be lost, as tokens and as text.
///
/// A pair's flags set its use: `sft` means that its chosen answer should be the more probable one; `judge` means that the judge should
/// prefer it. A pair that is only judged may follow a principle that the policy is never asked to follow.
#[derive(Debug, Clone)]
pub struct AnchorSet {
    /// Chosen and rejected answer after the prompt, for the pairs with `sft`.
    vouched: Vec<[Sequence; 2]>,
    judged: Vec<PreferencePair>,
    /// SHA-256 of the file, so that scores of an edited set are not mixed with those of the set before.
    digest: String,
}

impl AnchorSet {
    /// Reads and encodes the set.
    ///
    /// # Errors
    /// Fails if the file cannot be read or holds no pairs, or if the template rejects a text.
    pub async fn read(path: &Path, service: &Service) -> Result<Self, LearnError> {
        let read = read_pairs(path, Format::Auto, RankedDraw::default());
        let read = read.map_err(|error| LearnError::Config(error.to_string()))?;
        let mut set = Self {
            vouched: Vec::new(),
            judged: Vec::new(),
            digest: FileDigest::of(path)?.sha256,
        };
        for pair in read {
            if pair.sft {
                let prompt = service.encode_chat(&pair.messages).await?;
                let chosen = answer_ids(service, &pair.messages, &prompt, &pair.chosen).await?;
                let rejected = answer_ids(service, &pair.messages, &prompt, &pair.rejected).await?;
                let sequences = [(prompt.clone(), chosen), (prompt, rejected)];
                set.vouched.push(sequences);
            }
            if pair.judge {
                set.judged.push(pair);
            }
        }
        if set.vouched.is_empty() && set.judged.is_empty() {
            let message = format!("{} holds no pairs", path.display());
            return Err(LearnError::Config(message));
        }
        Ok(set)
    }

    /// Returns the digest of the set's contents.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Returns the chosen and the rejected sequence of each `sft` pair, one after the other, as input for a scorer.
    pub fn sequences(&self) -> Vec<Sequence> {
        self.vouched.iter().flatten().cloned().collect()
    }

    /// Returns the share of the `sft` pairs whose chosen answer has the higher mean log-probability per token, from the token
    /// log-probabilities of [`Self::sequences`]. None if there are no `sft` pairs.
    pub fn preferred(&self, logprobs: &[Vec<f32>]) -> Option<f64> {
        let (pairs, _) = logprobs.as_chunks::<2>();
        let right = pairs
            .iter()
            .filter(|[chosen, rejected]| mean_logprob(chosen) > mean_logprob(rejected));
        share(right.count() as f64, self.vouched.len())
    }

    /// Returns the share of the `judge` pairs on which `weights` prefer the chosen answer, averaged over both orders; a tie counts half.
    /// None if there are no `judge` pairs.
    ///
    /// # Errors
    /// Errors from the service.
    pub async fn judged(
        &self,
        service: &Service,
        weights: &WeightsLease,
    ) -> Result<Option<f64>, LearnError> {
        let scores: Vec<f64> = stream::iter(&self.judged)
            .map(|pair| score(pair, service, weights))
            .buffered(WINDOW)
            .try_collect()
            .await?;
        Ok(share(scores.iter().sum(), self.judged.len()))
    }
}

/// The accuracies of a generation on an anchor set, as policy ([`AnchorSet::preferred`]) and as judge ([`AnchorSet::judged`]).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AnchorScores {
    pub preferred: Option<f64>,
    pub judged: Option<f64>,
}

/// Cached scores of the generations measured last: the live policy of the next stage is among them, and always generation 0. The cache is
/// valid because a generation's weights never change and the key has the set's digest; measuring takes as long as several updates.
#[derive(Debug, Clone, Default)]
pub struct LastScores(Arc<Mutex<HashMap<(String, String), AnchorScores>>>);

impl LastScores {
    /// Returns the scores of a generation on the set with this digest, if they are cached.
    pub fn get(&self, set: &str, generation: &str) -> Option<AnchorScores> {
        let scores = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (set.to_owned(), generation.to_owned());
        scores.get(&key).copied()
    }

    /// Replaces all cached scores by these.
    pub fn replace(&self, set: &str, measured: &[(&str, AnchorScores)]) {
        let measured = measured.iter();
        let measured = measured.map(|(id, scores)| ((set.to_owned(), (*id).to_owned()), *scores));
        // The map is replaced as a whole, so a panic elsewhere leaves it usable.
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = measured.collect();
    }
}

fn share(right: f64, of: usize) -> Option<f64> {
    (of > 0).then(|| right / of as f64)
}

/// Returns 1 if `weights` prefer the chosen answer under the pair's own principles, and 0.5 for a tie.
async fn score(
    pair: &PreferencePair,
    service: &Service,
    weights: &WeightsLease,
) -> Result<f64, LearnError> {
    let table = service.judge().table();
    let named = |name: &String| WeightedPrinciple {
        name: name.clone(),
        text: table.text(name).to_owned(),
        polarity: Polarity::Encourage,
        weight: 1.0,
        listed: true,
    };
    let judge = PinnedJudge {
        weights: weights.clone(),
        principles: pair.principles.iter().map(named).collect(),
    };
    let task = judge.task(pair.messages.clone());
    let judged = service
        .judge()
        .judge_pair(&task, &pair.chosen, &pair.rejected);
    Ok(match judged.await?.result.winner {
        Some(0) => 1.0,
        Some(_) => 0.0,
        None => 0.5,
    })
}

/// Returns the answer's tokens as rendered in a conversation, including the end token; the tokens of the text alone if the template
/// renders a finished conversation differently from one that is to be continued.
pub async fn answer_ids(
    service: &Service,
    messages: &[Message],
    prompt: &[u32],
    answer: &str,
) -> Result<Vec<u32>, LearnError> {
    let mut whole = messages.to_vec();
    whole.push(Message::new(Role::Assistant, answer));
    let ids = service.encode_conversation(&whole).await?;
    match ids.strip_prefix(prompt) {
        Some(rest) if !rest.is_empty() => Ok(rest.to_vec()),
        _ => Ok(service.encode_text(answer.to_owned()).await?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_those_of_a_set_by_its_contents() {
        let known = LastScores::default();
        let scores = |judged| AnchorScores {
            preferred: None,
            judged: Some(judged),
        };
        known.replace("set", &[("base", scores(0.9)), ("first", scores(0.8))]);
        assert_eq!(known.get("set", "base"), Some(scores(0.9)));
        assert_eq!(known.get("set edited", "base"), None);
        known.replace("set", &[("first", scores(0.8)), ("second", scores(0.7))]);
        assert_eq!(known.get("set", "base"), None);
        assert_eq!(known.get("set", "second"), Some(scores(0.7)));
    }

    #[test]
    fn the_more_probable_answer_by_the_token_is_preferred() {
        let none = AnchorSet {
            vouched: Vec::new(),
            judged: Vec::new(),
            digest: String::new(),
        };
        assert_eq!(none.preferred(&[]), None, "nothing is vouched for");
        let pair: [Sequence; 2] = [(vec![1], vec![2, 3]), (vec![1], vec![4])];
        let set = AnchorSet {
            vouched: vec![pair.clone(), pair],
            ..none
        };
        assert_eq!(set.sequences().len(), 4);
        // The first chosen answer is less probable as a whole, but more probable per token.
        let logprobs = [vec![-1.0, -1.0], vec![-1.5], vec![-2.0, -2.0], vec![-1.5]];
        assert_eq!(set.preferred(&logprobs), Some(0.5));
    }
}
