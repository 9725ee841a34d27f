//! Evaluation of the judge on labelled comparisons, with the "longer answer wins" baseline on the same items.

mod report;

use serde::{Deserialize, Serialize};

pub use report::{JudgeReport, JudgeTable, TieReport};

use super::{EvalError, Subject};
use judge::{Comparison, JudgeItem, Record};

/// The settings of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JudgeEvalOptions {
    /// A verdict with `|p - 0.5|` below this counts as a tie.
    pub tie_margin: f64,
    /// Number of bins of the calibration error.
    pub bins: usize,
    /// Number of comparisons between two reports of progress.
    pub batch: usize,
}

impl Default for JudgeEvalOptions {
    fn default() -> Self {
        Self {
            tie_margin: 0.1,
            bins: 10,
            batch: 256,
        }
    }
}

/// Judges labelled items; `progress` is called with the number of items that were judged since its last call.
///
/// # Errors
/// Errors from the subject.
pub fn evaluate<S: Subject>(
    name: &str,
    items: &[JudgeItem],
    subject: &mut S,
    options: &JudgeEvalOptions,
    mut progress: impl FnMut(usize),
) -> Result<JudgeReport, EvalError> {
    let mut verdicts = Vec::with_capacity(items.len());
    for batch in items.chunks(options.batch.max(1)) {
        let comparisons: Vec<Comparison> = batch.iter().map(comparison).collect();
        verdicts.extend(subject.compare(&comparisons)?);
        progress(batch.len());
    }
    Ok(JudgeReport::new(name, items, &verdicts, options))
}

fn comparison(item: &JudgeItem) -> Comparison {
    Comparison {
        context: item.messages.clone(),
        a: item.a.clone(),
        b: item.b.clone(),
        principles: item.principles.clone(),
    }
}

/// Judges the records of each named set; see [`Record::into_item`] for the treatment of pairs and ranked prompts.
///
/// # Errors
/// Errors as [`evaluate`].
pub fn evaluate_sets<S: Subject>(
    subject: &mut S,
    sets: Vec<(String, Vec<Record>)>,
    options: &JudgeEvalOptions,
    mut progress: impl FnMut(usize),
) -> Result<JudgeTable, EvalError> {
    let reports = sets.into_iter().map(|(name, records)| {
        let items: Vec<JudgeItem> = records.into_iter().filter_map(Record::into_item).collect();
        evaluate(&name, &items, subject, options, &mut progress)
    });
    Ok(JudgeTable(reports.collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use super::report::tests::item;
    use super::*;
    use crate::eval::subject::Contest;
    use judge::{Label, OnDisagreement, Orders, PairVerdict};
    use text::Message;

    /// A judge by whom the answer with more exclamation marks wins with 0.8.
    #[derive(Default)]
    struct Marks {
        largest: usize,
    }

    impl Subject for Marks {
        fn answer(&mut self, _: &[Vec<Message>], _: f32, _: u64) -> Result<Vec<String>, EvalError> {
            unreachable!("nothing is answered")
        }

        fn compare(&mut self, comparisons: &[Comparison]) -> Result<Vec<PairVerdict>, EvalError> {
            self.largest = self.largest.max(comparisons.len());
            let judge = |pair: &Comparison| {
                let marks = |text: &str| text.matches('!').count();
                let p: f32 = match marks(&pair.a).cmp(&marks(&pair.b)) {
                    std::cmp::Ordering::Greater => 0.8,
                    std::cmp::Ordering::Equal => 0.5,
                    std::cmp::Ordering::Less => 0.2,
                };
                let read = [p.ln(), (1.0 - p).ln()];
                let reads = [read, [read[1], read[0]]];
                PairVerdict::join(&[], Orders::Both, OnDisagreement::Average, &reads, false)
            };
            Ok(comparisons.iter().map(judge).collect())
        }

        fn winners(&mut self, _: &[Contest]) -> Result<Vec<usize>, EvalError> {
            unreachable!("no tournament is held")
        }
    }

    #[test]
    fn verdicts_belong_to_their_items_in_every_batch() {
        let mut items = Vec::new();
        for n in 0..100usize {
            let filler = "z".repeat((n * 37) % 50);
            let right = n % 3 != 0;
            let label = if right == (n % 2 == 0) {
                Label::A
            } else {
                Label::B
            };
            let (a, b) = if n % 2 == 0 { ("!", "?") } else { ("?", "!") };
            items.push(item(
                &format!("{a}{filler}"),
                &format!("{b}{filler}"),
                label,
            ));
        }
        items.push(item("same", "same", Label::Tie));
        let options = JudgeEvalOptions {
            batch: 7,
            ..JudgeEvalOptions::default()
        };
        let (mut marks, mut judged) = (Marks::default(), 0);
        let progress = |count| judged += count;
        let report = evaluate("marks", &items, &mut marks, &options, progress).unwrap();
        assert_eq!((marks.largest, judged), (7, 101));
        assert_eq!((report.accuracy.hits, report.accuracy.total), (66, 100));
        assert_eq!(
            (report.consistent.hits, report.first_shown_wins.hits),
            (100, 100)
        );
        assert!((report.label_mass_mean.unwrap() - 1.0).abs() < 1e-6);
        assert_eq!(report.ties.auc, Some(1.0));
    }

    #[test]
    fn tables_are_aligned_and_json_holds_everything() {
        let items = [item("!", "?", Label::A), item("?", "?", Label::B)];
        let options = JudgeEvalOptions::default();
        let marks = &mut Marks::default();
        let mut report = |name: &str| evaluate(name, &items, marks, &options, |_| {}).unwrap();
        let records = items.iter().cloned().map(Record::Item).collect();
        let sets = vec![("a longer name".to_owned(), records)];
        let long = report(&"/a/very/long/place".repeat(9));
        assert!(
            JudgeTable(vec![long])
                .to_string()
                .lines()
                .all(|line| line.chars().count() <= 80)
        );
        let short = report("a");
        let mut table = evaluate_sets(marks, sets, &options, |_| {}).unwrap();
        table.0.insert(0, short);
        let text = table.to_string();
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
        assert!(text.contains("a longer name: 2 items, 0 ties"), "{text}");
        assert!(text.contains("95 %: 9.5-90.5"), "{text}");
        let values = text.lines().filter(|line| line.contains(" %  "));
        let ends: Vec<_> = values.map(|line| line.find(" %  ")).collect();
        assert!(ends.windows(2).all(|two| two[0] == two[1]), "{text}");
        let json = serde_json::to_string(&table).unwrap();
        let back: JudgeTable = serde_json::from_str(&json).unwrap();
        assert_eq!(back.0[0].name, "a");
        assert_eq!(back.0[1].accuracy.hits, 1);
        assert_eq!(back.0[1].calibration.bins.len(), 10);
        let empty = JudgeReport::new("none", &[], &[], &options);
        assert!(
            serde_json::to_string(&empty)
                .unwrap()
                .contains("\"items\":0")
        );
    }
}
