//! Evaluation of the judge on labelled comparisons, with the "longer answer wins" baseline on the same items.

mod report;

use serde::{Deserialize, Serialize};

pub use report::{JudgeReport, JudgeTable, TieReport};

use judge::{Comparison, Judge, JudgeError, LabelLogprobs, Verdict};
use judge::{JudgeItem, Record};

/// The settings of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JudgeEvalOptions {
    /// A verdict with `|p - 0.5|` below this counts as a tie.
    pub tie_margin: f64,
    /// Number of bins of the calibration error.
    pub bins: usize,
    /// Number of comparisons per batch.
    pub batch: usize,
}

impl Default for JudgeEvalOptions {
    fn default() -> Self {
        Self {
            tie_margin: 0.1,
            bins: 10,
            batch: 64,
        }
    }
}

/// Judges labelled items with a scorer, which maps prompts and the two label ids to natural log-probabilities of the labels.
///
/// # Errors
/// Fails if encoding or the scorer fails.
pub fn evaluate<E>(
    name: &str,
    items: &[JudgeItem],
    judge: &Judge,
    options: &JudgeEvalOptions,
    mut score: impl FnMut(&[Vec<u32>], [u32; 2]) -> Result<Vec<LabelLogprobs>, E>,
) -> Result<JudgeReport, JudgeError>
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    // Items of similar length share a batch, to reduce padding and waiting.
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|&at| {
        let item = &items[at];
        item.a.len()
            + item.b.len()
            + item
                .messages
                .iter()
                .map(|message| message.content.len())
                .sum::<usize>()
    });
    let mut verdicts: Vec<Option<Verdict>> = vec![None; items.len()];
    for batch in order.chunks(options.batch.max(1)) {
        let comparisons: Vec<Comparison> = batch.iter().map(|&at| comparison(&items[at])).collect();
        for (&at, verdict) in batch.iter().zip(judge.judge(&comparisons, &mut score)?) {
            verdicts[at] = Some(verdict);
        }
    }
    let verdicts: Vec<Verdict> = verdicts.into_iter().flatten().collect();
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
pub fn evaluate_sets<E>(
    judge: &Judge,
    sets: Vec<(String, Vec<Record>)>,
    options: &JudgeEvalOptions,
    mut score: impl FnMut(&[Vec<u32>], [u32; 2]) -> Result<Vec<LabelLogprobs>, E>,
) -> Result<JudgeTable, JudgeError>
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let reports = sets.into_iter().map(|(name, records)| {
        let items: Vec<JudgeItem> = records.into_iter().filter_map(Record::into_item).collect();
        evaluate(&name, &items, judge, options, &mut score)
    });
    Ok(JudgeTable(reports.collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use super::report::tests::item;
    use super::*;
    use judge::{JudgeOptions, fixtures};
    use judge::{Label, PrincipleTable};

    fn judge() -> Judge {
        let table = PrincipleTable::default();
        let (tokenizer, chat) = (fixtures::tokenizer(), fixtures::chat());
        Judge::new(
            tokenizer,
            chat,
            fixtures::template(),
            table,
            JudgeOptions::default(),
            4096,
        )
        .unwrap()
    }

    /// Scores by the prompt's text: the candidate with more exclamation marks wins with 0.8.
    fn marks(prompts: &[Vec<u32>], _: [u32; 2]) -> Result<Vec<LabelLogprobs>, std::io::Error> {
        let read = |ids: &Vec<u32>| {
            let text = fixtures::decode(ids);
            let (first, second) = text.split_once("\n2: ").unwrap();
            let p: f32 = match first.matches('!').count().cmp(&second.matches('!').count()) {
                std::cmp::Ordering::Greater => 0.8,
                std::cmp::Ordering::Equal => 0.5,
                std::cmp::Ordering::Less => 0.2,
            };
            [p.ln(), (1.0 - p).ln()]
        };
        Ok(prompts.iter().map(read).collect())
    }

    #[test]
    fn verdicts_return_to_their_items_from_sorted_batches() {
        let mut items = Vec::new();
        for n in 0..100usize {
            // Lengths vary up and down, so that sorting changes the order.
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
        let mut largest = 0;
        let report = evaluate(
            "marks",
            &items,
            &judge(),
            &options,
            |prompts: &[Vec<u32>], labels| {
                largest = largest.max(prompts.len());
                marks(prompts, labels)
            },
        )
        .unwrap();
        assert_eq!(largest, 14);
        assert_eq!((report.accuracy.hits, report.accuracy.total), (66, 100));
        assert_eq!(
            (report.consistent.hits, report.first_shown_wins.hits),
            (100, 100)
        );
        assert!((report.label_mass_mean - 1.0).abs() < 1e-6);
        assert_eq!(report.ties.auc, Some(1.0));
    }

    #[test]
    fn tables_are_aligned_and_json_holds_everything() {
        let items = [item("!", "?", Label::A), item("?", "?", Label::B)];
        let options = JudgeEvalOptions::default();
        let report = |name: &str| evaluate(name, &items, &judge(), &options, marks).unwrap();
        let records = items.iter().cloned().map(Record::Item).collect();
        let sets = vec![("a longer name".to_owned(), records)];
        let long = report(&"/a/very/long/place".repeat(9));
        assert!(
            JudgeTable(vec![long])
                .to_string()
                .lines()
                .all(|line| line.chars().count() <= 80)
        );
        let mut table = evaluate_sets(&judge(), sets, &options, marks).unwrap();
        table.0.insert(0, report("a"));
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
