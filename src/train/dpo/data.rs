//! Preference records in tokens: what an offline run trains on.
//!
//! The prompt is what the server would have given the model, the completion what the model would have had to answer with, its
//! end-of-turn mark included: the conversation with the answer is rendered and encoded as a whole, and must begin with the
//! tokens of the prompt. A completion that has to be cut loses its end, and gets no other.

use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::run::DpoRunConfig;
use super::{PairError, PairExample};
use crate::judge::{PROMPT_DATE, tokens_within};
use crate::model::DecoderSpec;
use crate::preference::{Message, PreferencePair, Role};
use crate::text::{ChatTemplate, RenderOptions, Rendered, TextError, Tokenizer};
use crate::train::TrainError;
use crate::train::config::DataFile;
use crate::train::manifest::DataDigest;
use crate::train::records::{chat_template, pairs};
use crate::train::turn::without_trailing_space;

/// `data.json`: what became of the records.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct DataReport {
    /// Pairs read.
    pub pairs: u64,
    /// Pairs trained on.
    pub kept: u64,
    /// Kept with a completion that lost its end.
    pub cut: u64,
    /// Left out: a completion is empty.
    pub empty: u64,
    /// Left out: the completions are equal, as they were or once cut.
    pub equal: u64,
    /// Left out: the prompt alone fills `max_length`.
    pub too_long: u64,
    /// Left out: the template cannot render the conversation, or its tokens do not begin with the prompt's.
    pub refused: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_refusal: Option<String>,
}

/// Why a pair is left out.
#[derive(Debug, thiserror::Error)]
enum Dropped {
    #[error(transparent)]
    Pair(#[from] PairError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error("the conversation with its answer does not begin with the prompt that asks for it")]
    Prefix,
}

/// The encoded pairs and what they were made of.
pub(super) struct Built {
    pub examples: Vec<PairExample>,
    pub report: DataReport,
    pub data: Vec<DataDigest>,
}

/// Reads and encodes the data of a run.
pub(super) fn build(
    config: &DpoRunConfig,
    model_dir: &Path,
    spec: &DecoderSpec,
) -> Result<Built, TrainError> {
    let text = |e: TextError| TrainError::Data(e.to_string());
    let encoder = Encoder {
        tokenizer: Tokenizer::from_file(&model_dir.join("tokenizer.json")).map_err(text)?,
        chat: chat_template(config.chat_template.as_deref(), model_dir)?,
        max_length: config.max_length,
        spec,
    };
    let mut built = Built {
        examples: Vec::new(),
        report: DataReport::default(),
        data: Vec::new(),
    };
    for (at, file) in config.data.iter().enumerate() {
        let mut records = 0;
        let file = DataFile {
            format: file.format,
            ..DataFile::new(file.path.clone())
        };
        let read: Vec<PreferencePair> = pairs(&file, at, config.dpo.seed, &mut records)
            .collect::<Result<_, _>>()
            .map_err(|e| TrainError::Data(e.to_string()))?;
        built.data.push(DataDigest::of(&file.path, records)?);
        let encoded: Vec<_> = read.par_iter().map(|pair| encoder.encode(pair)).collect();
        for result in encoded {
            built.report.pairs += 1;
            match result {
                Ok((example, cut)) => {
                    built.report.kept += 1;
                    built.report.cut += u64::from(cut);
                    built.examples.push(example);
                }
                Err(why) => built.report.drop(&why),
            }
        }
    }
    if built.examples.is_empty() {
        let why = built.report.first_refusal.take();
        return Err(TrainError::Data(format!(
            "none of {} pairs can be trained on{}",
            built.report.pairs,
            why.map_or_else(String::new, |why| format!("; the first: {why}"))
        )));
    }
    Ok(built)
}

impl DataReport {
    fn drop(&mut self, why: &Dropped) {
        match why {
            Dropped::Pair(PairError::Empty(_)) => self.empty += 1,
            Dropped::Pair(PairError::Equal) => self.equal += 1,
            Dropped::Pair(PairError::TooLong { .. }) => self.too_long += 1,
            _ => self.refused += 1,
        }
        self.first_refusal.get_or_insert_with(|| why.to_string());
    }
}

struct Encoder<'a> {
    tokenizer: Tokenizer,
    chat: ChatTemplate,
    max_length: usize,
    spec: &'a DecoderSpec,
}

impl Encoder<'_> {
    /// The pair in tokens, and whether a completion was cut.
    fn encode(&self, pair: &PreferencePair) -> Result<(PairExample, bool), Dropped> {
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
        let head = self.render(&pair.messages, true)?;
        let prompt = self.tokenizer.encode_rendered(&head)?.ids;
        let (max, tokens) = (self.max_length, prompt.len() + 1);
        if tokens > max {
            return Err(PairError::TooLong { tokens, max }.into());
        }
        let room = max - prompt.len();
        let mut cut = false;
        let mut completion = |answer: &str| -> Result<Vec<u32>, Dropped> {
            let mut ids = self.completion(&pair.messages, answer, &head, &prompt)?;
            cut |= ids.len() > room;
            ids.truncate(room);
            Ok(ids)
        };
        let (chosen, rejected) = (completion(&pair.chosen)?, completion(&pair.rejected)?);
        let example = PairExample::new(prompt, chosen, rejected);
        example.check(self.spec)?;
        Ok((example, cut))
    }

    /// The tokens of an answer after the prompt.
    fn completion(
        &self,
        messages: &[Message],
        answer: &str,
        head: &Rendered,
        prompt: &[u32],
    ) -> Result<Vec<u32>, Dropped> {
        let mut messages = messages.to_vec();
        messages.push(Message::new(Role::Assistant, answer));
        let full = self.render(&messages, false)?;
        if !full.text.starts_with(&head.text) {
            return Err(Dropped::Prefix);
        }
        let span = without_trailing_space(&full, head.text.len()..full.text.len());
        let mut encoded = self.tokenizer.encode_rendered(&full)?;
        let end = tokens_within(&encoded, &(0..span.end)).end;
        encoded.ids.truncate(end);
        match encoded.ids.strip_prefix(prompt) {
            Some(completion) => Ok(completion.to_vec()),
            None => Err(Dropped::Prefix),
        }
    }

    fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Rendered, TextError> {
        let options = RenderOptions {
            add_generation_prompt,
            now: Some(PROMPT_DATE),
            ..RenderOptions::default()
        };
        self.chat.render(messages, &options)
    }
}
