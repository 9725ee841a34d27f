//! What is trained on: the files of a run, read as pairs and encoded as examples.

use std::fs;
use std::path::Path;

use crate::judge::{JudgeTemplate, LabelTokens, principles_from_model_dir};
use crate::preference::{OnMismatch, PreferencePair, RecordError, RecordReader};
use crate::text::{ChatTemplate, SpecialTokens, Tokenizer};
use crate::train::TrainError;
use crate::train::config::{DataFile, JsftConfig};
use crate::train::manifest::DataDigest;
use crate::train::mixture::{Examples, Mixture, MixtureReport};

/// The encoded data and what it was made with.
pub(super) struct Built {
    pub examples: Examples,
    pub report: MixtureReport,
    pub data: Vec<DataDigest>,
    pub template: JudgeTemplate,
}

/// Reads the data and encodes it.
pub(super) fn build_mixture(config: &JsftConfig, model_dir: &Path) -> Result<Built, TrainError> {
    let tokenizer = Tokenizer::from_file(&model_dir.join("tokenizer.json"))
        .map_err(|e| TrainError::Data(e.to_string()))?;
    let chat = chat_template(config, model_dir)?;
    let (_, template) =
        LabelTokens::resolve_or_bare(&tokenizer, &chat, judge_template(config, model_dir)?)
            .map_err(|e| TrainError::Data(e.to_string()))?;
    let principles =
        principles_from_model_dir(model_dir).map_err(|e| TrainError::Data(e.to_string()))?;
    let options = config.mixture.clone();
    let mixture = Mixture::new(tokenizer, chat, template.clone(), principles, options)
        .map_err(|e| TrainError::Data(e.to_string()))?;

    let mut counts = vec![0u64; config.data.len()];
    let pairs = config
        .data
        .iter()
        .zip(&mut counts)
        .flat_map(|(file, count)| pairs(file, count));
    let (examples, report) = mixture
        .build(pairs)
        .map_err(|e| TrainError::Data(e.to_string()))?;
    let data = config
        .data
        .iter()
        .zip(counts)
        .map(|(file, count)| DataDigest::of(&file.path, count))
        .collect::<Result<_, _>>()?;
    Ok(Built {
        examples,
        report,
        data,
        template,
    })
}

/// The pairs of one file, in order; counts its records. What opening it failed with is the first item.
fn pairs<'a>(
    file: &'a DataFile,
    count: &'a mut u64,
) -> impl Iterator<Item = Result<PreferencePair, RecordError>> + 'a {
    let (mut reader, mut failure) =
        match RecordReader::open(&file.path, file.format, OnMismatch::Skip) {
            Ok(reader) => (Some(reader), None),
            Err(error) => (None, Some(error)),
        };
    std::iter::from_fn(move || {
        if let Some(error) = failure.take() {
            return Some(Err(error));
        }
        let reader = reader.as_mut()?;
        for record in reader.by_ref() {
            *count += 1;
            match record.map(|record| record.into_pair(false)) {
                Err(error) => return Some(Err(error)),
                Ok(None) => continue,
                Ok(Some(mut pair)) => {
                    pair.sft &= file.sft;
                    pair.judge &= file.judge;
                    return Some(Ok(pair));
                }
            }
        }
        if reader.skipped() > 0 {
            tracing::warn!(
                "{}: {} records left out whose two answers follow different conversations",
                file.path.display(),
                reader.skipped()
            );
        }
        None
    })
}

/// The chat template that was given, or the model's own.
fn chat_template(config: &JsftConfig, model_dir: &Path) -> Result<ChatTemplate, TrainError> {
    let built = match &config.chat_template {
        None => ChatTemplate::from_model_dir(model_dir),
        Some(path) => {
            let source = fs::read_to_string(path).map_err(TrainError::io("cannot read", path))?;
            SpecialTokens::from_model_dir(model_dir)
                .and_then(|special| ChatTemplate::from_source(&source, special))
        }
    };
    built.map_err(|e| TrainError::Data(e.to_string()))
}

/// The judge template that was asked for, or the model's own.
fn judge_template(config: &JsftConfig, model_dir: &Path) -> Result<JudgeTemplate, TrainError> {
    match &config.judge_template {
        None => JudgeTemplate::from_model_dir(model_dir),
        Some(name) => match JudgeTemplate::built_in(name) {
            Some(template) => Ok(template),
            None => JudgeTemplate::from_file(Path::new(name)),
        },
    }
    .map_err(|e| TrainError::Data(e.to_string()))
}
