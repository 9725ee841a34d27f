//! The input files of a run, read as pairs, and the chat template for them.

use std::fs;
use std::path::Path;

use super::TrainError;
use super::config::DataFile;
use judge::{OnUnusable, PreferencePair, RankedDraw, RecordError, RecordReader, Skipped};
use text::{ChatTemplate, SpecialTokens};

/// Counts of one file's records.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct FileCounts {
    /// Usable records.
    pub records: u64,
    pub skipped: Skipped,
}

/// Returns the skipped records of all files.
pub(super) fn skipped<'a>(files: impl IntoIterator<Item = &'a FileCounts>) -> Skipped {
    let mut all = Skipped::default();
    files.into_iter().for_each(|file| all.add(&file.skipped));
    all
}

/// Returns an error if no record was usable, which explains an empty run better than any later error.
///
/// # Errors
/// If records were skipped, and none was read.
pub(super) fn refuse_unreadable<'a>(
    files: impl IntoIterator<Item = &'a FileCounts> + Clone,
) -> Result<(), TrainError> {
    let read: u64 = files.clone().into_iter().map(|file| file.records).sum();
    let skipped = skipped(files);
    match (read, skipped.first) {
        (0, Some(first)) => Err(TrainError::Data(format!(
            "none of {} records can be used; the first: {first}",
            skipped.count
        ))),
        _ => Ok(()),
    }
}

/// Returns the pairs of the file at index `at`, in order; counts its records and skips unusable ones. An error of opening the file is the
/// first item.
pub(super) fn pairs<'a>(
    file: &'a DataFile,
    at: usize,
    seed: u64,
    counts: &'a mut FileCounts,
) -> impl Iterator<Item = Result<PreferencePair, RecordError>> + 'a {
    let (mut reader, mut failure) =
        match RecordReader::open(&file.path, file.format, OnUnusable::Skip) {
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
            // No two records of a run share a position: a file would need 2^40 of them.
            let place = ((at as u64) << 40) | counts.records;
            counts.records += 1;
            pending = record.into_pairs(false, draw, place).into_iter();
        }
        if reader.skipped().count > 0 && counts.skipped.count == 0 {
            tracing::warn!("{}: {}", file.path.display(), reader.skipped());
            counts.skipped = reader.skipped().clone();
        }
        None
    })
}

/// Returns the given chat template, or the model's own.
pub(super) fn chat_template(
    given: Option<&Path>,
    model_dir: &Path,
) -> Result<ChatTemplate, TrainError> {
    let built = match given {
        None => ChatTemplate::from_model_dir(model_dir),
        Some(path) => {
            let source = fs::read_to_string(path).map_err(TrainError::io("cannot read", path))?;
            SpecialTokens::from_model_dir(model_dir)
                .and_then(|special| ChatTemplate::from_source(&source, special))
        }
    };
    built.map_err(|e| TrainError::Data(e.to_string()))
}

/// Logs a warning if none of the answers that are trained on, `whole` of which were not cut, ends with a token at which the server stops.
pub(super) fn warn_of_no_end(endless: u64, whole: u64, stop_ids: &[u32]) {
    if whole > 0 && endless == whole {
        tracing::warn!(
            "none of the {whole} training answers ends with a stop token of the model (ids {stop_ids:?}): the trained model will generate \
             up to the token limit"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use judge::RankedSet;

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
            let mut counts = FileCounts::default();
            let found: Result<Vec<_>, _> = pairs(file, at, seed, &mut counts).collect();
            assert_eq!((counts.records, counts.skipped.count), (11, 0));
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
        // One imitated and two judged for each prompt; the file's flag applies to all.
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
