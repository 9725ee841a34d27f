//! The anchor set: pairs everybody agrees on, fixed for the life of a server.

use std::path::Path;

use futures::stream::{self, StreamExt, TryStreamExt};

use crate::learn::LearnError;
use crate::learn::judging::PinnedJudge;
use crate::learn::rollout::WINDOW;
use crate::model::WeightsLease;
use crate::preference::{Format, Message, Polarity, RankedDraw, Role, read_pairs};
use crate::service::{Service, WeightedPrinciple};

/// A prompt's tokens and an answer's.
pub type Sequence = (Vec<u32>, Vec<u32>);

/// Pairs as text and as tokens.
#[derive(Debug, Clone)]
pub struct AnchorSet {
    pairs: Vec<AnchorPair>,
}

#[derive(Debug, Clone)]
struct AnchorPair {
    messages: Vec<Message>,
    chosen: String,
    rejected: String,
    principles: Vec<String>,
    /// Chosen and rejected after the prompt.
    sequences: [Sequence; 2],
}

impl AnchorSet {
    /// Reads and encodes the set.
    ///
    /// # Errors
    /// A file that cannot be read or holds no pairs; text the template objects to.
    pub async fn read(path: &Path, service: &Service) -> Result<Self, LearnError> {
        let read = read_pairs(path, Format::Auto, RankedDraw::default());
        let read = read.map_err(|error| LearnError::Config(error.to_string()))?;
        let mut pairs = Vec::with_capacity(read.len());
        for pair in read {
            let prompt = service.encode_chat(&pair.messages).await?;
            let mut sequences = Vec::with_capacity(2);
            for answer in [&pair.chosen, &pair.rejected] {
                let ids = answer_ids(service, &pair.messages, &prompt, answer).await?;
                sequences.push((prompt.clone(), ids));
            }
            let [chosen, rejected] = <[Sequence; 2]>::try_from(sequences)
                .expect("a pair has two answers; this is a bug");
            pairs.push(AnchorPair {
                messages: pair.messages,
                chosen: pair.chosen,
                rejected: pair.rejected,
                principles: pair.principles,
                sequences: [chosen, rejected],
            });
        }
        if pairs.is_empty() {
            let message = format!("{} holds no pairs", path.display());
            return Err(LearnError::Config(message));
        }
        Ok(Self { pairs })
    }

    /// Chosen and rejected of each pair, one after the other: what a scorer is asked.
    pub fn sequences(&self) -> Vec<Sequence> {
        let pairs = self.pairs.iter();
        pairs.flat_map(|pair| pair.sequences.clone()).collect()
    }

    /// Share of pairs whose chosen answer is the more probable by the token, from the token log-probabilities of
    /// [`Self::sequences`].
    pub fn preferred(&self, logprobs: &[Vec<f32>]) -> f64 {
        let mean =
            |logprobs: &Vec<f32>| logprobs.iter().sum::<f32>() / logprobs.len().max(1) as f32;
        let (pairs, _) = logprobs.as_chunks::<2>();
        let right = pairs
            .iter()
            .filter(|[chosen, rejected]| mean(chosen) > mean(rejected));
        right.count() as f64 / self.pairs.len() as f64
    }

    /// Share of pairs of which `judge` prefers the chosen answer, both orders averaged; a tie is half right.
    ///
    /// # Errors
    /// The service's.
    pub async fn judged(
        &self,
        service: &Service,
        weights: &WeightsLease,
    ) -> Result<f64, LearnError> {
        let scores: Vec<f64> = stream::iter(&self.pairs)
            .map(|pair| pair.judged(service, weights))
            .buffered(WINDOW)
            .try_collect()
            .await?;
        Ok(scores.iter().sum::<f64>() / self.pairs.len() as f64)
    }
}

impl AnchorPair {
    /// 1 where `weights` prefer the chosen answer under the pair's own principles, 0.5 where they cannot tell.
    async fn judged(&self, service: &Service, weights: &WeightsLease) -> Result<f64, LearnError> {
        let table = service.judge().table();
        let named = |name: &String| WeightedPrinciple {
            name: name.clone(),
            text: table.text(name).to_owned(),
            polarity: Polarity::Encourage,
            weight: 1.0,
        };
        let judge = PinnedJudge {
            weights: weights.clone(),
            principles: self.principles.iter().map(named).collect(),
        };
        let task = judge.task(self.messages.clone());
        let judged = service.judge_pair(&task, &self.chosen, &self.rejected);
        Ok(match judged.await?.result.winner {
            Some(0) => 1.0,
            Some(_) => 0.0,
            None => 0.5,
        })
    }
}

/// The answer as it stands in a conversation, end token and all; the tokens of the text alone, where the template writes a finished
/// conversation in another way than one that is to be continued.
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
