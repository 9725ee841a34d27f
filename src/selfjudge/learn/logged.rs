//! Pairs of logged answers: from earlier stages (replay) and from callers (feedback). Neither is on-policy.
//!
//! Their token ids are those that were sampled, and the reference scores them like any other pair. Redacted records have no tokens
//! left and cannot be trained on.

use super::LearnError;
use super::batch::{Batch, UpdatePair};
use super::config::JudgingConfig;
use super::pair_maker::PairMaker;
use super::pairs::{Dropped, JudgedPair, corroborated, label};
use super::rollout::Answer;
use super::seed::{Draw, seed};
use super::stage::{FeedbackRow, pairs_to_add};
use judge::PairVerdict;
use text::{Message, Role};
use traffic_log::{LoggedPair, LoggedRecord, PairSource, RecordId, Sample};

/// Finish reasons of samples that were not cut off.
const WHOLE: [&str; 3] = ["stop", "stop_string", "complete"];

impl PairMaker {
    /// Returns pairs of earlier stages to be mixed in, `replay.share` of the whole batch.
    ///
    /// # Errors
    /// Errors from the log.
    pub async fn replayed(
        &self,
        update: u64,
        fresh: usize,
        earlier: &[RecordId],
    ) -> Result<Vec<UpdatePair>, LearnError> {
        let wanted = pairs_to_add(fresh, self.config.replay.share);
        if wanted == 0 || earlier.is_empty() {
            return Ok(Vec::new());
        }
        let mut pairs = Vec::new();
        // Records without a usable pair are skipped, up to a bounded number of draws.
        for draw in 0..(4 * wanted) as u64 {
            let number = seed(
                self.config.stage.seed,
                self.stage,
                Draw::Replay,
                (update << 20) | draw,
            );
            let id = &earlier[(number % earlier.len() as u64) as usize];
            if let Some(record) = self.trainable(id).await? {
                pairs.extend(replayed(&self.config.judging, record));
            }
            if pairs.len() == wanted {
                break;
            }
        }
        Ok(pairs)
    }

    /// Returns pairs from callers' feedback: pairs of sampled answers, or of an edit and the answer it changed. With `corroborate`, only
    /// pairs on which the pinned judge, reading both orders, agrees; its verdicts are returned for the log in any case.
    ///
    /// # Errors
    /// Errors from the log, the template and the service.
    pub async fn feedback_pairs(
        &self,
        rows: &[FeedbackRow],
        corroborate: bool,
    ) -> Result<Batch, LearnError> {
        let mut batch = Batch::default();
        let mut found = Vec::new();
        for row in rows {
            match self.preference(row).await? {
                Some(Ok(preference)) => found.push((row, preference)),
                Some(Err(why)) => batch.dropped.push(why),
                // The record was deleted or its consent withdrawn since.
                None => {}
            }
        }
        let verdicts: Vec<Option<PairVerdict>> = if corroborate {
            let texts = found.iter().map(|(_, preference)| {
                let Preference {
                    messages,
                    answers: [chosen, rejected],
                    ..
                } = preference;
                (messages.clone(), &*chosen.text, &*rejected.text)
            });
            let verdicts = self.judge.judge_all(&self.service, texts).await?;
            verdicts.into_iter().map(Some).collect()
        } else {
            vec![None; found.len()]
        };
        for ((row, preference), verdict) in found.into_iter().zip(verdicts) {
            let logged = verdict
                .as_ref()
                .and_then(|verdict| self.judge.logged([row.chosen, row.rejected], verdict));
            let logged = logged.map(|verdict| (row.record.clone(), verdict));
            batch.corroborating.extend(logged);
            let [chosen, rejected] = preference.answers;
            match corroborated(&self.config.judging, chosen, rejected, verdict) {
                Ok(pair) => batch.pairs.push(UpdatePair {
                    record: row.record.clone(),
                    prompt: preference.prompt,
                    pair,
                    source: None,
                }),
                Err(why) => batch.dropped.push(why),
            }
        }
        Ok(batch)
    }

    async fn preference(
        &self,
        row: &FeedbackRow,
    ) -> Result<Option<Result<Preference, Dropped>>, LearnError> {
        let Some(record) = self.trainable(&row.record).await? else {
            return Ok(None);
        };
        // The tokens of the answers belong to the prompt before redaction.
        if row.redacted && record.prompt_token_ids.is_empty() {
            return Ok(Some(Err(Dropped::NoTokens)));
        }
        let samples = [row.chosen, row.rejected].map(|at| record.samples.get(at).cloned());
        let drawn = self.prompt(record, 0).await?;
        let mut answers = Vec::new();
        for sample in samples {
            let Some(sample) = sample else {
                return Ok(Some(Err(Dropped::NoTokens)));
            };
            let given = sample.token_ids.is_empty() && sample.version.is_none();
            let ids = match given {
                true if !drawn.chat || row.redacted => Vec::new(),
                true => {
                    self.written(&drawn.prompt.messages, &drawn.prompt.ids, &sample.text)
                        .await?
                }
                false => sample.token_ids.clone(),
            };
            if ids.is_empty() {
                return Ok(Some(Err(Dropped::NoTokens)));
            }
            answers.push(recorded(sample, ids));
        }
        let answers = answers.try_into();
        let answers = answers.expect("two samples make two answers; this is a bug");
        Ok(Some(Ok(Preference {
            messages: drawn.prompt.messages,
            prompt: drawn.prompt.ids,
            answers,
        })))
    }

    /// Returns the tokens of an edited answer as the chat template renders it after the recorded prompt, including the end token; none if
    /// the template renders that prompt differently today.
    async fn written(
        &self,
        messages: &[Message],
        prompt: &[u32],
        answer: &str,
    ) -> Result<Vec<u32>, LearnError> {
        if answer.is_empty() {
            return Ok(Vec::new());
        }
        let mut whole = messages.to_vec();
        whole.push(Message::new(Role::Assistant, answer));
        let ids = self.service.encode_conversation(&whole).await?;
        Ok(ids.strip_prefix(prompt).unwrap_or_default().to_vec())
    }
}

/// Two answers of a record of which a caller prefers the first.
struct Preference {
    messages: Vec<Message>,
    prompt: Vec<u32>,
    answers: [Answer; 2],
}

/// Converts a recorded sample to an answer. A sample without a finish reason was written by a caller and counts as complete.
fn recorded(sample: Sample, ids: Vec<u32>) -> Answer {
    let end = sample.finish_reason.as_deref();
    Answer {
        text: sample.text,
        ids,
        logprobs: sample.logprobs,
        complete: end.is_none_or(|end| WHOLE.contains(&end)),
        seed: sample.seed.unwrap_or_default(),
        weights: sample.version.unwrap_or_default(),
    }
}

/// Returns the pair that an earlier stage trained on for this record, if it is still available.
fn replayed(config: &JudgingConfig, record: LoggedRecord) -> Option<UpdatePair> {
    let made =
        |pair: &&LoggedPair| matches!(pair.source, PairSource::OnPolicy | PairSource::Contrast);
    let pair = record.pairs.iter().find(made)?;
    if record.prompt_token_ids.is_empty() {
        return None;
    }
    let answer = |at: usize| {
        let sample = record.samples.get(at)?;
        let ids = sample.token_ids.clone();
        (!ids.is_empty()).then(|| recorded(sample.clone(), ids))
    };
    let (chosen, rejected) = answer(pair.chosen).zip(answer(pair.rejected))?;
    let verdict = record
        .verdicts
        .iter()
        .find(|verdict| (verdict.a, verdict.b) == (pair.chosen, pair.rejected));
    // Logs of earlier versions contain pairs whose verdicts compared nothing.
    if verdict.is_some_and(|verdict| verdict.label_mass < config.min_label_mass) {
        return None;
    }
    let label = match pair.source {
        // For opposed principles the preference is given, and the judge at most confirms it.
        PairSource::Contrast => 1.0,
        _ => label(
            config,
            pair.margin,
            verdict.is_some_and(|verdict| !verdict.consistent),
        ),
    };
    Some(UpdatePair {
        prompt: record.prompt_token_ids,
        pair: JudgedPair {
            chosen,
            rejected,
            label,
            verdict: PairVerdict::unread(),
        },
        source: None,
        record: record.id,
    })
}

#[cfg(test)]
mod tests;
