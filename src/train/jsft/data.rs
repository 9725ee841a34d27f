//! The training data: the files of a run, read as pairs and encoded as examples.

use std::path::Path;

use crate::TrainError;
use crate::config::JsftConfig;
use crate::manifest::DataDigest;
use crate::mixture::{ExampleKind, Examples, Mixture, MixtureError, MixtureReport};
use crate::plain::{PlainEnd, warn_of_control_tokens};
use crate::records::{
    FileCounts, chat_template, pairs, refuse_unreadable, skipped, warn_of_no_end,
};
use judge::{JudgeTemplate, LabelTokens, PlainText, TEMPLATE_FILE, principles_from_model_dir};
use model::{ModelConfig, stop_ids};
use text::{ChatTemplate, TextError, Tokenizer};

/// The encoded data, its report, the digests of its files, and the judge template.
pub(super) struct Built {
    pub examples: Examples,
    pub report: MixtureReport,
    pub data: Vec<DataDigest>,
    pub template: JudgeTemplate,
}

/// Reads the data and encodes it.
///
/// # Errors
/// If a file, record or token is unusable; the message names it.
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
    let ends = served_ends(config, model_dir, &tokenizer, &chat)?;
    let options = config.mixture.clone();
    let end = PlainEnd::from_model_dir(model_dir).map_err(|e| TrainError::Data(e.to_string()))?;
    let mixture = Mixture::new(tokenizer, chat, template.clone(), principles, options)
        .map_err(|error| match error {
            MixtureError::Option { option, problem } => {
                TrainError::Config(format!("`mixture.{option}` {problem}"))
            }
            other => TrainError::Data(other.to_string()),
        })?
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
    warn_where_answers_do_not_end(&examples, &report, &ends);
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

/// Returns the tokens at which answers of the trained model will end: a model is saved with the template of its training, an adapter is
/// served with the template of its base model.
fn served_ends(
    config: &JsftConfig,
    model_dir: &Path,
    tokenizer: &Tokenizer,
    chat: &ChatTemplate,
) -> Result<Vec<u32>, TrainError> {
    let data = |error: TextError| TrainError::Data(error.to_string());
    let model = ModelConfig::from_dir(model_dir)?;
    let own = ChatTemplate::of_model_dir(model_dir).map_err(data)?;
    let served = match config.lora {
        Some(_) => &own,
        None => chat,
    };
    stop_ids(&model, tokenizer, model_dir, served).map_err(data)
}

fn warn_where_answers_do_not_end(examples: &Examples, report: &MixtureReport, ends: &[u32]) {
    let imitated = (0..examples.len()).filter(|at| examples.kind(*at) == ExampleKind::Sft);
    let mut count = 0;
    for at in imitated {
        let example = examples.get(at);
        let last = example.weights.iter().rposition(|weight| *weight > 0.0);
        if last.is_some_and(|last| ends.contains(&example.ids[last])) {
            return;
        }
        count += 1;
    }
    let whole = u64::saturating_sub(count, report.sft_answer_cut);
    warn_of_no_end(whole, whole, ends);
}

/// Returns the configured judge template, or the model's own.
fn judge_template(config: &JsftConfig, model_dir: &Path) -> Result<JudgeTemplate, TrainError> {
    match &config.judge_template {
        // The template belongs to the weights that were trained with it.
        None => match &config.start {
            Some(adapter) if adapter.join(TEMPLATE_FILE).exists() => {
                JudgeTemplate::from_model_dir(adapter)
            }
            _ => JudgeTemplate::from_model_dir(model_dir),
        },
        Some(name) => match JudgeTemplate::built_in(name) {
            Some(template) => Ok(template),
            None => JudgeTemplate::from_file(Path::new(name)),
        },
    }
    .map_err(|e| TrainError::Data(e.to_string()))
}
