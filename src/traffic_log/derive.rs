//! Derivation of preference pairs from principals' feedback on a record's answers.
//!
//! A principal that likes half of several thousand answers and dislikes the rest implies millions of preferences. They are never
//! enumerated in full: with verdicts, each verdict's pair is looked up in the feedback; without verdicts, a bounded number is enumerated.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    Feedback, FeedbackTrust, LoggedFeedback, LoggedPair, LoggedVerdict, PairSource, Principal,
};

/// The maximum number of preferences of one record that are enumerated if no verdict has to corroborate them, and so the maximum number
/// of its pairs from feedback.
const MOST_PREFERENCES: usize = 4096;

/// A preference: the first sample over the second.
type Preference = (usize, usize);

/// The feedback of one principal on a record's answers. A thumb up and a thumb down together form a preference, each alone does not; an
/// edit is preferred to the answer that it edits.
#[derive(Debug, Default)]
struct Opinion {
    preferred: Option<usize>,
    up: BTreeSet<usize>,
    down: BTreeSet<usize>,
    edits: BTreeSet<Preference>,
}

impl Opinion {
    fn holds(&self, preference: Preference, shown: usize) -> bool {
        let (chosen, rejected) = preference;
        let preferred = self.preferred == Some(chosen) && rejected != chosen && rejected < shown;
        let thumbs = self.up.contains(&chosen) && self.down.contains(&rejected);
        preferred || thumbs || self.edits.contains(&preference)
    }

    /// Returns an iterator over all preferences that the feedback implies.
    fn preferences(&self, shown: usize) -> impl Iterator<Item = Preference> {
        let preferred = self.preferred.into_iter().flat_map(move |chosen| {
            let others = (0..shown).filter(move |&other| other != chosen);
            others.map(move |other| (chosen, other))
        });
        let down = move |chosen: usize| self.down.iter().map(move |&rejected| (chosen, rejected));
        let thumbs = self.up.iter().flat_map(move |&chosen| down(chosen));
        preferred.chain(self.edits.iter().copied()).chain(thumbs)
    }
}

/// Returns the pairs that follow from feedback. The margin of each is the share of principals that hold it among those with an opinion on
/// it.
pub(super) fn derive(
    feedback: &[(LoggedFeedback, Option<usize>)],
    verdicts: &[LoggedVerdict],
    shown: usize,
    trust: FeedbackTrust,
) -> Vec<LoggedPair> {
    let opinions = opinions(feedback);
    let candidates: BTreeSet<Preference> = match trust {
        FeedbackTrust::Never => return Vec::new(),
        FeedbackTrust::Corroborated => verdicts
            .iter()
            .filter(|verdict| verdict.consistent)
            .filter_map(|verdict| verdict.pair(PairSource::Feedback))
            .map(|pair| (pair.chosen, pair.rejected))
            .collect(),
        FeedbackTrust::Always => opinions
            .values()
            .flat_map(|opinion| opinion.preferences(shown))
            .take(MOST_PREFERENCES)
            .collect(),
    };
    let count = |preference: Preference| {
        let holding = opinions
            .values()
            .filter(|opinion| opinion.holds(preference, shown));
        holding.count()
    };
    let mut pairs = Vec::new();
    for (chosen, rejected) in candidates {
        let (pro, contra) = (count((chosen, rejected)), count((rejected, chosen)));
        if pro > contra {
            pairs.push(LoggedPair {
                chosen,
                rejected,
                margin: pro as f32 / (pro + contra) as f32,
                source: PairSource::Feedback,
                principles: Vec::new(),
            });
        }
    }
    pairs
}

/// Collects the feedback of each principal.
fn opinions(feedback: &[(LoggedFeedback, Option<usize>)]) -> BTreeMap<&Principal, Opinion> {
    let mut opinions: BTreeMap<&Principal, Opinion> = BTreeMap::new();
    // If two principals write the same edit, the first one's sample stands for both.
    let mut written_first: HashMap<(usize, &str), Option<usize>> = HashMap::new();
    for (one, written) in feedback {
        let opinion = opinions.entry(&one.principal).or_default();
        match &one.feedback {
            Feedback::Preferred { sample } => opinion.preferred = Some(*sample),
            Feedback::Edited { sample, text } => {
                let first = written_first
                    .entry((*sample, text.as_str()))
                    .or_insert(*written);
                if let Some(written) = first.or(*written) {
                    opinion.edits.insert((written, *sample));
                }
            }
            Feedback::Thumbs { sample, up: true } => {
                opinion.up.insert(*sample);
            }
            Feedback::Thumbs { sample, up: false } => {
                opinion.down.insert(*sample);
            }
        }
    }
    opinions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(principal: &str, feedback: Feedback) -> (LoggedFeedback, Option<usize>) {
        let principal = Principal::of_key(principal);
        let one = LoggedFeedback {
            principal,
            created_at: 0,
            feedback,
        };
        (one, None)
    }

    fn derived(
        feedback: &[(LoggedFeedback, Option<usize>)],
        verdicts: &[LoggedVerdict],
        trust: FeedbackTrust,
    ) -> Vec<Preference> {
        derive(feedback, verdicts, 2, trust)
            .iter()
            .map(|pair| (pair.chosen, pair.rejected))
            .collect()
    }

    #[test]
    fn a_single_opinion_is_believed_only_if_the_policy_says_so() {
        let one = [by("a", Feedback::Preferred { sample: 1 })];
        assert_eq!(derived(&one, &[], FeedbackTrust::Never), []);
        assert_eq!(derived(&one, &[], FeedbackTrust::Corroborated), []);
        assert_eq!(derived(&one, &[], FeedbackTrust::Always), [(1, 0)]);
    }

    #[test]
    fn a_principal_has_one_opinion_however_often_it_gives_feedback() {
        let thumbs = |sample, up| by("a", Feedback::Thumbs { sample, up });
        let mut all = vec![
            by("a", Feedback::Preferred { sample: 1 }),
            thumbs(1, true),
            thumbs(0, false),
            by("b", Feedback::Preferred { sample: 0 }),
        ];
        assert_eq!(derived(&all, &[], FeedbackTrust::Always), []);
        all.truncate(3);
        assert_eq!(derived(&all, &[], FeedbackTrust::Always), [(1, 0)]);
    }

    #[test]
    fn as_many_against_as_for_is_no_preference() {
        let split = [
            by("a", Feedback::Preferred { sample: 1 }),
            by("b", Feedback::Preferred { sample: 0 }),
        ];
        assert_eq!(derived(&split, &[], FeedbackTrust::Always), []);
        let mut tipped = split.to_vec();
        tipped.push(by("c", Feedback::Preferred { sample: 0 }));
        let pairs = derive(&tipped, &[], 2, FeedbackTrust::Always);
        assert_eq!((pairs[0].chosen, pairs[0].rejected), (0, 1));
        assert!((pairs[0].margin - 2.0 / 3.0).abs() < 1e-6);
    }

    #[test]
    fn the_judge_corroborates_in_both_orders_or_not_at_all() {
        let one = [by("a", Feedback::Preferred { sample: 0 })];
        let verdict = |p: f32, consistent| LoggedVerdict {
            a: 0,
            b: 1,
            orders: [p, p],
            p,
            consistent,
            label_mass: 1.0,
            principles: Vec::new(),
            version: "base".to_owned(),
        };
        let corroborated = |verdict| derived(&one, &[verdict], FeedbackTrust::Corroborated);
        assert_eq!(corroborated(verdict(0.9, true)), [(0, 1)]);
        assert_eq!(corroborated(verdict(0.9, false)), []);
        assert_eq!(corroborated(verdict(0.1, true)), []);
    }

    #[test]
    fn an_edit_is_preferred_to_what_it_was_made_of() {
        let edit = |principal, written| {
            let text = "better".to_owned();
            let (one, _) = by(principal, Feedback::Edited { sample: 0, text });
            (one, Some(written))
        };
        let pairs = |feedback: &[_], trust| derive(feedback, &[], 2, trust);
        let found = pairs(&[edit("a", 2)], FeedbackTrust::Always);
        assert_eq!((found[0].chosen, found[0].rejected), (2, 0));
        assert!(pairs(&[edit("a", 2)], FeedbackTrust::Corroborated).is_empty());
        // The same text from two principals is one answer with two votes.
        let found = pairs(&[edit("a", 2), edit("b", 3)], FeedbackTrust::Always);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].chosen, found[0].rejected), (2, 0));
    }

    #[test]
    fn thumbs_on_thousands_of_answers_are_looked_up_and_not_multiplied() {
        const ANSWERS: usize = 6000;
        let thumbs = |sample| {
            by(
                "a",
                Feedback::Thumbs {
                    sample,
                    up: sample % 2 == 0,
                },
            )
        };
        let all: Vec<_> = (0..ANSWERS).map(thumbs).collect();
        let verdict = |a: usize, b: usize| LoggedVerdict {
            a,
            b,
            orders: [0.9, 0.9],
            p: 0.9,
            consistent: true,
            label_mass: 1.0,
            principles: Vec::new(),
            version: "base".to_owned(),
        };
        let verdicts: Vec<_> = (1..ANSWERS).map(|at| verdict(at - 1, at)).collect();
        for (trust, pairs) in [
            (FeedbackTrust::Never, 0),
            // The judge prefers every answer to the next one; the principal agrees on every second of these pairs.
            (FeedbackTrust::Corroborated, ANSWERS / 2),
            (FeedbackTrust::Always, MOST_PREFERENCES),
        ] {
            let derived = derive(&all, &verdicts, ANSWERS, trust);
            assert_eq!(derived.len(), pairs, "{trust}");
            let held = |pair: &LoggedPair| {
                pair.chosen.is_multiple_of(2) && !pair.rejected.is_multiple_of(2)
            };
            assert!(derived.iter().all(held), "{trust}");
        }
    }
}
