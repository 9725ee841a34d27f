//! The judge without its model: what is asked, and what follows from the answers.
//!
//! A comparison becomes prompts ([`template`], [`prompt`], [`fit`]), one for each principle and order; the log-probabilities of the two
//! label tokens ([`label`]) after each prompt are joined over orders and principles ([`verdict`]). [`bracket`] finds the best of many
//! answers by such comparisons. Reading the log-probabilities is the caller's: this crate does not depend on a model.

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
#[cfg(test)]
mod shared_tests;
mod shown;
mod template;
mod verdict;
#[cfg(test)]
mod verdict_tests;

use std::path::Path;

pub use bracket::{Bracket, Match, Method, Outcome, Winner};
pub use bradley_terry::{Game, bradley_terry};
pub use error::JudgeError;
pub use fit::{FittedPrompt, fit, fit_with_parts, tokens_within};
pub use label::LabelTokens;
pub use options::OptionReader;
pub use principles::{
    Polarity, Principle, PrincipleError, PrincipleTable, WEIGHTS, WeightedPrinciple,
};
pub use prompt::{JudgePrompt, PROMPT_DATE};
pub use records::{
    FileKind, Format, JudgeItem, Label, OnUnusable, PlainText, PreferencePair, RankedDraw,
    RankedPrompt, RankedResponse, RankedSet, Rating, Record, RecordError, RecordReader, ShapeError,
    Skipped, read_pairs, read_records,
};
pub use template::{ContextStyle, JudgeTemplate, TEMPLATE_FILE};
pub use verdict::{
    LabelLogprobs, MIN_LABEL_MASS, OnDisagreement, Orders, PairVerdict, PrincipleSource,
    PrincipleVerdict, ShownRead, sigmoid,
};

use text::{ChatTemplate, EncodedParts, Message, Tokenizer};

/// A comparison of two answers to one conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison {
    pub context: Vec<Message>,
    pub a: String,
    pub b: String,
    /// Names from the judge's principle table, or texts of principles; empty means the template's default.
    pub principles: Vec<String>,
}

/// The order in which the two answers of a comparison are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// `a` first.
    Given,
    /// `b` first.
    Swapped,
}

impl Order {
    pub const BOTH: [Self; 2] = [Self::Given, Self::Swapped];
}

/// The token prompts of one comparison: for each principle (or once, for the default question) one prompt per requested order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EncodedComparison {
    pub prompts: Vec<Vec<u32>>,
    /// For each prompt the number of tokens before the candidate shown second: the prefix shared with every other comparison that shows
    /// the same candidate first.
    pub shared: Vec<usize>,
    /// Whether any prompt was cut to fit.
    pub cut: bool,
}

/// The judge without its model: tokenizer, templates, labels and principles.
#[derive(Clone)]
pub struct Judge {
    tokenizer: Tokenizer,
    chat: ChatTemplate,
    template: JudgeTemplate,
    labels: LabelTokens,
    /// The reason why no judge prompt can be built, if so; the labels are then unset.
    unusable: Option<String>,
    table: PrincipleTable,
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
        max_context: usize,
    ) -> Result<Self, JudgeError> {
        let template = JudgeTemplate::from_model_dir(dir)?;
        let table = principles_from_model_dir(dir)?;
        Self::new(tokenizer, chat, template, table, max_context)
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
        let parts = EncodedParts::new();
        let mut encoded = EncodedComparison::default();
        let names = comparison.principles.iter();
        let asked = names.map(|name| Some(WeightedPrinciple::named(&self.table, name).text));
        let default = comparison.principles.is_empty().then_some(None);
        for principle in asked.chain(default) {
            self.encode_shown(
                &context,
                [&a, &b],
                principle.as_deref(),
                orders,
                &parts,
                &mut encoded,
            )?;
        }
        Ok(encoded)
    }

    /// Appends the prompts of a pair under one principle, or the default one, to `encoded`. The texts are already cut to the part that
    /// prompts show: see [`Self::shown_answer`] and [`Self::shown_context`]. Texts that are compared often are thus cut only once, and
    /// with the same `parts` encoded only once.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_shown(
        &self,
        context: &str,
        [a, b]: [&str; 2],
        principle: Option<&str>,
        orders: &[Order],
        parts: &EncodedParts,
        encoded: &mut EncodedComparison,
    ) -> Result<(), JudgeError> {
        self.check()?;
        let principle = principle.map(str::to_owned);
        for order in orders {
            let (first, second) = match order {
                Order::Given => (a, b),
                Order::Swapped => (b, a),
            };
            let prompt = self.template.render_shown(
                &self.chat,
                context,
                first,
                second,
                principle.as_slice(),
            )?;
            let fitted = fit_with_parts(&self.tokenizer, &prompt, self.max_prompt, parts)?;
            encoded.cut |= fitted.cut;
            encoded.prompts.push(fitted.ids);
            encoded.shared.push(fitted.b.start);
        }
        Ok(())
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

    fn judge(max_context: usize) -> Judge {
        let table =
            PrincipleTable::from_toml("[[principle]]\nid = 'short'\ntext = 'Shorter wins.'")
                .unwrap();
        let (tokenizer, chat) = (fixtures::tokenizer(), fixtures::chat());
        Judge::new(tokenizer, chat, fixtures::template(), table, max_context).unwrap()
    }

    fn comparison(a: &str, b: &str, principles: &[&str]) -> Comparison {
        Comparison {
            context: vec![Message::new(Role::User, "q")],
            a: a.into(),
            b: b.into(),
            principles: principles.iter().map(|name| (*name).into()).collect(),
        }
    }

    #[test]
    fn comparisons_with_the_same_first_candidate_share_all_before_the_second() {
        let judge = judge(512);
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
        let judge = judge(512);
        let pair = comparison("a", "b", &[]);
        let both = judge.encode(&pair).unwrap();
        for (at, order) in Order::BOTH.into_iter().enumerate() {
            let one = judge.encode_in(&pair, &[order]).unwrap();
            assert_eq!(one.prompts, both.prompts[at..=at]);
            assert_eq!(one.shared, both.shared[at..=at]);
        }
    }

    #[test]
    fn principles_are_asked_one_by_one() {
        let pair = comparison("a", "b", &["short", "Be kind."]);
        let encoded = judge(512).encode(&pair).unwrap();
        let texts: Vec<String> = encoded
            .prompts
            .iter()
            .map(|ids| fixtures::decode(ids))
            .collect();
        assert_eq!(texts.len(), 4);
        assert!(texts[1].contains("By: Shorter wins.\n") && texts[1].contains("1: b\n2: a"));
        assert!(texts[2].contains("By: Be kind.\n") && texts[2].contains("1: a\n2: b"));
        let default = judge(512).encode(&comparison("a", "b", &[])).unwrap();
        assert_eq!(default.prompts.len(), 2);
        assert!(fixtures::decode(&default.prompts[0]).contains("By: best.\n"));
    }

    #[test]
    fn long_answers_are_cut_and_flagged() {
        let judge = judge(80);
        let (long, short) = (
            comparison(&"a".repeat(200), "b", &[]),
            comparison("a", "b", &[]),
        );
        let encoded = judge.encode(&long).unwrap();
        assert!(encoded.cut);
        assert!(encoded.prompts.iter().all(|prompt| prompt.len() <= 79));
        assert!(!judge.encode(&short).unwrap().cut);
    }
}
