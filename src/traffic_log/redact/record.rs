//! Redaction of records: every text from a caller or a model that is written to the log passes through here.

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::Semaphore;

use super::rules::Rules;
use super::{RedactCommand, Redaction};
use crate::{Addition, LogError, LoggedPair, LoggedVerdict, NewRecord, Prompt, Result, Sample};
use text::{Message, Role};

/// The maximum number of external programs that run at once.
const PROGRAMS: usize = 32;

/// The redaction of one log.
#[derive(Debug)]
pub(crate) struct Redactor {
    rules: Arc<Rules>,
    command: Option<RedactCommand>,
    /// Limits the number of records that are searched at once: one per core.
    searching: Arc<Semaphore>,
    /// Limits the number of external programs that run at once.
    running: Arc<Semaphore>,
}

impl Redactor {
    pub fn new(redaction: &Redaction, salt: String) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Self {
            rules: Arc::new(Rules::new(&redaction.rules, salt)?),
            command: redaction.command.clone(),
            searching: Arc::new(Semaphore::new(cores)),
            running: Arc::new(Semaphore::new(PROGRAMS)),
        })
    }

    /// Redacts every text of a record. Returns whether any text was changed.
    ///
    /// # Errors
    /// Errors with [`LogError::Redaction`] if the external program fails; the record must not be written then.
    pub async fn redact_record(&self, record: &mut NewRecord) -> Result<bool> {
        let seams = match &record.prompt {
            Prompt::Text(_) => Vec::new(),
            Prompt::Messages(messages) => seams(messages),
        };
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
        let changed = self.redact_all(prompt, seams).await?;
        let (prompt, rest) = changed.split_at(prompts);
        if prompt.contains(&true) {
            record.prompt_token_ids.clear();
        }
        forget_tokens(&mut record.samples, rest);
        Ok(changed.contains(&true))
    }

    /// Redacts every text that the trainer adds to a record. Returns whether any text was changed.
    ///
    /// # Errors
    /// Errors as [`Self::redact_record`] does; the addition must not be written then.
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
        let changed = self.redact_all(texts.collect(), Vec::new()).await?;
        forget_tokens(&mut addition.samples, &changed);
        Ok(changed.contains(&true))
    }

    /// Redacts one text. Returns whether it was changed.
    ///
    /// # Errors
    /// Errors as [`Self::redact_record`] does.
    pub async fn redact_text(&self, text: &mut String) -> Result<bool> {
        let changed = self.redact_all(vec![text], Vec::new()).await?;
        Ok(changed.contains(&true))
    }

    /// Redacts texts on a blocking thread, so that other callers are not delayed; `seams` are pairs of texts over which a value may be
    /// split. Returns which texts were changed.
    async fn redact_all(
        &self,
        mut texts: Vec<&mut String>,
        seams: Vec<(usize, usize)>,
    ) -> Result<Vec<bool>> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let given: Vec<String> = texts.iter_mut().map(|text| std::mem::take(*text)).collect();
        let rules = self.rules.clone();
        let (given, mut redacted) = aside(&self.searching, move || {
            let redacted = rules.apply_all(&given, &seams);
            Ok((given, redacted))
        })
        .await?;
        if let Some(command) = self.command.clone() {
            redacted = aside(&self.running, move || command.run(&redacted)).await?;
        }
        let mut changed = Vec::with_capacity(texts.len());
        for ((text, given), redacted) in texts.into_iter().zip(given).zip(redacted) {
            changed.push(given != redacted);
            *text = match redacted.contains('\0') {
                // PostgreSQL cannot store a zero character in a text.
                true => redacted.replace('\0', "\u{fffd}"),
                false => redacted,
            };
        }
        Ok(changed)
    }
}

/// Runs work on a blocking thread, as soon as there is a place.
async fn aside<T: Send + 'static>(
    places: &Arc<Semaphore>,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let failed = |error: &dyn std::fmt::Display| LogError::Redaction(error.to_string());
    let place = places.clone().acquire_owned().await;
    let place = place.map_err(|error| failed(&error))?;
    let done = tokio::task::spawn_blocking(move || {
        let _place = place;
        work()
    });
    done.await.map_err(|error| failed(&error))?
}

/// Returns the index of each message with the index of the next one of the same role.
fn seams(messages: &[Message]) -> Vec<(usize, usize)> {
    let mut last: Vec<(Role, usize)> = Vec::new();
    let mut pairs = Vec::new();
    for (at, message) in messages.iter().enumerate() {
        match last.iter_mut().find(|(role, _)| *role == message.role) {
            Some((_, before)) => pairs.push((std::mem::replace(before, at), at)),
            None => last.push((message.role, at)),
        }
    }
    pairs
}

/// Returns the texts of answers and verdicts. Those of the samples come first: for each sample its text, then the strings of its sampling
/// parameters.
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

/// Collects the strings of a JSON value. The names of its fields are the server's own and are not collected.
fn strings<'a>(value: &'a mut Value, into: &mut Vec<&'a mut String>) {
    match value {
        Value::String(text) => into.push(text),
        Value::Array(values) => values.iter_mut().for_each(|value| strings(value, into)),
        Value::Object(fields) => fields.values_mut().for_each(|value| strings(value, into)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Drops the tokens of samples of which a text was changed, because they may reveal what was removed, even if that was the stop string
/// which ended the text. `changed` starts with the samples' texts, in the order of [`outputs`].
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures::FutureExt;

    use super::*;

    #[test]
    fn texts_are_searched_beside_the_runtime() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(1)
            .build()
            .unwrap();
        runtime.block_on(async {
            let redactor = Redactor::new(&Redaction::default(), "salt".to_owned()).unwrap();
            // The only blocking thread is occupied.
            let (release, released) = mpsc::channel::<()>();
            let taken = tokio::task::spawn_blocking(move || released.recv());
            let mut text = "mail ann@example.org".to_owned();
            {
                let mut redacting = Box::pin(redactor.redact_text(&mut text));
                for _ in 0..3 {
                    assert!((&mut redacting).now_or_never().is_none());
                    tokio::task::yield_now().await;
                }
                release.send(()).unwrap();
                assert!(redacting.await.unwrap());
            }
            assert!(text.starts_with("mail [EMAIL-"), "{text}");
            taken.await.unwrap().unwrap();
        });
    }

    #[test]
    fn messages_are_joined_with_the_next_of_their_role() {
        let message = |role| Message {
            role,
            content: String::new(),
        };
        let messages = [
            Role::System,
            Role::User,
            Role::Assistant,
            Role::User,
            Role::User,
        ]
        .map(message);
        assert_eq!(seams(&messages), [(1, 3), (3, 4)]);
    }
}
