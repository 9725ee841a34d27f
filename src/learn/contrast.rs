//! SSO (arXiv 2410.17131, version 2): chosen and rejected drawn under opposed principles.
//!
//! The system message says `good` for the one answer and `bad` for the other; the pair is learned from without it. No judge is
//! needed, but it may confirm. Both answers have to be near what the policy says anyway: an answer that the bare prompt makes
//! much less probable than the policy's own teaches a difference that never comes up.
//!
//! The paper first trains a generator of such answers from the policy (its equation for `L_plus + L_minus`):
//! ```text
//! L_plus  = L(x+; y+ over y-) + gamma NLL(x+, y+)
//! L_minus = L(x-; y0 over y+) + gamma NLL(x-, y0)
//! ```
//! with `y0` drawn from the bare prompt: as the winner under the bad principle it keeps the worse answers near the policy.

use super::LearnError;
use super::config::OpposedPrinciples;
use super::judging::{Dropped, JudgedPair};
use super::rollout::{Answer, Prompt};
use super::stage::another_seed;
use crate::preference::{Message, Role};
use crate::service::{PairVerdict, Service};
use crate::train::dpo::PairExample;

/// One prompt under both principles.
#[derive(Debug, Clone, PartialEq)]
pub struct OpposedPrompts {
    pub bare: Prompt,
    pub good: Prompt,
    pub bad: Prompt,
}

impl OpposedPrompts {
    /// Of a conversation: a prompt of plain text has no place for a system message.
    ///
    /// # Errors
    /// What the chat template objects to.
    pub async fn new(
        service: &Service,
        bare: &Prompt,
        opposed: &OpposedPrinciples,
    ) -> Result<Self, LearnError> {
        // Three streams of draws: under one seed the answers would start alike.
        let seed = |stream| another_seed(bare.seed, stream);
        Ok(Self {
            bare: bare.clone(),
            good: told(service, bare, &opposed.good, seed(1)).await?,
            bad: told(service, bare, &opposed.bad, seed(2)).await?,
        })
    }
}

/// The conversation with one more sentence in its system message.
async fn told(
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
    /// What the generator learns from them: two examples, or none where an answer was cut off or two are the same.
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

    /// The pair that the policy learns from.
    ///
    /// `bare` are the mean log-probabilities of a token of the good and of the bad answer under the bare prompt, to be compared with
    /// that of the policy's own answer; `confirmed` is the judge's verdict on the good answer as candidate 0, where it is asked.
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
    use super::super::judging::tests::{answer, verdict};
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
