//! Prompts with several rated responses (UltraFeedback's shape), and the pairs that SELF-JUDGE's released code draws from them.
//!
//! Base set: the best response is a target of supervised fine-tuning with its own system prompt, and is compared once with a random
//! response of strictly lower rating. Principled set ("PR"): each principle gives one random comparison. It is between the first response
//! in the overall ranking whose rating on that principle differs from another's, and one of those others; both rationales are kept.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{JudgeItem, Label, PreferencePair};
use text::{Message, Role};

/// UltraFeedback's aspects, in the released code's order, with the names of their principles in the built-in table.
const ASPECTS: [(&str, &str); 4] = [
    ("helpfulness", "helpful"),
    ("honesty", "honest"),
    ("instruction_following", "instruction-following"),
    ("truthfulness", "truthful"),
];

/// Returns the principle of an aspect. An aspect that is not UltraFeedback's keeps its name.
pub(super) fn principle_of(aspect: &str) -> &str {
    ASPECTS
        .iter()
        .find(|(name, _)| *name == aspect)
        .map_or(aspect, |(_, principle)| principle)
}

/// The pairs to draw from a [`RankedPrompt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RankedSet {
    /// [`RankedPrompt::base`].
    #[default]
    Base,
    /// [`RankedPrompt::principled`], under UltraFeedback's four aspects.
    Principled,
}

/// The set and the random seed of a draw from ranked prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RankedDraw {
    pub set: RankedSet,
    pub seed: u64,
}

/// The rating of one response on one aspect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rating {
    /// The principle's name in a principle table.
    pub principle: String,
    /// None if the annotator gave no rating ("N/A").
    pub rating: Option<f64>,
    #[serde(default)]
    pub rationale: Option<String>,
}

/// One response with its ratings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankedResponse {
    pub text: String,
    /// The system prompt under which the response was written: part of the fine-tuning example, not of the judge example.
    #[serde(default)]
    pub system: Option<String>,
    pub ratings: Vec<Rating>,
}

impl RankedResponse {
    /// Returns the mean of the ratings that are present.
    fn overall(&self) -> Option<f64> {
        let given: Vec<f64> = self
            .ratings
            .iter()
            .filter_map(|rating| rating.rating)
            .collect();
        (!given.is_empty()).then(|| given.iter().sum::<f64>() / given.len() as f64)
    }

    fn rated(&self, principle: &str) -> Option<(f64, Option<&str>)> {
        let found = self
            .ratings
            .iter()
            .find(|rating| rating.principle == principle)?;
        // The released code's filter: such rationales refer to the annotator's "Text 1" to "Text 4".
        let rationale = found.rationale.as_deref();
        if rationale.is_some_and(|text| text.contains("Text")) {
            return None;
        }
        Some((found.rating?, rationale))
    }
}

/// One prompt with its responses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankedPrompt {
    #[serde(default)]
    pub id: Option<String>,
    pub instruction: String,
    pub responses: Vec<RankedResponse>,
}

impl RankedPrompt {
    /// Returns the responses that have a rating, best first. Among equally rated ones the longer is better.
    fn ranking(&self) -> Vec<(&RankedResponse, f64)> {
        let mut ranked: Vec<_> = self
            .responses
            .iter()
            .filter_map(|response| Some((response, response.overall()?)))
            .collect();
        ranked.sort_by(|(a, x), (b, y)| {
            y.total_cmp(x)
                .then_with(|| b.text.chars().count().cmp(&a.text.chars().count()))
        });
        ranked
    }

    fn pair(&self, chosen: &RankedResponse, rejected: &RankedResponse) -> PreferencePair {
        let system = chosen
            .system
            .iter()
            .map(|text| Message::new(Role::System, text));
        PreferencePair {
            id: self.id.clone(),
            messages: system
                .chain([Message::new(Role::User, &self.instruction)])
                .collect(),
            chosen: chosen.text.clone(),
            rejected: rejected.text.clone(),
            principles: Vec::new(),
            rationale: None,
            sft: false,
            judge: true,
            plain: false,
            margin: None,
            source: None,
        }
    }

    /// Draws the pairs of the requested set. The result is determined by the seed and by `place`, the prompt's index among all that are
    /// read.
    pub fn pairs(&self, draw: RankedDraw, place: u64) -> Vec<PreferencePair> {
        let mut rng = ChaCha8Rng::seed_from_u64(draw.seed);
        // Stream numbers count down from the maximum: the data mixture counts up from 0, possibly with the same seed.
        rng.set_stream(!place);
        match draw.set {
            RankedSet::Base => self.base(&mut rng).into_iter().collect(),
            RankedSet::Principled => {
                self.principled(&ASPECTS.map(|(_, principle)| principle), &mut rng)
            }
        }
    }

    /// Returns the best response against the worst, for measuring a judge; none if all have the same rating.
    pub fn extremes(&self) -> Option<JudgeItem> {
        let ranking = self.ranking();
        let ((best, top), (worst, bottom)) = (*ranking.first()?, *ranking.last()?);
        (top > bottom).then(|| {
            let pair = self.pair(best, worst);
            JudgeItem {
                id: pair.id,
                messages: pair.messages,
                a: pair.chosen,
                b: pair.rejected,
                label: Label::A,
                principles: Vec::new(),
                rationale: None,
            }
        })
    }

    /// Draws the base set: at most one pair, a target of supervised fine-tuning and, unless all ratings are equal, a judge example.
    pub fn base(&self, rng: &mut impl Rng) -> Option<PreferencePair> {
        let ranking = self.ranking();
        let (best, top) = *ranking.first()?;
        let lower: Vec<_> = ranking.iter().filter(|(_, rating)| *rating < top).collect();
        let mut pair = if lower.is_empty() {
            let mut pair = self.pair(best, best);
            pair.judge = false;
            pair
        } else {
            self.pair(best, lower[rng.random_range(0..lower.len())].0)
        };
        pair.sft = true;
        Some(pair)
    }

    /// Draws the principled set: the best response as a target of supervised fine-tuning, then at most one judge example for each of
    /// `principles`.
    pub fn principled(&self, principles: &[&str], rng: &mut impl Rng) -> Vec<PreferencePair> {
        let ranking = self.ranking();
        let Some((best, _)) = ranking.first() else {
            return Vec::new();
        };
        let mut imitated = self.pair(best, best);
        (imitated.sft, imitated.judge) = (true, false);
        let mut pairs = vec![imitated];
        for &principle in principles {
            let rated: Vec<_> = ranking
                .iter()
                .filter_map(|(response, _)| Some((*response, response.rated(principle)?)))
                .collect();
            let Some((one, others)) = rated.iter().find_map(|one| {
                let others: Vec<_> = rated.iter().filter(|other| other.1.0 != one.1.0).collect();
                (!others.is_empty()).then_some((one, others))
            }) else {
                continue;
            };
            let other = others[rng.random_range(0..others.len())];
            let (better, worse) = if one.1.0 > other.1.0 {
                (one, other)
            } else {
                (other, one)
            };
            let mut pair = self.pair(better.0, worse.0);
            pair.principles = vec![principle.to_owned()];
            let rationales = [better.1.1, worse.1.1];
            if rationales.iter().any(Option::is_some) {
                let texts: Vec<&str> = rationales.into_iter().flatten().collect();
                pair.rationale = Some(texts.join("\n"));
            }
            pairs.push(pair);
        }
        pairs
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn response(
        text: &str,
        helpful: Option<f64>,
        honest: Option<f64>,
        why: &str,
    ) -> RankedResponse {
        let rating = |principle: &str, rating| Rating {
            principle: principle.into(),
            rating,
            rationale: Some(why.into()),
        };
        RankedResponse {
            text: text.into(),
            system: Some(format!("system of {text}")),
            ratings: vec![rating("helpfulness", helpful), rating("honesty", honest)],
        }
    }

    fn prompt(responses: Vec<RankedResponse>) -> RankedPrompt {
        RankedPrompt {
            id: None,
            instruction: "do it".into(),
            responses,
        }
    }

    #[test]
    fn the_best_is_imitated_with_its_system_prompt_and_beats_a_strictly_lower_one() {
        let prompt = prompt(vec![
            response("low", Some(1.0), Some(2.0), ""),
            response("top", Some(5.0), None, ""),
            response("top and longer", Some(4.0), Some(6.0), ""),
            response("unrated", None, None, ""),
        ]);
        for seed in 0..20 {
            let pair = prompt.base(&mut ChaCha8Rng::seed_from_u64(seed)).unwrap();
            // Both top responses average 5: the longer one wins, and the other is never drawn as the loser.
            assert_eq!(
                (pair.chosen.as_str(), pair.rejected.as_str()),
                ("top and longer", "low")
            );
            assert_eq!(
                pair.messages[0],
                Message::new(Role::System, "system of top and longer")
            );
            assert!(pair.sft && pair.judge);
        }
    }

    #[test]
    fn tied_prompts_are_imitated_but_not_judged() {
        let tied = prompt(vec![
            response("a", Some(3.0), Some(3.0), ""),
            response("bb", Some(3.0), Some(3.0), ""),
        ]);
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let pair = tied.base(&mut rng).unwrap();
        assert!(pair.sft && !pair.judge);
        assert_eq!(pair.chosen, "bb");
        assert_eq!(
            tied.principled(&["helpfulness", "honesty"], &mut rng).len(),
            1
        );
        assert!(prompt(vec![]).base(&mut rng).is_none());
    }

    #[test]
    fn principles_prefer_by_their_own_rating() {
        let prompt = prompt(vec![
            response("kind liar", Some(5.0), Some(1.0), "pleasant"),
            response("blunt", Some(2.0), Some(3.0), "plain"),
            response("bad note", Some(1.0), Some(5.0), "Text 3 is vague"),
        ]);
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let pairs = prompt.principled(&["helpfulness", "honesty", "absent"], &mut rng);
        assert_eq!(pairs.len(), 3);
        assert!(pairs[0].sft && !pairs[0].judge);
        let by = |at: usize| {
            (
                pairs[at].principles[0].as_str(),
                pairs[at].chosen.as_str(),
                pairs[at].rejected.as_str(),
            )
        };
        assert_eq!(by(1), ("helpfulness", "kind liar", "blunt"));
        assert_eq!(by(2), ("honesty", "blunt", "kind liar"));
        assert_eq!(pairs[2].rationale.as_deref(), Some("plain\npleasant"));
    }

    #[test]
    fn the_draw_is_a_function_of_seed_and_place() {
        let prompt = prompt(
            (0..40)
                .map(|n| response(&format!("{n}"), Some(f64::from(n)), Some(f64::from(n)), ""))
                .collect(),
        );
        let draw = |seed, place| {
            let pairs = prompt.pairs(
                RankedDraw {
                    seed,
                    ..RankedDraw::default()
                },
                place,
            );
            assert_eq!(pairs.len(), 1);
            pairs[0].rejected.clone()
        };
        assert_eq!(draw(1, 5), draw(1, 5));
        let drawn: std::collections::HashSet<_> = (0..20).map(|place| draw(1, place)).collect();
        assert!(drawn.len() > 5, "{drawn:?}");
        assert!((0..20).any(|place| draw(1, place) != draw(2, place)));
        let item = prompt.extremes().unwrap();
        assert_eq!(
            (item.a.as_str(), item.b.as_str(), item.label),
            ("39", "0", Label::A)
        );
    }
}
