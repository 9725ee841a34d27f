//! What is trained on: the files of a run, read as pairs and encoded as examples.

use std::path::Path;

use crate::judge::{JudgeTemplate, LabelTokens, principles_from_model_dir};
use crate::preference::PlainText;
use crate::text::Tokenizer;
use crate::train::TrainError;
use crate::train::config::JsftConfig;
use crate::train::manifest::DataDigest;
use crate::train::mixture::{Examples, Mixture, MixtureReport};
use crate::train::plain::{PlainEnd, warn_of_control_tokens};
use crate::train::records::{FileCounts, chat_template, pairs, refuse_unreadable, skipped};

/// The encoded data and what it was made with.
pub(super) struct Built {
    pub examples: Examples,
    pub report: MixtureReport,
    pub data: Vec<DataDigest>,
    pub template: JudgeTemplate,
}

/// Reads the data and encodes it.
///
/// # Errors
/// Names the file, the record or the token that cannot be used.
pub(super) fn build_mixture(
    config: &JsftConfig,
    model_dir: &Path,
    vocab_size: usize,
) -> Result<Built, TrainError> {
    let tokenizer = Tokenizer::from_file(&model_dir.join("tokenizer.json"))
        .map_err(|e| TrainError::Data(e.to_string()))?;
    let chat = chat_template(config.chat_template.as_deref(), model_dir)?;
    let (_, template) =
        LabelTokens::resolve_or_bare(&tokenizer, &chat, judge_template(config, model_dir)?)
            .map_err(|e| TrainError::Data(e.to_string()))?;
    let principles =
        principles_from_model_dir(model_dir).map_err(|e| TrainError::Data(e.to_string()))?;
    let options = config.mixture.clone();
    let end = PlainEnd::from_model_dir(model_dir).map_err(|e| TrainError::Data(e.to_string()))?;
    let mixture = Mixture::new(tokenizer, chat, template.clone(), principles, options)
        .map_err(|e| TrainError::Data(e.to_string()))?
        .with_plain_text(config.plain, end)
        .within(vocab_size);

    let mut counts = vec![FileCounts::default(); config.data.len()];
    let files = config.data.iter().zip(&mut counts).enumerate();
    let pairs = files.flat_map(|(at, (file, count))| pairs(file, at, config.mixture.seed, count));
    let built = mixture.build(pairs);
    refuse_unreadable(&counts)?;
    let (examples, mut report) = built.map_err(|e| TrainError::Data(e.to_string()))?;
    let skipped = skipped(&counts);
    (report.unusable, report.first_unusable) = (skipped.count, skipped.first);
    warn_of_control_tokens(report.plain_control, config.plain == PlainText::Raw);
    let data = config
        .data
        .iter()
        .zip(counts)
        .map(|(file, counts)| DataDigest::of(&file.path, counts.records))
        .collect::<Result<_, _>>()?;
    Ok(Built {
        examples,
        report,
        data,
        template,
    })
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
