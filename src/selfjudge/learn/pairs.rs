//! Judged pairs: the pinned judge reads both orders, principle by principle, and its verdicts decide which pairs are trained on.

use futures::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use super::LearnError;
use super::config::{Disagreement, JudgingConfig};
use super::rollout::{Answer, WINDOW};
use crate::call::Turn;
use crate::judging::{JudgeTask, TournamentTask};
use crate::service::Service;
use judge::{Method, OnDisagreement, Orders, PairVerdict, WeightedPrinciple};
use model::WeightsLease;
use text::Message;

/// The reason why answers make no pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dropped {
    /// Both answers are the same.
    Identical,
    /// An answer was cut off, so its ending is unknown.
    Truncated,
    Empty,
    /// The two orders name different winners.
    Disagreement,
    /// The probability is too close to 0.5.
    Margin,
    /// The probability is exactly 0.5.
    Tie,
    /// The probability of the judge's two labels is too small for a comparison.
    LabelMass,
    /// The judge does not confirm the preference intended by the opposed principles, or the caller's.
    NotConfirmed,
    /// An answer is too improbable under the bare prompt.
    OffPolicy,
    /// Active selection did not choose the pair.
    NotSelected,
    /// The pair is longer than the trainer's context.
    TooLong,
    /// The log lacks the tokens of an answer in the caller's feedback: it was redacted, or is an edit of a prompt that is not a
    /// conversation.
    NoTokens,
}

impl Dropped {
    pub const ALL: [Self; 12] = [
        Self::Identical,
        Self::Truncated,
        Self::Empty,
        Self::Disagreement,
        Self::Margin,
        Self::Tie,
        Self::LabelMass,
        Self::NotConfirmed,
        Self::OffPolicy,
        Self::NotSelected,
        Self::TooLong,
        Self::NoTokens,
    ];

    /// Returns the name used in metrics and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Identical => "identical",
            Self::Truncated => "truncated",
            Self::Empty => "empty",
            Self::Disagreement => "disagreement",
            Self::Margin => "margin",
            Self::Tie => "tie",
            Self::LabelMass => "label_mass",
            Self::NotConfirmed => "not_confirmed",
            Self::OffPolicy => "off_policy",
            Self::NotSelected => "not_selected",
            Self::TooLong => "too_long",
            Self::NoTokens => "no_tokens",
        }
    }
}

/// Two answers with the judge's preference.
#[derive(Debug, Clone, PartialEq)]
pub struct JudgedPair {
    pub chosen: Answer,
    pub rejected: Answer,
    /// Probability that `chosen` is better, as used by the loss.
    pub label: f32,
    /// The verdict with `chosen` as candidate 0.
    pub verdict: PairVerdict,
}

/// The pinned judge and its principles.
#[derive(Debug, Clone)]
pub struct PinnedJudge {
    pub weights: WeightsLease,
    /// Principles to judge by; empty means the template's default question.
    pub principles: Vec<WeightedPrinciple>,
}

impl PinnedJudge {
    pub fn task(&self, context: Vec<Message>) -> JudgeTask {
        JudgeTask {
            context,
            principles: self.principles.clone(),
            orders: Orders::Both,
            on_disagreement: OnDisagreement::default(),
            turn: Turn::background(),
            weights: Some(self.weights.clone()),
        }
    }

    /// Returns the verdict on each pair of texts, in input order.
    ///
    /// # Errors
    /// Errors from the service.
    pub async fn judge_all(
        &self,
        service: &Service,
        pairs: impl IntoIterator<Item = (Vec<Message>, &str, &str)>,
    ) -> Result<Vec<PairVerdict>, LearnError> {
        stream::iter(pairs)
            .map(|(context, a, b)| async move {
                let judged = service
                    .judge()
                    .judge_pair(&self.task(context), a, b)
                    .await?;
                Ok(judged.result)
            })
            .buffered(WINDOW)
            .try_collect()
            .await
    }

    /// Returns the pair of each prompt's answers, or why there is none: the better and the worse of two answers, or the best and the worst
    /// of a round robin of more.
    ///
    /// # Errors
    /// Errors from the service.
    pub async fn pairs(
        &self,
        service: &Service,
        config: &JudgingConfig,
        answered: Vec<(Vec<Message>, Vec<Answer>)>,
    ) -> Result<Vec<Result<JudgedPair, Dropped>>, LearnError> {
        stream::iter(answered)
            .map(|(context, answers)| self.pair(service, config, context, answers))
            .buffered(WINDOW)
            .try_collect()
            .await
    }

    async fn pair(
        &self,
        service: &Service,
        config: &JudgingConfig,
        context: Vec<Message>,
        mut answers: Vec<Answer>,
    ) -> Result<Result<JudgedPair, Dropped>, LearnError> {
        let sampled = answers.len();
        answers.retain(|answer| answer.complete);
        if answers.len() < 2 {
            let why = if sampled < 2 {
                Dropped::Empty
            } else {
                Dropped::Truncated
            };
            return Ok(Err(why));
        }
        let mut distinct: Vec<Answer> = Vec::new();
        for answer in answers {
            if distinct.iter().all(|other| other.text != answer.text) {
                distinct.push(answer);
            }
        }
        if distinct.len() < 2 {
            return Ok(Err(Dropped::Identical));
        }
        let task = self.task(context);
        let (first, second, verdict) = if distinct.len() == 2 {
            let judged = service
                .judge()
                .judge_pair(&task, &distinct[0].text, &distinct[1].text);
            (0, 1, judged.await?.result)
        } else {
            let texts: Vec<String> = distinct.iter().map(|answer| answer.text.clone()).collect();
            let how = TournamentTask {
                method: Method::RoundRobin,
                seed: distinct[0].seed,
            };
            let held = service
                .judge()
                .hold_tournament(&task, how, &texts)
                .await?
                .result;
            let (best, worst) = (held.winner, held.ranking[held.ranking.len() - 1]);
            let mut matches = held.rounds.into_iter().flatten();
            let played = matches
                .find(|m| [m.a, m.b] == [best, worst] || [m.b, m.a] == [best, worst])
                .expect("in a round robin everybody meets everybody; this is a bug");
            (played.a, played.b, played.verdict)
        };
        let b = distinct[second].clone();
        Ok(decide(config, distinct[first].clone(), b, verdict))
    }
}

impl JudgingConfig {
    /// Returns whether the verdict is a comparison: whether the probability of the two labels reaches the minimum.
    pub fn compares(&self, verdict: &PairVerdict) -> bool {
        verdict.label_mass >= self.min_label_mass
    }
}

/// Makes a pair of two answers from the verdict with the first as candidate 0, or returns why there is none.
pub fn decide(
    config: &JudgingConfig,
    a: Answer,
    b: Answer,
    verdict: PairVerdict,
) -> Result<JudgedPair, Dropped> {
    check(&a, &b)?;
    if !config.compares(&verdict) {
        return Err(Dropped::LabelMass);
    }
    let Some(winner) = verdict.winner else {
        return Err(Dropped::Tie);
    };
    let disagreed = verdict.consistent == Some(false);
    if disagreed && config.disagreement == Disagreement::Drop {
        return Err(Dropped::Disagreement);
    }
    if (verdict.p - 0.5).abs() < config.min_margin {
        return Err(Dropped::Margin);
    }
    let (chosen, rejected, verdict) = match winner {
        0 => (a, b, verdict),
        _ => (b, a, verdict.swapped()),
    };
    Ok(JudgedPair {
        chosen,
        rejected,
        label: label(config, verdict.p, disagreed),
        verdict,
    })
}

/// Returns the loss's label: the probability that the chosen answer of a pair is better, where the judge's is `p`.
pub fn label(config: &JudgingConfig, p: f32, disagreed: bool) -> f32 {
    let soft = config.soft_labels || (disagreed && config.disagreement == Disagreement::Soften);
    if soft { p } else { 1.0 }
}

/// Makes a pair of a caller's preference, given the judge's verdict with `chosen` as candidate 0 if the judge is used. The judge must
/// agree in both orders, however the settings treat fresh pairs whose orders disagree.
pub fn corroborated(
    config: &JudgingConfig,
    chosen: Answer,
    rejected: Answer,
    verdict: Option<PairVerdict>,
) -> Result<JudgedPair, Dropped> {
    check(&chosen, &rejected)?;
    match verdict {
        Some(verdict) if (verdict.winner, verdict.consistent) != (Some(0), Some(true)) => {
            Err(Dropped::NotConfirmed)
        }
        Some(verdict) => decide(config, chosen, rejected, verdict),
        None => Ok(JudgedPair {
            chosen,
            rejected,
            label: 1.0,
            verdict: PairVerdict::unread(),
        }),
    }
}

/// Checks that two answers can make a pair.
fn check(a: &Answer, b: &Answer) -> Result<(), Dropped> {
    if a.ids.is_empty() || b.ids.is_empty() {
        return Err(Dropped::Empty);
    }
    if a.ids == b.ids {
        return Err(Dropped::Identical);
    }
    if !(a.complete && b.complete) {
        return Err(Dropped::Truncated);
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn answer(ids: &[u32]) -> Answer {
        Answer {
            text: format!("{ids:?}"),
            ids: ids.to_vec(),
            logprobs: vec![-0.5; ids.len()],
            complete: true,
            seed: 1,
            weights: "base".into(),
        }
    }

    pub fn verdict(first: f32, second: f32) -> PairVerdict {
        judge::fixtures::verdict([first, second], 1.0)
    }

    #[test]
    fn the_better_one_is_chosen_whichever_came_first() {
        let config = JudgingConfig::default();
        let (a, b) = (answer(&[1, 2]), answer(&[3, 2]));
        let pair = decide(&config, a.clone(), b.clone(), verdict(0.9, 0.7)).unwrap();
        assert_eq!((&pair.chosen, pair.label), (&a, 1.0));
        let pair = decide(&config, a, b.clone(), verdict(0.1, 0.3)).unwrap();
        assert_eq!(pair.chosen, b);
        assert!((pair.verdict.p - 0.8).abs() < 1e-6);
        assert_eq!(pair.verdict.winner, Some(0));
    }

    #[test]
    fn every_reason_to_drop_a_pair_drops_it() {
        let config = JudgingConfig {
            min_margin: 0.1,
            ..JudgingConfig::default()
        };
        let (a, b) = (answer(&[1, 2]), answer(&[3, 2]));
        let cut = Answer {
            complete: false,
            ..a.clone()
        };
        let why = |a: &Answer, b: &Answer, v| decide(&config, a.clone(), b.clone(), v).unwrap_err();
        assert_eq!(why(&a, &a, verdict(0.9, 0.9)), Dropped::Identical);
        assert_eq!(why(&cut, &b, verdict(0.9, 0.9)), Dropped::Truncated);
        assert_eq!(why(&answer(&[]), &b, verdict(0.9, 0.9)), Dropped::Empty);
        assert_eq!(why(&a, &b, verdict(0.9, 0.3)), Dropped::Disagreement);
        assert_eq!(why(&a, &b, verdict(0.55, 0.55)), Dropped::Margin);
        assert_eq!(why(&a, &b, verdict(0.5, 0.5)), Dropped::Tie);
        for label_mass in [0.0, 1e-4, 0.49, f32::NAN] {
            let led_astray = PairVerdict {
                label_mass,
                ..verdict(0.99, 0.99)
            };
            assert_eq!(why(&a, &b, led_astray), Dropped::LabelMass, "{label_mass}");
        }
    }

    #[test]
    fn a_callers_preference_needs_the_judge_in_both_orders_where_it_is_asked() {
        let config = JudgingConfig {
            disagreement: Disagreement::Keep,
            ..JudgingConfig::default()
        };
        let (a, b) = (answer(&[1, 2]), answer(&[3, 2]));
        let judged = |config: &JudgingConfig, v| corroborated(config, a.clone(), b.clone(), v);
        let pair = judged(&config, Some(verdict(0.9, 0.7))).unwrap();
        assert_eq!((&pair.chosen, &pair.rejected, pair.label), (&a, &b, 1.0));
        for other in [verdict(0.9, 0.3), verdict(0.1, 0.3), verdict(0.5, 0.5)] {
            assert_eq!(
                judged(&config, Some(other)).unwrap_err(),
                Dropped::NotConfirmed
            );
        }
        let nothing = PairVerdict {
            label_mass: 1e-4,
            ..verdict(0.9, 0.9)
        };
        assert_eq!(
            judged(&config, Some(nothing)).unwrap_err(),
            Dropped::LabelMass
        );
        let wide = JudgingConfig {
            min_margin: 0.4,
            soft_labels: true,
            ..config.clone()
        };
        assert_eq!(
            judged(&wide, Some(verdict(0.9, 0.7))).unwrap_err(),
            Dropped::Margin
        );
        let sure = judged(&wide, Some(verdict(0.9, 0.95))).unwrap();
        assert!((sure.label - 0.925).abs() < 1e-6);
        // Without the judge the caller's preference decides, and the answers must still be complete.
        assert_eq!(judged(&wide, None).unwrap().label, 1.0);
        let cut = Answer {
            complete: false,
            ..a.clone()
        };
        let why =
            |chosen: &Answer| corroborated(&config, chosen.clone(), b.clone(), None).unwrap_err();
        assert_eq!(
            (why(&cut), why(&b)),
            (Dropped::Truncated, Dropped::Identical)
        );
    }

    #[test]
    fn disagreement_can_soften_the_label_instead() {
        let with = |disagreement| JudgingConfig {
            disagreement,
            ..JudgingConfig::default()
        };
        let pair = |config: &JudgingConfig, v| {
            decide(config, answer(&[1]), answer(&[2]), v).unwrap().label
        };
        assert!((pair(&with(Disagreement::Soften), verdict(0.9, 0.3)) - 0.6).abs() < 1e-6);
        assert_eq!(pair(&with(Disagreement::Soften), verdict(0.9, 0.8)), 1.0);
        assert_eq!(pair(&with(Disagreement::Keep), verdict(0.9, 0.3)), 1.0);
        let soft = JudgingConfig {
            soft_labels: true,
            ..JudgingConfig::default()
        };
        assert!((pair(&soft, verdict(0.9, 0.8)) - 0.85).abs() < 1e-6);
    }
}
