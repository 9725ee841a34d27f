//! SSO (arXiv 2410.17131, version 2): the chosen and the rejected answer are sampled under opposed principles.
//!
//! The system message carries `good` for one answer and `bad` for the other; the policy trains on the pair without it. No judge is
//! required, but it may confirm the pair. Both answers must be probable under the bare prompt: an answer that the bare prompt makes
//! much less probable than the policy's own would teach a distinction that does not occur in use.
//!
//! The paper first trains a generator of such answers from the policy (its equation for `L_plus + L_minus`):
//! ```text
//! L_plus  = L(x+; y+ over y-) + gamma NLL(x+, y+)
//! L_minus = L(x-; y0 over y+) + gamma NLL(x-, y0)
//! ```
//! where `y0` is sampled from the bare prompt: as the winner under the bad principle it keeps the worse answers close to the policy.

use super::LearnError;
use super::config::OpposedPrinciples;
use super::pairs::{Dropped, JudgedPair};
use super::rollout::{Answer, Prompt};
use super::seed::another_seed;
use crate::service::Service;
use judge::PairVerdict;
use text::{Message, Role};
use train::dpo::PairExample;

/// One prompt with no principle, with the good one and with the bad one.
#[derive(Debug, Clone, PartialEq)]
pub struct OpposedPrompts {
    pub bare: Prompt,
    pub good: Prompt,
    pub bad: Prompt,
}

impl OpposedPrompts {
    /// Creates the prompts from a conversation; a plain-text prompt has no system message.
    ///
    /// # Errors
    /// Errors from the chat template.
    pub async fn new(
        service: &Service,
        bare: &Prompt,
        opposed: &OpposedPrinciples,
    ) -> Result<Self, LearnError> {
        // Three independent seeds: with a common seed the answers would start alike.
        let seed = |stream| another_seed(bare.seed, stream);
        Ok(Self {
            bare: bare.clone(),
            good: answer_under(service, bare, &opposed.good, seed(1)).await?,
            bad: answer_under(service, bare, &opposed.bad, seed(2)).await?,
        })
    }
}

/// Returns the conversation with the principle appended to its system message.
async fn answer_under(
    service: &Service,
    bare: &Prompt,
    principle: &str,
    seed: u64,
) -> Result<Prompt, LearnError> {
    let mut messages = bare.messages.clone();
    match messages.first_mut() {
        Some(first) if first.role == Role::System => {
            first.content = format!("{} {principle}", first.content);
        }
        _ => messages.insert(0, Message::new(Role::System, principle)),
    }
    Ok(Prompt {
        ids: service.encode_chat(&messages).await?,
        messages,
        seed,
    })
}

/// The answers to one prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct OpposedAnswers {
    pub plain: Answer,
    pub good: Answer,
    pub bad: Answer,
}

impl OpposedAnswers {
    /// Returns whether no prompt filled the context.
    pub fn all_answered(&self) -> bool {
        let answers = [&self.plain, &self.good, &self.bad];
        answers.iter().all(|answer| !answer.ids.is_empty())
    }

    /// Returns the generator's training examples: up to two, omitting any with a cut-off, empty or duplicate answer.
    pub fn generator_examples(&self, prompts: &OpposedPrompts) -> Vec<PairExample> {
        let whole = |answer: &Answer| answer.complete && !answer.ids.is_empty();
        let example = |prompt: &Prompt, chosen: &Answer, rejected: &Answer| {
            let usable = whole(chosen) && whole(rejected) && chosen.ids != rejected.ids;
            usable.then(|| {
                PairExample::new(prompt.ids.clone(), chosen.ids.clone(), rejected.ids.clone())
            })
        };
        let plus = example(&prompts.good, &self.good, &self.bad);
        let minus = example(&prompts.bad, &self.plain, &self.good);
        plus.into_iter().chain(minus).collect()
    }

    /// Returns the pair for training the policy, or why there is none.
    ///
    /// `bare` holds the mean log-probability per token of the good and of the bad answer under the bare prompt, to be compared with that
    /// of the policy's own answer; `confirmed` is the judge's verdict with the good answer as candidate 0, if the judge is used.
    pub fn pair(
        &self,
        max_distance: f32,
        bare: [f32; 2],
        confirmed: Option<PairVerdict>,
    ) -> Result<JudgedPair, Dropped> {
        let (good, bad) = (&self.good, &self.bad);
        if good.ids.is_empty() || bad.ids.is_empty() {
            return Err(Dropped::Empty);
        }
        if !(good.complete && bad.complete) {
            return Err(Dropped::Truncated);
        }
        if good.ids == bad.ids {
            return Err(Dropped::Identical);
        }
        let own = self.plain.mean_logprob();
        if bare.iter().any(|logprob| own - logprob > max_distance) {
            return Err(Dropped::OffPolicy);
        }
        if confirmed
            .as_ref()
            .is_some_and(|verdict| verdict.winner != Some(0))
        {
            return Err(Dropped::NotConfirmed);
        }
        Ok(JudgedPair {
            chosen: good.clone(),
            rejected: bad.clone(),
            label: 1.0,
            verdict: confirmed.unwrap_or_else(PairVerdict::unread),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::pairs::tests::{answer, verdict};
    use super::*;

    fn prompt(ids: &[u32]) -> Prompt {
        Prompt {
            messages: Vec::new(),
            ids: ids.to_vec(),
            seed: 1,
        }
    }

    fn answers() -> OpposedAnswers {
        OpposedAnswers {
            plain: answer(&[5, 9]),
            good: answer(&[6, 9]),
            bad: answer(&[7, 9]),
        }
    }

    #[test]
    fn the_generator_learns_both_sides_with_the_plain_answer_as_the_bad_ones_winner() {
        let prompts = OpposedPrompts {
            bare: prompt(&[1]),
            good: prompt(&[2, 1]),
            bad: prompt(&[3, 1]),
        };
        let examples = answers().generator_examples(&prompts);
        assert_eq!(examples.len(), 2);
        assert_eq!(examples[0].prompt, [2, 1]);
        assert_eq!(
            (&examples[0].chosen[..], &examples[0].rejected[..]),
            (&[6, 9][..], &[7, 9][..])
        );
        assert_eq!(examples[1].prompt, [3, 1]);
        assert_eq!(
            (&examples[1].chosen[..], &examples[1].rejected[..]),
            (&[5, 9][..], &[6, 9][..])
        );

        let mut cut = answers();
        cut.good.complete = false;
        assert!(cut.generator_examples(&prompts).is_empty());
    }

    #[test]
    fn pairs_are_confirmed_and_near_the_policy() {
        let near = [-0.6, -1.0];
        let pair = answers().pair(1.0, near, Some(verdict(0.9, 0.8))).unwrap();
        assert_eq!(pair.chosen.ids, [6, 9]);
        assert!(answers().pair(1.0, near, None).is_ok());
        let why = |near, verdict| answers().pair(1.0, near, verdict).unwrap_err();
        assert_eq!(why(near, Some(verdict(0.1, 0.2))), Dropped::NotConfirmed);
        assert_eq!(why([-0.6, -1.6], None), Dropped::OffPolicy);
        let mut same = answers();
        same.bad = same.good.clone();
        assert_eq!(same.pair(1.0, near, None).unwrap_err(), Dropped::Identical);
    }
}
