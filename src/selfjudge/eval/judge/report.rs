//! The report of a judge's evaluation: verdicts compared with labels, as numbers and as a table.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::JudgeEvalOptions;
use crate::eval::metrics::{Calibration, Share, auc, mean, quantile};
use judge::{JudgeItem, Label, PairVerdict};

/// The treatment of ties in the data.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TieReport {
    pub items: u64,
    /// Probability that `|p - 0.5|` is larger on a random non-tie than on a random tie.
    pub auc: Option<f64>,
    /// Share of ties with `|p - 0.5|` below the margin.
    pub called_on_ties: Share,
    /// Share of non-ties with `|p - 0.5|` below the margin, which are errors.
    pub called_on_others: Share,
}

/// The measurements on one set. Shares are over non-ties unless stated otherwise; a measure of nothing is null.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JudgeReport {
    pub name: String,
    pub items: u64,
    /// Right winner with both orders averaged. A verdict without a winner counts as wrong.
    pub accuracy: Share,
    /// Right winner from the record's own order alone.
    pub first_order: Share,
    /// Share of reads, over all items and orders, in which the first candidate wins: 0.5 without position bias.
    pub first_shown_wins: Share,
    /// Share of items, including ties, on which both orders name the same winner; identical answers are not counted.
    pub consistent: Share,
    /// Right winner among non-ties whose orders agree.
    pub accuracy_if_consistent: Share,
    /// Share of items in which the longer answer (in characters) is the right one; equal lengths count half.
    pub longer_wins: Option<f64>,
    /// How often the judge prefers the longer answer, without items of equal lengths.
    pub names_longer: Share,
    pub label_mass_mean: Option<f64>,
    pub label_mass_p5: Option<f64>,
    pub label_mass_min: Option<f64>,
    pub calibration: Calibration,
    pub ties: TieReport,
    /// Items whose prompt was cut to fit the model's context.
    pub cut: u64,
}

impl JudgeReport {
    /// Compares verdicts with labels; candidate `a` of a verdict is `a` of its item.
    ///
    /// Panics unless there is one verdict per item.
    pub fn new(
        name: &str,
        items: &[JudgeItem],
        verdicts: &[PairVerdict],
        options: &JudgeEvalOptions,
    ) -> Self {
        assert_eq!(
            items.len(),
            verdicts.len(),
            "one verdict an item, this is a bug"
        );
        let all = || items.iter().zip(verdicts);
        let decided = || all().filter(|(item, _)| item.label != Label::Tie);
        let right = |(item, verdict): (&JudgeItem, &PairVerdict)| {
            matches!(
                (item.label, verdict.winner),
                (Label::A, Some(0)) | (Label::B, Some(1))
            )
        };
        let length = |text: &str| text.chars().count();
        let longer: Vec<f64> = decided()
            .map(|(item, _)| {
                let (a, b) = (length(&item.a), length(&item.b));
                match a.cmp(&b) {
                    std::cmp::Ordering::Equal => 0.5,
                    order => f64::from(
                        (order == std::cmp::Ordering::Greater) == (item.label == Label::A),
                    ),
                }
            })
            .collect();
        let names_longer = all()
            .filter(|(item, _)| length(&item.a) != length(&item.b))
            .map(|(item, verdict)| match verdict.winner {
                Some(0) => length(&item.a) > length(&item.b),
                Some(_) => length(&item.b) > length(&item.a),
                None => false,
            });
        // An exactly even read counts as no win. Identical answers are not read.
        let reads = verdicts.iter().flat_map(|v| &v.orders);
        let first_shown = reads.map(|read| read.p_first > 0.5);
        let read = verdicts.iter().filter(|v| !v.orders.is_empty());
        let masses: Vec<f64> = read.map(|v| f64::from(v.label_mass)).collect();
        let answers: Vec<(f64, bool)> = decided()
            .map(|(item, verdict)| {
                let p = f64::from(verdict.p);
                (
                    p.max(1.0 - p),
                    if p == 0.5 {
                        false
                    } else {
                        (p > 0.5) == (item.label == Label::A)
                    },
                )
            })
            .collect();
        let margins = |tie: bool| -> Vec<f64> {
            all()
                .filter(|(item, _)| (item.label == Label::Tie) == tie)
                .map(|(_, verdict)| (f64::from(verdict.p) - 0.5).abs())
                .collect()
        };
        let (tied, untied) = (margins(true), margins(false));
        let called =
            |margins: &[f64]| Share::of(margins.iter().map(|margin| *margin < options.tie_margin));
        Self {
            name: name.to_owned(),
            items: items.len() as u64,
            accuracy: Share::of(decided().map(right)),
            first_order: Share::of(decided().map(|(item, verdict)| {
                match item.label {
                    Label::A => verdict
                        .orders
                        .first()
                        .is_some_and(|read| read.p_first > 0.5),
                    _ => verdict
                        .orders
                        .first()
                        .is_some_and(|read| read.p_first < 0.5),
                }
            })),
            first_shown_wins: Share::of(first_shown),
            consistent: Share::of(verdicts.iter().filter_map(|verdict| verdict.consistent)),
            accuracy_if_consistent: Share::of(
                decided()
                    .filter(|(_, verdict)| verdict.consistent == Some(true))
                    .map(right),
            ),
            longer_wins: mean(&longer),
            names_longer: Share::of(names_longer),
            label_mass_mean: mean(&masses),
            label_mass_p5: quantile(&masses, 0.05),
            label_mass_min: quantile(&masses, 0.0),
            calibration: Calibration::new(&answers, options.bins),
            ties: TieReport {
                items: tied.len() as u64,
                auc: auc(&untied, &tied),
                called_on_ties: called(&tied),
                called_on_others: called(&untied),
            },
            cut: verdicts.iter().filter(|verdict| verdict.truncated).count() as u64,
        }
    }
}

/// The reports of several sets; displayed as an aligned table of at most 80 columns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JudgeTable(pub Vec<JudgeReport>);

/// Columns of the terminal that the table must fit into.
const COLUMNS: usize = 80;

impl fmt::Display for JudgeTable {
    /// Writes one block per set: each measure with its value and its target.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let percent = |share: Option<f64>| {
            share.map_or_else(nothing, |share| format!("{:.1} %", 100.0 * share))
        };
        let number = |value: Option<f64>| value.map_or_else(nothing, |value| format!("{value:.3}"));
        for (at, report) in self.0.iter().enumerate() {
            if at > 0 {
                writeln!(f)?;
            }
            let accuracy = &report.accuracy;
            let counts = format!(": {} items, {} ties", report.items, report.ties.items);
            writeln!(
                f,
                "{}{counts}",
                ending(&report.name, COLUMNS - counts.chars().count())
            )?;
            let interval = match accuracy.low.zip(accuracy.high) {
                Some((low, high)) => format!("95 %: {:.1}-{:.1}", 100.0 * low, 100.0 * high),
                None => "nothing to measure: no item has a winner".to_owned(),
            };
            let auc = (report.ties.auc).map_or_else(nothing, |auc| format!("{auc:.2}"));
            for (measure, value, note) in [
                ("accuracy", percent(accuracy.share), &*interval),
                (
                    "orders agree",
                    percent(report.consistent.share),
                    "an untrained judge: below 50 %",
                ),
                (
                    "accuracy if they agree",
                    percent(report.accuracy_if_consistent.share),
                    "",
                ),
                (
                    "accuracy of one order",
                    percent(report.first_order.share),
                    "the record's order alone",
                ),
                (
                    "shown first wins",
                    percent(report.first_shown_wins.share),
                    "50 % without position bias",
                ),
                (
                    "longer is right",
                    percent(report.longer_wins),
                    "the baseline that picks the longer answer",
                ),
                ("label mass, mean", number(report.label_mass_mean), ""),
                (
                    "label mass, 5th percentile",
                    number(report.label_mass_p5),
                    "",
                ),
                ("label mass, least", number(report.label_mass_min), ""),
                (
                    "calibration error (ECE)",
                    number(report.calibration.ece),
                    "0 is calibrated",
                ),
                (
                    "AUC of ties",
                    auc,
                    "0.5: ties are judged as surely as others",
                ),
                ("cut to fit the context", report.cut.to_string(), ""),
            ] {
                let line = format!("  {measure:<26} {value:>8}  {note}");
                writeln!(f, "{}", line.trim_end())?;
            }
        }
        Ok(())
    }
}

/// Returns the text of a measure of nothing.
fn nothing() -> String {
    "n/a".to_owned()
}

/// Returns the end of a name that is too long.
fn ending(name: &str, most: usize) -> String {
    let length = name.chars().count();
    match length <= most {
        true => name.to_owned(),
        false => {
            let rest: String = name.chars().skip(length + 1 - most).collect();
            format!("…{rest}")
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use judge::fixtures::verdict;
    use judge::{Format, Record, read_records};
    use test_support::shared_data;
    use text::{Message, Role};

    pub(in crate::eval::judge) fn item(a: &str, b: &str, label: Label) -> JudgeItem {
        JudgeItem {
            id: None,
            messages: vec![Message::new(Role::User, "q")],
            a: a.into(),
            b: b.into(),
            label,
            principles: Vec::new(),
            rationale: None,
        }
    }

    #[test]
    fn a_report_by_hand() {
        let items = [
            item("long one", "x", Label::A),
            item("x", "long one", Label::A),
            item("x", "y", Label::B),
            item("x", "long one", Label::B),
            item("x", "y", Label::Tie),
        ];
        let verdicts = [
            verdict([0.9, 0.7], 1.0),
            verdict([0.3, 0.1], 0.9), // wrong, consistent
            verdict([0.6, 0.2], 0.8), // right, first shown wins in the first order only
            verdict([0.8, 0.4], 0.7), // wrong, inconsistent
            verdict([0.5, 0.6], 0.6),
        ];
        let options = JudgeEvalOptions {
            tie_margin: 0.08,
            bins: 2,
            ..JudgeEvalOptions::default()
        };
        let report = JudgeReport::new("hand", &items, &verdicts, &options);
        assert_eq!((report.items, report.ties.items), (5, 1));
        assert_eq!((report.accuracy.hits, report.accuracy.total), (2, 4));
        assert_eq!(report.first_order.hits, 1);
        // First and winning: a of items 1, 3, 4 in the first order; b of items 2, 3, 4 in the second.
        assert_eq!(
            (report.first_shown_wins.hits, report.first_shown_wins.total),
            (6, 10)
        );
        assert_eq!(
            (report.consistent.hits, report.accuracy_if_consistent.total),
            (2, 2)
        );
        assert_eq!(report.accuracy_if_consistent.hits, 1);
        // Right on items 1 and 4, wrong on 2, half on 3.
        assert_eq!(report.longer_wins, Some(2.5 / 4.0));
        assert_eq!(
            (report.names_longer.hits, report.names_longer.total),
            (2, 3)
        );
        assert!((report.label_mass_mean.unwrap() - 0.8).abs() < 1e-6);
        assert!((report.label_mass_min.unwrap() - 0.6).abs() < 1e-6);
        // Margins of non-ties: 0.3, 0.3, 0.1, 0.1; of the tie: 0.05.
        assert_eq!(report.ties.auc, Some(1.0));
        assert_eq!(
            (
                report.ties.called_on_ties.hits,
                report.ties.called_on_others.hits
            ),
            (1, 0)
        );
        // Confidences 0.8 right, 0.8 wrong, 0.6 right, 0.6 wrong.
        let ece = report.calibration.ece.unwrap();
        assert!((ece - (0.5 * 0.3 + 0.5 * 0.1)).abs() < 1e-5, "{ece}");
    }

    #[test]
    fn a_set_of_ties_has_no_accuracy() {
        let options = JudgeEvalOptions::default();
        let ties = [
            item("x", "y", Label::Tie),
            item("x", "long one", Label::Tie),
        ];
        let verdicts = [verdict([0.5, 0.6], 1.0), verdict([0.9, 0.7], 1.0)];
        let report = JudgeReport::new("ties", &ties, &verdicts, &options);
        let json = serde_json::to_value(&report).unwrap();
        for pointer in [
            "/accuracy/share",
            "/accuracy/low",
            "/first_order/share",
            "/accuracy_if_consistent/share",
            "/longer_wins",
            "/calibration/ece",
            "/calibration/bins/0/accuracy",
            "/ties/auc",
            "/ties/called_on_others/share",
        ] {
            assert_eq!(
                json.pointer(pointer),
                Some(&serde_json::Value::Null),
                "{pointer}"
            );
        }
        assert!(json["consistent"]["share"].is_number() && json["label_mass_mean"].is_number());
        let text = JudgeTable(vec![report]).to_string();
        let line = |measure: &str| {
            let line = text
                .lines()
                .find(|line| line.trim_start().starts_with(measure));
            line.unwrap_or_else(|| panic!("{text}")).to_owned()
        };
        assert!(
            line("accuracy ").contains("n/a  nothing to measure"),
            "{text}"
        );
        assert!(line("calibration error").contains("n/a"), "{text}");
        assert!(line("orders agree").contains('%'), "{text}");
        let empty = JudgeReport::new("none", &[], &[], &options);
        let text = JudgeTable(vec![empty]).to_string();
        assert!(!text.contains("0.0 %") && !text.contains("0.000"), "{text}");
    }

    #[test]
    #[cfg_attr(not(has_data), ignore = "needs ../shared/data")]
    fn the_length_baseline_is_the_documented_one_on_real_data() {
        // From the data's README, which rounds to whole percentages.
        for (file, percent) in [
            ("hh-helpful/valid.jsonl.gz", None),
            ("autoj/judge_dev.jsonl.gz", Some(71.0)),
            ("pandalm/judge_dev.jsonl.gz", Some(69.0)),
            ("llmbar/natural.jsonl.gz", Some(57.0)),
            ("llmbar/adversarial_gptinst.jsonl.gz", Some(11.0)),
        ] {
            let records = read_records(&shared_data(file), Format::Auto).unwrap();
            let items: Vec<JudgeItem> = records.into_iter().filter_map(Record::into_item).collect();
            let even = vec![verdict([0.5, 0.5], 1.0); items.len()];
            let report = JudgeReport::new(file, &items, &even, &JudgeEvalOptions::default());
            if let Some(percent) = percent {
                let longer = 100.0 * report.longer_wins.unwrap();
                assert!((longer - percent).abs() < 1.5, "{file}: {longer}");
            }
            assert_eq!(report.accuracy.hits, 0);
        }
    }
}
