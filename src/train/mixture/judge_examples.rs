//! The judge half of the mixture: two examples per comparison, one per order, with one supervised label token each.

use rand::{Rng, RngExt};

use super::{ExampleKind, Mixture, MixtureReport, Refusal, TrainExample};
use judge::{JudgeError, PreferencePair, fit};

impl Mixture {
    /// Returns both orders of a pair, or none.
    pub(super) fn judge_examples(
        &self,
        pair: &PreferencePair,
        rng: &mut impl Rng,
        report: &mut MixtureReport,
    ) -> Vec<TrainExample> {
        // Drawn before any error can occur, so that a rejected pair does not shift the draws of other options.
        let negate = rng.random::<f64>() < self.options.negation;
        if pair.chosen == pair.rejected {
            report.judge_equal += 1;
            return Vec::new();
        }
        let negated = if negate { self.negated(pair) } else { None };
        let flipped = negated.is_some();
        let principles = negated.unwrap_or_else(|| {
            let texts = pair
                .principles
                .iter()
                .map(|name| self.principles.text(name).to_owned());
            texts.collect()
        });
        let before = (report.judge_cut, report.judge_rationale_cut);
        let both = [true, false]
            .into_iter()
            .map(|chosen_first| self.one_order(pair, &principles, chosen_first, flipped, report))
            .collect::<Result<Vec<_>, Refusal>>();
        match both {
            // Two long answers may differ only in the text that was cut out of both: no label can be right for both orders of the same
            // text.
            Ok(examples) if question(&examples[0]) == question(&examples[1]) => {
                (report.judge_cut, report.judge_rationale_cut) = before;
                report.judge_equal += 1;
                Vec::new()
            }
            Ok(examples) => {
                report.judge_negated += u64::from(flipped);
                examples
            }
            Err(refusal) => {
                (report.judge_cut, report.judge_rationale_cut) = before;
                match refusal {
                    Refusal::Judge(JudgeError::NoRoom { .. }) => report.judge_no_room += 1,
                    _ => report.judge_refused += 1,
                }
                report.refuse(refusal);
                Vec::new()
            }
        }
    }

    /// Returns the negated texts of all the pair's principles; none if one of them has no negation.
    fn negated(&self, pair: &PreferencePair) -> Option<Vec<String>> {
        let negative = |name: &str| self.principles.negative(name).map(str::to_owned);
        if pair.principles.is_empty() {
            return Some(vec![negative(self.template.default_principle())?]);
        }
        pair.principles.iter().map(|name| negative(name)).collect()
    }

    fn one_order(
        &self,
        pair: &PreferencePair,
        principles: &[String],
        chosen_first: bool,
        flipped: bool,
        report: &mut MixtureReport,
    ) -> Result<TrainExample, Refusal> {
        let (first, second) = if chosen_first {
            (&pair.chosen, &pair.rejected)
        } else {
            (&pair.rejected, &pair.chosen)
        };
        let rationale = match &pair.rationale {
            Some(text) if self.options.rationale => {
                self.tokenizer
                    .encode_rendered(&self.template.rationale(text))?
                    .ids
            }
            _ => Vec::new(),
        };
        let prompt = self
            .template
            .render(&self.chat, &pair.messages, first, second, principles)?;
        // The label needs one token; a rationale gets up to a quarter, or what the prompt does not use.
        let max = self.options.max_length;
        let reserved = 1 + rationale.len().min(max / 4);
        let fitted = fit(&self.tokenizer, &prompt, max - reserved)?;
        report.judge_cut += u64::from(fitted.cut);
        let mut weights = vec![0.0; fitted.ids.len()];
        if self.options.candidate_weight > 0.0 {
            let chosen = if chosen_first { fitted.a } else { fitted.b };
            weights[chosen].fill(self.options.candidate_weight);
        }
        let mut ids = fitted.ids;
        let label = ids.len();
        ids.push(self.labels.ids[usize::from(chosen_first == flipped)]);
        weights.push(1.0);
        let kept = rationale.len().min(max - ids.len());
        report.judge_rationale_cut += u64::from(kept < rationale.len());
        ids.extend_from_slice(&rationale[..kept]);
        weights.resize(ids.len(), self.options.rationale_weight);
        self.check_ids(&ids)?;
        Ok(TrainExample {
            ids,
            weights,
            kind: ExampleKind::Judge,
            label: Some(label),
        })
    }
}

/// Returns a judge example's tokens before the label.
fn question(example: &TrainExample) -> &[u32] {
    &example.ids[..example.label.unwrap_or(example.ids.len())]
}
