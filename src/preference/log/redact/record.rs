//! The log's door: every text that comes from a caller or a model passes the redactor here.

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::Semaphore;

use super::rules::Rules;
use super::{RedactCommand, Redaction};
use crate::preference::log::{
    Addition, LogError, LoggedPair, LoggedVerdict, NewRecord, Prompt, Result, Sample,
};

/// The redaction of one log.
#[derive(Debug)]
pub(in crate::preference::log) struct Redactor {
    rules: Arc<Rules>,
    command: Option<RedactCommand>,
    /// How many texts may be searched at once: one a core.
    searching: Arc<Semaphore>,
}

impl Redactor {
    pub fn new(redaction: &Redaction, salt: String) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Self {
            rules: Arc::new(Rules::new(&redaction.rules, salt)?),
            command: redaction.command.clone(),
            searching: Arc::new(Semaphore::new(cores)),
        })
    }

    /// Redacts every text of a record. Returns whether any was changed.
    ///
    /// # Errors
    /// [`LogError::Redaction`] if the external program fails; the record must not be written then.
    pub async fn redact_record(&self, record: &mut NewRecord) -> Result<bool> {
        let mut prompt: Vec<&mut String> = match &mut record.prompt {
            Prompt::Text(text) => vec![text],
            Prompt::Messages(messages) => messages.iter_mut().map(|m| &mut m.content).collect(),
        };
        let prompts = prompt.len();
        prompt.extend(outputs(
            &mut record.samples,
            &mut record.verdicts,
            &mut record.pairs,
        ));
        let changed = self.redact_all(prompt).await?;
        let (prompt, rest) = changed.split_at(prompts);
        if prompt.contains(&true) {
            record.prompt_token_ids.clear();
        }
        forget_tokens(&mut record.samples, rest);
        Ok(changed.contains(&true))
    }

    /// Redacts every text of what the trainer adds to a record. Returns whether any was changed.
    ///
    /// # Errors
    /// As [`Self::redact_record`]; the addition must not be written then.
    pub async fn redact_addition(&self, addition: &mut Addition) -> Result<bool> {
        let Addition {
            samples,
            verdicts,
            pairs,
            corroborating,
        } = &mut *addition;
        let principles = corroborating
            .iter_mut()
            .flat_map(|verdict| &mut verdict.principles);
        let texts = outputs(samples, verdicts, pairs).chain(principles);
        let changed = self.redact_all(texts.collect()).await?;
        forget_tokens(&mut addition.samples, &changed);
        Ok(changed.contains(&true))
    }

    /// Redacts one text. Returns whether that changed it.
    ///
    /// # Errors
    /// As [`Self::redact_record`].
    pub async fn redact_text(&self, text: &mut String) -> Result<bool> {
        let changed = self.redact_all(vec![text]).await?;
        Ok(changed.contains(&true))
    }

    /// Redacts texts on a thread that may block, so that no caller of the server waits for it. Returns which of them were changed.
    async fn redact_all(&self, texts: Vec<&mut String>) -> Result<Vec<bool>> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let mut texts = texts;
        let given: Vec<String> = texts.iter_mut().map(|text| std::mem::take(*text)).collect();
        let stopped = |error: &dyn std::fmt::Display| LogError::Redaction(error.to_string());
        let permit = self.searching.clone().acquire_owned().await;
        let permit = permit.map_err(|error| stopped(&error))?;
        let (rules, command) = (self.rules.clone(), self.command.clone());
        let redacted = tokio::task::spawn_blocking(move || {
            let redacted = rules.apply_all(&given);
            // The program is waited for: it takes no core's place.
            drop(permit);
            let redacted = match command {
                Some(command) => command.run(&redacted)?,
                None => redacted,
            };
            let both = given.into_iter().zip(redacted);
            Ok::<_, LogError>(
                both.map(|(given, redacted)| (given != redacted, redacted))
                    .collect::<Vec<_>>(),
            )
        })
        .await
        .map_err(|error| stopped(&error))??;
        let both = texts.into_iter().zip(redacted);
        Ok(both
            .map(|(text, (changed, redacted))| {
                *text = match redacted.contains('\0') {
                    // PostgreSQL keeps no zero character in a text.
                    true => redacted.replace('\0', "\u{fffd}"),
                    false => redacted,
                };
                changed
            })
            .collect())
    }
}

/// The texts of what was answered and how it was judged. Those of the samples come first: of each its text and the strings of its
/// sampling parameters.
fn outputs<'a>(
    samples: &'a mut [Sample],
    verdicts: &'a mut [LoggedVerdict],
    pairs: &'a mut [LoggedPair],
) -> impl Iterator<Item = &'a mut String> {
    let samples = samples.iter_mut().flat_map(|sample| {
        let mut texts = vec![&mut sample.text];
        strings(&mut sample.sampling, &mut texts);
        texts
    });
    let verdicts = verdicts
        .iter_mut()
        .flat_map(|verdict| &mut verdict.principles);
    let pairs = pairs.iter_mut().flat_map(|pair| &mut pair.principles);
    samples.chain(verdicts).chain(pairs)
}

/// Collects the strings of a JSON value. Names of its fields are the server's own.
fn strings<'a>(value: &'a mut Value, into: &mut Vec<&'a mut String>) {
    match value {
        Value::String(text) => into.push(text),
        Value::Array(values) => values.iter_mut().for_each(|value| strings(value, into)),
        Value::Object(fields) => fields.values_mut().for_each(|value| strings(value, into)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Drops the tokens of samples of which a text was changed: they may spell out what was taken from it, be it the stop string that
/// ended it. `changed` begins with the samples' texts, as [`outputs`] gives them.
fn forget_tokens(samples: &mut [Sample], changed: &[bool]) {
    let mut rest = changed;
    for sample in samples {
        let mut texts = Vec::new();
        strings(&mut sample.sampling, &mut texts);
        let (own, others) = rest.split_at((1 + texts.len()).min(rest.len()));
        if own.contains(&true) {
            sample.token_ids.clear();
            sample.logprobs.clear();
        }
        rest = others;
    }
}
