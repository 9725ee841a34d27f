//! Encoding of preference records into token ids: the data of an offline run.
//!
//! The prompt holds the tokens that the server would give the model, the completion those that the model would have to answer with,
//! including the end-of-turn token: the rest of the rendered conversation with the answer, encoded after the prompt's tokens. If a
//! template opens the answer in the prompt (`<think>`) but omits this in a finished turn, the prompt ends before it, as in TRL. Control
//! tokens in answers are encoded as control tokens, since the model is to write them. A completion that has to be cut loses its end, and
//! gets no other. Records of plain strings are read as TRL reads them ([`crate::plain`]), or as a chat if the run is configured
//! so.

use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::run::DpoRunConfig;
use super::{PairError, PairExample};
use crate::TrainError;
use crate::config::DataFile;
use crate::manifest::DataDigest;
use crate::plain::{PlainEnd, spells_control_tokens, warn_of_control_tokens};
use crate::records::{
    FileCounts, chat_template, pairs, refuse_unreadable, skipped, warn_of_no_end,
};
use crate::turn::{shared_beginning, without_trailing_space};
use judge::{PROMPT_DATE, PlainText, PreferencePair, tokens_within};
use model::{ModelConfig, stop_ids};
use text::{ChatTemplate, Message, OwnTrust, RenderOptions, Rendered, Role, TextError, Tokenizer};

/// Counts of the records by outcome (`data.json`).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct DataReport {
    /// Pairs read.
    pub pairs: u64,
    /// Pairs trained on.
    pub kept: u64,
    /// Pairs kept with a completion that lost its end.
    pub cut: u64,
    /// Dropped: a completion is empty.
    pub empty: u64,
    /// Dropped: the completions are equal, originally or after being cut.
    pub equal: u64,
    /// Dropped: the prompt alone fills `max_length`.
    pub too_long: u64,
    /// Dropped: the template cannot render the conversation, or its tokens do not begin with the prompt's.
    pub refused: u64,
    /// Uncut completions that do not end with a token at which the server stops.
    #[serde(default)]
    pub endless: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_refusal: Option<String>,
    /// Records that could not be read as pairs: of an unknown format, of two different conversations, or with an unsupported column.
    #[serde(default)]
    pub unusable: u64,
    /// File, position and reason of the first unusable record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_unusable: Option<String>,
    /// Pairs of plain strings.
    #[serde(default)]
    pub plain: u64,
    /// Pairs of plain strings whose text holds control tokens.
    #[serde(default)]
    pub plain_control: u64,
}

/// The reason why a pair is dropped.
#[derive(Debug, thiserror::Error)]
enum Dropped {
    #[error(transparent)]
    Pair(#[from] PairError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error("the chat template's prompt is not a prefix of the conversation with its answer")]
    Prefix,
    #[error("a conversation needs a chat template: {0}")]
    NoTemplate(String),
    #[error(
        "the prompt alone has {tokens} tokens, but prompt and completion together may have at most {max} (max_length, or the model's \
         context)"
    )]
    PromptTooLong { tokens: usize, max: usize },
    #[error("soft_labels: the margin {0} is not a probability between 0 and 1")]
    Margin(f64),
}

/// The encoded pairs, their report and the digests of their files.
pub(super) struct Built {
    pub examples: Vec<PairExample>,
    pub report: DataReport,
    pub data: Vec<DataDigest>,
}

/// Reads and encodes the data of a run.
pub(super) fn build(
    config: &DpoRunConfig,
    model_dir: &Path,
    model: &ModelConfig,
) -> Result<Built, TrainError> {
    let text = |e: TextError| TrainError::Data(e.to_string());
    let tokenizer = Tokenizer::from_file(&model_dir.join("tokenizer.json")).map_err(text)?;
    let encoder = Encoder {
        // The adapter is served with the base model's own template.
        stop_ids: stop_ids(
            model,
            &tokenizer,
            model_dir,
            &ChatTemplate::of_model_dir(model_dir).map_err(text)?,
        )
        .map_err(text)?,
        tokenizer,
        chat: chat_template(config.chat_template.as_deref(), model_dir).map_err(|e| e.to_string()),
        plain: config.plain,
        plain_end: PlainEnd::from_model_dir(model_dir).map_err(text)?,
        soft_labels: config.soft_labels,
        max_length: config.max_length.min(model.spec.max_context()),
        model,
    };
    if encoder.max_length < config.max_length {
        tracing::info!(
            "max_length is {}, but the model's context is {}: longer pairs are cut to the context",
            config.max_length,
            encoder.max_length
        );
    }
    let mut counts = vec![FileCounts::default(); config.data.len()];
    let mut built = Built {
        examples: Vec::new(),
        report: DataReport::default(),
        data: Vec::new(),
    };
    let mut whole = 0;
    for (at, (file, counts)) in config.data.iter().zip(&mut counts).enumerate() {
        let file = DataFile {
            format: file.format,
            ..DataFile::new(file.path.clone())
        };
        let read: Vec<PreferencePair> = pairs(&file, at, config.dpo.seed, counts)
            .collect::<Result<_, _>>()
            .map_err(|e| TrainError::Data(e.to_string()))?;
        built.data.push(DataDigest::of(&file.path, counts.records)?);
        let encoded: Vec<_> = read
            .par_iter()
            .map(|pair| {
                (
                    pair.plain,
                    encoder.is_controlled(pair),
                    encoder.encode(pair),
                )
            })
            .collect();
        for (plain, controlled, result) in encoded {
            built.report.pairs += 1;
            built.report.plain += u64::from(plain);
            built.report.plain_control += u64::from(controlled);
            match result {
                Ok((example, kept)) => {
                    built.report.kept += 1;
                    built.report.cut += u64::from(kept.cut > 0);
                    built.report.endless += kept.endless;
                    whole += 2 - kept.cut;
                    built.examples.push(example);
                }
                Err(why) => built.report.drop(&why),
            }
        }
    }
    refuse_unreadable(&counts)?;
    let skipped = skipped(&counts);
    (built.report.unusable, built.report.first_unusable) = (skipped.count, skipped.first);
    warn_of_control_tokens(built.report.plain_control, config.plain == PlainText::Raw);
    if built.examples.is_empty() {
        if built.report.pairs == 0 {
            return Err(TrainError::Data(
                "the data contain no preference pair".to_owned(),
            ));
        }
        let why = built.report.first_refusal.take();
        return Err(TrainError::Data(format!(
            "none of {} pairs can be trained on{}",
            built.report.pairs,
            why.map_or_else(String::new, |why| format!("; the first: {why}"))
        )));
    }
    warn_of_no_end(built.report.endless, whole, &encoder.stop_ids);
    Ok(built)
}

impl DataReport {
    fn drop(&mut self, why: &Dropped) {
        match why {
            Dropped::Pair(PairError::Empty(_)) => self.empty += 1,
            Dropped::Pair(PairError::Equal) => self.equal += 1,
            Dropped::Pair(PairError::TooLong { .. }) | Dropped::PromptTooLong { .. } => {
                self.too_long += 1;
            }
            _ => self.refused += 1,
        }
        self.first_refusal.get_or_insert_with(|| why.to_string());
    }
}

struct Encoder<'a> {
    tokenizer: Tokenizer,
    /// The chat template, or the reason why the model has none: plain strings do not need one.
    chat: Result<ChatTemplate, String>,
    plain: PlainText,
    plain_end: PlainEnd,
    soft_labels: bool,
    /// Limit of a sequence in tokens, at most the model's context.
    max_length: usize,
    stop_ids: Vec<u32>,
    model: &'a ModelConfig,
}

/// Counts over the two completions of a pair.
#[derive(Default)]
struct Kept {
    /// Completions that lost their end.
    cut: u64,
    /// Uncut completions that do not end with a stop id.
    endless: u64,
}

impl Encoder<'_> {
    /// Returns whether a pair of plain strings holds control tokens.
    fn is_controlled(&self, pair: &PreferencePair) -> bool {
        pair.plain && spells_control_tokens(&self.tokenizer, pair)
    }

    /// Encodes a pair; returns it with the counts of its completions.
    fn encode(&self, pair: &PreferencePair) -> Result<(PairExample, Kept), Dropped> {
        let chat;
        let pair = match self.plain {
            PlainText::Raw => pair,
            PlainText::Chat => {
                chat = pair.clone().into_chat();
                &chat
            }
        };
        for (text, what) in [
            (&pair.chosen, "chosen completion"),
            (&pair.rejected, "rejected completion"),
        ] {
            if text.trim().is_empty() {
                return Err(PairError::Empty(what).into());
            }
        }
        if pair.chosen == pair.rejected {
            return Err(PairError::Equal.into());
        }
        let label = self.label(pair)?;
        let (prompt, completions) = match pair.plain {
            true => self.plain(pair)?,
            false => self.chat(pair)?,
        };
        let (max, tokens) = (self.max_length, prompt.len());
        if tokens >= max {
            return Err(Dropped::PromptTooLong { tokens, max });
        }
        let room = max - prompt.len();
        let mut kept = Kept::default();
        let [chosen, rejected] = completions.map(|mut ids| {
            if ids.len() > room {
                kept.cut += 1;
            } else if !ids.last().is_some_and(|id| self.stop_ids.contains(id)) {
                kept.endless += 1;
            }
            ids.truncate(room);
            ids
        });
        let example = PairExample {
            label,
            ..PairExample::new(prompt, chosen, rejected)
        };
        example.check(&self.model.spec)?;
        Ok((example, kept))
    }

    /// Returns the tokens of a prompt of plain strings, and of the answers that follow it.
    fn plain(&self, pair: &PreferencePair) -> Result<(Vec<u32>, [Vec<u32>; 2]), Dropped> {
        let texts: Vec<&str> = pair.messages.iter().map(|m| m.content.as_str()).collect();
        let text = texts.concat();
        let prompt = self.plain_end.prompt(&self.tokenizer, &text)?;
        let answer = |answer: &str| {
            let end = &self.plain_end;
            end.answer(&self.tokenizer, &text, &prompt, answer)
        };
        let answers = [answer(&pair.chosen)?, answer(&pair.rejected)?];
        Ok((prompt, answers))
    }

    /// Returns the tokens of a conversation's prompt, and of the answers that follow it.
    fn chat(&self, pair: &PreferencePair) -> Result<(Vec<u32>, [Vec<u32>; 2]), Dropped> {
        let head = self.render(&pair.messages, true)?;
        let with = |answer: &str| {
            let mut messages = pair.messages.clone();
            messages.push(Message::new(Role::Assistant, answer));
            self.render(&messages, false)
        };
        let full = [with(&pair.chosen)?, with(&pair.rejected)?];
        let mut seam = head.text.len();
        for full in &full {
            seam = seam.min(shared_beginning(&head, &full.text).ok_or(Dropped::Prefix)?);
        }
        let mut encoded = self.tokenizer.encode_rendered(&head)?;
        if seam < head.text.len() {
            let end = tokens_within(&encoded, &(0..seam)).end;
            encoded.ids.truncate(end);
            seam = end
                .checked_sub(1)
                .map_or(0, |last| encoded.offsets[last].end);
        }
        let prompt = encoded.ids;
        let answers = [
            self.completion(&full[0], seam, &prompt)?,
            self.completion(&full[1], seam, &prompt)?,
        ];
        Ok((prompt, answers))
    }

    /// Returns the probability that the chosen answer is the better one.
    fn label(&self, pair: &PreferencePair) -> Result<f32, Dropped> {
        match pair.margin {
            Some(margin) if self.soft_labels && !(0.0..=1.0).contains(&margin) => {
                Err(Dropped::Margin(margin))
            }
            Some(margin) if self.soft_labels => Ok(margin as f32),
            _ => Ok(1.0),
        }
    }

    /// Returns the tokens of an answer that begins at byte `seam`, after those of the prompt.
    fn completion(
        &self,
        full: &Rendered,
        seam: usize,
        prompt: &[u32],
    ) -> Result<Vec<u32>, TextError> {
        let end = without_trailing_space(full, seam..full.text.len()).end;
        let whole = self.tokenizer.encode_rendered(full)?;
        if whole.ids.starts_with(prompt) {
            let end = tokens_within(&whole, &(0..end)).end.max(prompt.len());
            return Ok(whole.ids[prompt.len()..end].to_vec());
        }
        // A token of the whole text straddles the seam: given the prompt, the model writes other tokens.
        let mut behind = self.tokenizer.encode_behind(full, seam)?;
        let end = tokens_within(&behind, &(0..end)).end;
        behind.ids.truncate(end);
        Ok(behind.ids)
    }

    fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Rendered, Dropped> {
        let chat = self
            .chat
            .as_ref()
            .map_err(|why| Dropped::NoTemplate(why.clone()))?;
        let options = RenderOptions {
            add_generation_prompt,
            now: Some(PROMPT_DATE),
            ..RenderOptions::default().with_own(OwnTrust::All)
        };
        Ok(chat.render(messages, &options)?)
    }
}

#[cfg(test)]
#[path = "data_tests.rs"]
mod tests;
