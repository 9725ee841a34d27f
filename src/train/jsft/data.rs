//! What is trained on: the files of a run, read as pairs and encoded as examples.

use std::fs;
use std::path::Path;

use crate::judge::{JudgeTemplate, LabelTokens, principles_from_model_dir};
use crate::preference::{OnMismatch, PreferencePair, RankedDraw, RecordError, RecordReader};
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
    let files = config.data.iter().zip(&mut counts).enumerate();
    let pairs = files.flat_map(|(at, (file, count))| pairs(file, at, config.mixture.seed, count));
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

/// The pairs of the file at place `at`, in order; counts its records. What opening it failed with is the first item.
fn pairs<'a>(
    file: &'a DataFile,
    at: usize,
    seed: u64,
    count: &'a mut u64,
) -> impl Iterator<Item = Result<PreferencePair, RecordError>> + 'a {
    let (mut reader, mut failure) =
        match RecordReader::open(&file.path, file.format, OnMismatch::Skip) {
            Ok(reader) => (Some(reader), None),
            Err(error) => (None, Some(error)),
        };
    let draw = RankedDraw {
        set: file.ranked,
        seed,
    };
    let mut pending = Vec::<PreferencePair>::new().into_iter();
    std::iter::from_fn(move || {
        if let Some(error) = failure.take() {
            return Some(Err(error));
        }
        let reader = reader.as_mut()?;
        loop {
            if let Some(mut pair) = pending.next() {
                pair.sft &= file.sft;
                pair.judge &= file.judge;
                return Some(Ok(pair));
            }
            let record = match reader.next() {
                Some(Ok(record)) => record,
                Some(Err(error)) => return Some(Err(error)),
                None => break,
            };
            // No two records of a run share a place: a file would need 2^40 of them.
            let place = ((at as u64) << 40) | *count;
            *count += 1;
            pending = record.into_pairs(false, draw, place).into_iter();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preference::RankedSet;

    #[test]
    fn ranked_prompts_give_the_pairs_of_their_set_and_the_seed_decides() {
        let annotated = |n: usize| {
            let aspect =
                serde_json::json!({"Rating": n.to_string(), "Rationale": format!("why {n}")});
            serde_json::json!({
                "response": format!("answer {n}"), "custom_system_prompt": "s",
                "annotations": {"helpfulness": &aspect, "honesty": &aspect},
            })
        };
        let completions: Vec<_> = (1..=5).map(annotated).collect();
        let line = serde_json::json!({"instruction": "q", "completions": completions}).to_string();
        let other = r#"{"messages":[{"role":"user","content":"q"}],"chosen":"x","rejected":"y"}"#;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ultrafeedback.jsonl");
        fs::write(&path, format!("{line}\n").repeat(10) + other).unwrap();

        let mut file = DataFile::new(path);
        let read = |file: &DataFile, at, seed| {
            let mut count = 0;
            let found: Result<Vec<_>, _> = pairs(file, at, seed, &mut count).collect();
            assert_eq!(count, 11);
            found.unwrap()
        };
        let base = read(&file, 0, 7);
        assert_eq!(base.len(), 11);
        assert!(
            base[..10]
                .iter()
                .all(|pair| pair.chosen == "answer 5" && pair.sft && pair.judge)
        );
        assert_eq!(read(&file, 0, 7), base);
        assert_ne!(read(&file, 0, 8), base);
        // The same file, given a second time, draws anew.
        assert_ne!(read(&file, 1, 7), base);

        file.ranked = RankedSet::Principled;
        file.sft = false;
        let principled = read(&file, 0, 7);
        // One imitated, two judged for each prompt; the file's flag holds for every one.
        assert_eq!(principled.len(), 10 * 3 + 1);
        assert!(principled.iter().all(|pair| !pair.sft));
        assert_eq!(principled[1].principles, ["helpful"]);
        assert!(
            principled[2]
                .rationale
                .as_deref()
                .is_some_and(|text| text.starts_with("why 5"))
        );
    }
}
