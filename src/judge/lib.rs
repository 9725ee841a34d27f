//! The judge: takes two answers and returns the probability that the first is better.
//!
//! A comparison becomes prompts ([`template`], [`prompt`], [`fit`]), in both orders; a scorer returns the log-probabilities of the two
//! label tokens ([`label`]) after each prompt; [`verdict`] averages over orders and votes over principles. The scorer is a closure, so
//! this module does not depend on a model. [`bracket`] and [`tournament`] find the best of many answers by such comparisons.

#[cfg(test)]
mod attack_tests;
mod bracket;
mod bradley_terry;
mod error;
mod fit;
#[cfg(any(test, feature = "testing"))]
pub mod fixtures;
mod frame;
mod label;
mod options;
mod principles;
mod prompt;
mod records;
mod shown;
mod template;
mod tournament;
mod verdict;

use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use bracket::{Bracket, Match, Method, Outcome};
pub use bradley_terry::{Game, bradley_terry};
pub use error::JudgeError;
pub use fit::{FittedPrompt, fit, tokens_within};
pub use label::LabelTokens;
pub use options::OptionReader;
pub use principles::{Polarity, Principle, PrincipleError, PrincipleTable, WEIGHTS};
pub use prompt::{JudgePrompt, PROMPT_DATE};
pub use records::{
    FileKind, Format, JudgeItem, Label, OnUnusable, PlainText, PreferencePair, RankedDraw,
    RankedPrompt, RankedResponse, RankedSet, Rating, Record, RecordError, RecordReader, ShapeError,
    Skipped, read_pairs, read_records,
};
pub use template::{ContextStyle, JudgeTemplate, TEMPLATE_FILE};
pub use tournament::{Duel, Played, Standing, run_many};
pub use verdict::{LabelLogprobs, Rule, Verdict, Winner, decide, lead, sigmoid};

use text::Message;
use text::{ChatTemplate, Tokenizer};

/// A comparison of two answers to one conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison {
    pub context: Vec<Message>,
    pub a: String,
    pub b: String,
    /// Names from the judge's principle table, or texts of principles; empty means the template's default.
    pub principles: Vec<String>,
}

/// The prompts of a comparison under several principles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Principles {
    /// One prompt that lists all principles.
    #[default]
    Joint,
    /// One prompt per principle, and a vote (SELF-JUDGE's released code).
    Vote,
}

/// The options that determine how verdicts are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JudgeOptions {
    pub rule: Rule,
    pub principles: Principles,
    /// Whether each order's label probabilities are scaled to sum to one before averaging; the paper does not do so.
    pub renormalise: bool,
}

/// The order in which the two answers of a comparison are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// `a` first.
    Given,
    /// `b` first.
    Turned,
}

impl Order {
    pub const BOTH: [Self; 2] = [Self::Given, Self::Turned];
}

/// The token prompts of one comparison: for each principle (or once, if joint) one prompt per requested order, in that order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedComparison {
    pub prompts: Vec<Vec<u32>>,
    /// For each prompt the number of tokens before the candidate shown second: the prefix shared with every other comparison that shows
    /// the same candidate first.
    pub shared: Vec<usize>,
    /// Whether any prompt was cut to fit.
    pub cut: bool,
}

/// The judge without its model: tokenizer, templates, labels, principles and options.
#[derive(Clone)]
pub struct Judge {
    tokenizer: Tokenizer,
    chat: ChatTemplate,
    template: JudgeTemplate,
    labels: LabelTokens,
    /// The reason why no judge prompt can be built, if so; the labels are then unset.
    unusable: Option<String>,
    table: PrincipleTable,
    options: JudgeOptions,
    /// Length limit of a prompt in tokens; the label comes after it.
    max_prompt: usize,
}

impl Judge {
    /// Creates a judge. `max_context` is the number of positions of the model, one of which the label takes.
    ///
    /// # Errors
    /// If the template's labels are not one token each, see [`LabelTokens::resolve`].
    pub fn new(
        tokenizer: Tokenizer,
        chat: ChatTemplate,
        template: JudgeTemplate,
        table: PrincipleTable,
        options: JudgeOptions,
        max_context: usize,
    ) -> Result<Self, JudgeError> {
        let labels = LabelTokens::resolve(&tokenizer, &chat, &template)?;
        Ok(Self {
            tokenizer,
            chat,
            template,
            labels,
            unusable: None,
            table,
            options,
            max_prompt: max_context.saturating_sub(1),
        })
    }

    /// Creates the judge of a model directory, from its template and principle table or the built-in ones.
    ///
    /// # Errors
    /// If a file is invalid, or as [`Self::new`].
    pub fn from_model_dir(
        dir: &Path,
        tokenizer: Tokenizer,
        chat: ChatTemplate,
        options: JudgeOptions,
        max_context: usize,
    ) -> Result<Self, JudgeError> {
        let template = JudgeTemplate::from_model_dir(dir)?;
        let table = principles_from_model_dir(dir)?;
        Self::new(tokenizer, chat, template, table, options, max_context)
    }

    /// Creates a judge as [`Self::from_model_dir`]; if no prompt can be built with these templates, the judge answers every comparison
    /// with [`JudgeError::Unusable`] and the reason.
    ///
    /// # Errors
    /// If a file is invalid.
    pub fn from_model_dir_or_unusable(
        dir: &Path,
        tokenizer: Tokenizer,
        chat: ChatTemplate,
        options: JudgeOptions,
        max_context: usize,
    ) -> Result<Self, JudgeError> {
        let template = JudgeTemplate::from_model_dir(dir)?;
        let (labels, unusable) = match LabelTokens::resolve(&tokenizer, &chat, &template) {
            Ok(labels) => (labels, None),
            Err(error) => (LabelTokens { ids: [0; 2] }, Some(error.to_string())),
        };
        Ok(Self {
            table: principles_from_model_dir(dir)?,
            tokenizer,
            chat,
            template,
            labels,
            unusable,
            options,
            max_prompt: max_context.saturating_sub(1),
        })
    }

    /// Returns why the model cannot judge, if it cannot.
    pub fn unusable(&self) -> Option<&str> {
        self.unusable.as_deref()
    }

    pub fn labels(&self) -> LabelTokens {
        self.labels
    }

    pub fn template(&self) -> &JudgeTemplate {
        &self.template
    }

    /// Returns the table of named principles.
    pub fn table(&self) -> &PrincipleTable {
        &self.table
    }

    pub fn options(&self) -> JudgeOptions {
        self.options
    }

    /// Renders and encodes a comparison in both orders.
    ///
    /// # Errors
    /// If a template or the tokenizer fails, or the model's context has no room for the frame.
    pub fn encode(&self, comparison: &Comparison) -> Result<EncodedComparison, JudgeError> {
        self.encode_in(comparison, &Order::BOTH)
    }

    /// Encodes a comparison as [`Self::encode`], in the given orders.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_in(
        &self,
        comparison: &Comparison,
        orders: &[Order],
    ) -> Result<EncodedComparison, JudgeError> {
        self.check()?;
        let context = self.shown_context(&comparison.context)?;
        let (a, b) = (
            self.shown_answer(&comparison.a)?,
            self.shown_answer(&comparison.b)?,
        );
        self.encode_shown(&context, [&a, &b], &comparison.principles, orders)
    }

    /// Encodes as [`Self::encode_in`], from texts that are already cut to the part that prompts show: see [`Self::shown_answer`] and
    /// [`Self::shown_context`]. Texts that are compared often are thus cut only once.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_shown(
        &self,
        context: &str,
        [a, b]: [&str; 2],
        principles: &[String],
        orders: &[Order],
    ) -> Result<EncodedComparison, JudgeError> {
        self.check()?;
        let texts: Vec<String> = principles
            .iter()
            .map(|name| self.table.text(name).to_owned())
            .collect();
        let asked: Vec<&[String]> = match self.options.principles {
            Principles::Vote if !texts.is_empty() => texts.chunks(1).collect(),
            _ => vec![&texts],
        };
        let mut encoded = EncodedComparison {
            prompts: Vec::with_capacity(orders.len() * asked.len()),
            shared: Vec::with_capacity(orders.len() * asked.len()),
            cut: false,
        };
        for principles in asked {
            for order in orders {
                let (first, second) = match order {
                    Order::Given => (a, b),
                    Order::Turned => (b, a),
                };
                let prompt = self
                    .template
                    .render_shown(&self.chat, context, first, second, principles)?;
                let fitted = fit(&self.tokenizer, &prompt, self.max_prompt)?;
                encoded.cut |= fitted.cut;
                encoded.prompts.push(fitted.ids);
                encoded.shared.push(fitted.b.start);
            }
        }
        Ok(encoded)
    }

    /// Returns an error if the judge is unusable.
    ///
    /// # Errors
    /// [`JudgeError::Unusable`].
    pub fn check(&self) -> Result<(), JudgeError> {
        match &self.unusable {
            Some(reason) => Err(JudgeError::Unusable(reason.clone())),
            None => Ok(()),
        }
    }

    /// Judges many comparisons with one call of `score`, which takes prompts and returns the label log-probabilities after each.
    ///
    /// # Errors
    /// If encoding or the scorer fails, or the scorer returns a number of rows that is not the number of prompts.
    pub fn judge<E>(
        &self,
        comparisons: &[Comparison],
        mut score: impl FnMut(&[Vec<u32>], [u32; 2]) -> Result<Vec<LabelLogprobs>, E>,
    ) -> Result<Vec<Verdict>, JudgeError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let encoded = comparisons
            .par_iter()
            .map(|comparison| self.encode(comparison))
            .collect::<Result<Vec<_>, _>>()?;
        let mut prompts = Vec::with_capacity(2 * encoded.len());
        let mut shapes = Vec::with_capacity(encoded.len());
        for comparison in encoded {
            shapes.push((comparison.prompts.len(), comparison.cut));
            prompts.extend(comparison.prompts);
        }
        let logprobs =
            score(&prompts, self.labels.ids).map_err(|error| JudgeError::Scorer(error.into()))?;
        if logprobs.len() != prompts.len() {
            return Err(JudgeError::VerdictCount {
                expected: prompts.len(),
                got: logprobs.len(),
            });
        }
        let (pairs, _) = logprobs.as_chunks::<2>();
        let mut rest = pairs;
        let verdicts = shapes.into_iter().map(|(count, cut)| {
            let (reads, later) = rest.split_at(count / 2);
            rest = later;
            let verdict = decide(reads, self.options.rule, self.options.renormalise);
            Verdict { cut, ..verdict }
        });
        Ok(verdicts.collect())
    }
}

/// Reads the principle table of a model directory (`principles.toml`); returns the built-in table if there is no such file.
///
/// # Errors
/// If the file exists and is not a valid table.
pub fn principles_from_model_dir(dir: &Path) -> Result<PrincipleTable, JudgeError> {
    let path = dir.join("principles.toml");
    match path.try_exists() {
        Ok(false) => Ok(PrincipleTable::default()),
        _ => PrincipleTable::from_file(&path).map_err(|error| {
            JudgeError::Principles(match error {
                PrincipleError::Io { .. } => error.to_string(),
                other => format!("{}: {other}", path.display()),
            })
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use text::Role;

    fn judge(options: JudgeOptions, max_context: usize) -> Judge {
        let table =
            PrincipleTable::from_toml("[[principle]]\nid = 'short'\ntext = 'Shorter wins.'")
                .unwrap();
        let (tokenizer, chat) = (fixtures::tokenizer(), fixtures::chat());
        Judge::new(
            tokenizer,
            chat,
            fixtures::template(),
            table,
            options,
            max_context,
        )
        .unwrap()
    }

    fn comparison(a: &str, b: &str, principles: &[&str]) -> Comparison {
        Comparison {
            context: vec![Message::new(Role::User, "q")],
            a: a.into(),
            b: b.into(),
            principles: principles.iter().map(|name| (*name).into()).collect(),
        }
    }

    /// A scorer that decodes the prompt: the longer candidate wins with 0.9, and the one shown first gets 0.05 more.
    fn longer(
        prompts: &[Vec<u32>],
        labels: [u32; 2],
    ) -> Result<Vec<LabelLogprobs>, std::io::Error> {
        assert_eq!(labels, fixtures::LABELS);
        let score = |ids: &Vec<u32>| {
            let text = fixtures::decode(ids);
            let part = |from: &str, to: &str| {
                text.split(from)
                    .nth(1)
                    .unwrap()
                    .split(to)
                    .next()
                    .unwrap()
                    .len()
            };
            let first = part("\n1: ", "\n2: ") > part("\n2: ", "\nWhich?");
            let p = if first { 0.95f32 } else { 0.15 };
            [p.ln(), (1.0 - p).ln()]
        };
        Ok(prompts.iter().map(score).collect())
    }

    #[test]
    fn comparisons_are_judged_in_both_orders() {
        let judge = judge(JudgeOptions::default(), 512);
        let verdicts = judge
            .judge(
                &[
                    comparison("long answer", "short", &[]),
                    comparison("x", "longer", &[]),
                ],
                longer,
            )
            .unwrap();
        assert_eq!(verdicts[0].winner, Winner::A);
        assert!((verdicts[0].p - 0.9).abs() < 1e-5);
        assert!(
            (verdicts[0].orders[0] - 0.95).abs() < 1e-5
                && (verdicts[0].orders[1] - 0.85).abs() < 1e-5
        );
        assert_eq!(verdicts[1].winner, Winner::B);
        assert!(
            verdicts
                .iter()
                .all(|verdict| verdict.consistent && !verdict.cut)
        );
    }

    #[test]
    fn comparisons_with_the_same_first_candidate_share_all_before_the_second() {
        let judge = judge(JudgeOptions::default(), 512);
        let [one, other] = ["b", "cc"].map(|b| judge.encode(&comparison("a", b, &[])).unwrap());
        let shared = one.shared[0];
        assert_eq!(other.shared[0], shared);
        assert_eq!(one.prompts[0][..shared], other.prompts[0][..shared]);
        assert_ne!(one.prompts[0][shared], other.prompts[0][shared]);
        // The other order begins with the other candidate.
        assert_ne!(one.prompts[1][..shared], other.prompts[1][..shared]);
    }

    #[test]
    fn one_order_is_encoded_as_it_is_among_both() {
        let judge = judge(JudgeOptions::default(), 512);
        let pair = comparison("a", "b", &[]);
        let both = judge.encode(&pair).unwrap();
        for (at, order) in Order::BOTH.into_iter().enumerate() {
            let one = judge.encode_in(&pair, &[order]).unwrap();
            assert_eq!(one.prompts, both.prompts[at..=at]);
            assert_eq!(one.shared, both.shared[at..=at]);
        }
    }

    #[test]
    fn principles_are_joined_or_asked_one_by_one() {
        let pair = comparison("a", "b", &["short", "Be kind."]);
        let joint = judge(JudgeOptions::default(), 512).encode(&pair).unwrap();
        assert_eq!(joint.prompts.len(), 2);
        assert!(fixtures::decode(&joint.prompts[0]).contains("By: * Shorter wins.\n* Be kind.\n"));
        let options = JudgeOptions {
            principles: Principles::Vote,
            ..JudgeOptions::default()
        };
        let voted = judge(options, 512);
        let encoded = voted.encode(&pair).unwrap();
        let texts: Vec<String> = encoded
            .prompts
            .iter()
            .map(|ids| fixtures::decode(ids))
            .collect();
        assert_eq!(texts.len(), 4);
        assert!(texts[1].contains("By: Shorter wins.\n") && texts[1].contains("1: b\n2: a"));
        assert!(texts[2].contains("By: Be kind.\n") && texts[2].contains("1: a\n2: b"));
        // Comparisons with different numbers of principles share one batch.
        let verdicts = voted
            .judge(
                &[
                    comparison("aaa", "b", &[]),
                    pair,
                    comparison("a", "bbb", &["short"]),
                ],
                longer,
            )
            .unwrap();
        assert_eq!(verdicts.len(), 3);
        assert_eq!(
            (verdicts[0].winner, verdicts[2].winner),
            (Winner::A, Winner::B)
        );
    }

    #[test]
    fn long_answers_are_cut_and_flagged() {
        let judge = judge(JudgeOptions::default(), 80);
        let (long, short) = (
            comparison(&"a".repeat(200), "b", &[]),
            comparison("a", "b", &[]),
        );
        let encoded = judge.encode(&long).unwrap();
        assert!(encoded.cut);
        assert!(encoded.prompts.iter().all(|prompt| prompt.len() <= 79));
        let verdicts = judge.judge(&[short, long], longer).unwrap();
        assert_eq!([verdicts[0].cut, verdicts[1].cut], [false, true]);
    }

    #[test]
    fn scorer_failures_and_short_answers_are_errors() {
        let judge = judge(JudgeOptions::default(), 512);
        let pairs = [comparison("a", "b", &[])];
        let error = judge
            .judge(&pairs, |_, _| Err(std::io::Error::other("out of memory")))
            .unwrap_err();
        assert!(error.to_string().contains("out of memory"));
        let error = judge
            .judge(&pairs, |_, _| Ok::<_, std::io::Error>(vec![[0.0; 2]]))
            .unwrap_err();
        assert!(matches!(
            error,
            JudgeError::VerdictCount {
                expected: 2,
                got: 1
            }
        ));
    }
}
