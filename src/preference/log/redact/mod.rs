//! Personal data is taken out before a record is written.
//!
//! Each value found becomes a surrogate like `[EMAIL-kdbcnaof]`: the kind, and a hash salted by the log, so that equal values stay
//! equal within a log and mean nothing outside it. Tokens of a text that was changed are dropped, because they would spell out what
//! was taken from it.

mod command;
mod rules;

use std::sync::Arc;

use super::{Addition, LogError, LoggedPair, LoggedVerdict, NewRecord, Prompt, Result, Sample};

pub use command::RedactCommand;
pub use rules::RedactionRule;

use rules::Rules;

/// What is taken out of records.
#[derive(Debug, Clone)]
pub struct Redaction {
    /// Built-in rules that are applied.
    pub rules: Vec<RedactionRule>,
    /// An external program that sees each text after the built-in rules.
    pub command: Option<RedactCommand>,
}

impl Redaction {
    /// Nothing is taken out.
    pub fn none() -> Self {
        Self {
            rules: Vec::new(),
            command: None,
        }
    }
}

impl Default for Redaction {
    /// All built-in rules.
    fn default() -> Self {
        Self {
            rules: RedactionRule::ALL.to_vec(),
            command: None,
        }
    }
}

/// The redaction of one log.
#[derive(Debug)]
pub(super) struct Redactor {
    rules: Rules,
    command: Option<RedactCommand>,
}

impl Redactor {
    pub fn new(redaction: &Redaction, salt: String) -> Result<Self> {
        Ok(Self {
            rules: Rules::new(&redaction.rules, salt)?,
            command: redaction.command.clone(),
        })
    }

    /// Redacts every text of a record. Returns whether any was changed.
    ///
    /// # Errors
    /// [`LogError::Redaction`] if the external program fails; the record must not be written then.
    pub async fn redact_record(this: &Arc<Self>, record: &mut NewRecord) -> Result<bool> {
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
        let changed = Self::redact_all(this, prompt).await?;
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
    pub async fn redact_addition(this: &Arc<Self>, addition: &mut Addition) -> Result<bool> {
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
        let changed = Self::redact_all(this, texts.collect()).await?;
        forget_tokens(&mut addition.samples, &changed);
        Ok(changed.contains(&true))
    }

    /// Redacts one text. Returns whether that changed it.
    pub async fn redact_text(this: &Arc<Self>, text: &mut String) -> Result<bool> {
        let changed = Self::redact_all(this, vec![text]).await?;
        Ok(changed.contains(&true))
    }

    /// Which of the texts were changed.
    async fn redact_all(this: &Arc<Self>, mut texts: Vec<&mut String>) -> Result<Vec<bool>> {
        let mut changed = Vec::with_capacity(texts.len());
        for text in &mut texts {
            let redacted = this.rules.apply(text);
            changed.push(redacted.is_some());
            if let Some(redacted) = redacted {
                **text = redacted;
            }
        }
        if this.command.is_some() && !texts.is_empty() {
            let this = this.clone();
            let given: Vec<String> = texts.iter().map(|text| (**text).clone()).collect();
            // The program is waited for on a thread that may block.
            let answered = tokio::task::spawn_blocking(move || {
                this.command.as_ref().map(|command| command.run(&given))
            })
            .await
            .map_err(|error| LogError::Redaction(error.to_string()))?;
            for ((text, changed), redacted) in texts
                .iter_mut()
                .zip(&mut changed)
                .zip(answered.transpose()?.unwrap_or_default())
            {
                *changed |= **text != redacted;
                **text = redacted;
            }
        }
        // PostgreSQL keeps no zero character in a text.
        for text in texts.iter_mut().filter(|text| text.contains('\0')) {
            **text = text.replace('\0', "\u{fffd}");
        }
        Ok(changed)
    }
}

/// The texts of what was answered and how it was judged, those of the samples first.
fn outputs<'a>(
    samples: &'a mut [Sample],
    verdicts: &'a mut [LoggedVerdict],
    pairs: &'a mut [LoggedPair],
) -> impl Iterator<Item = &'a mut String> {
    let samples = samples.iter_mut().map(|sample| &mut sample.text);
    let verdicts = verdicts
        .iter_mut()
        .flat_map(|verdict| &mut verdict.principles);
    let pairs = pairs.iter_mut().flat_map(|pair| &mut pair.principles);
    samples.chain(verdicts).chain(pairs)
}

/// Drops the tokens of samples whose text was changed; `changed` begins with the samples' own.
fn forget_tokens(samples: &mut [Sample], changed: &[bool]) {
    for (sample, _) in samples
        .iter_mut()
        .zip(changed)
        .filter(|(_, changed)| **changed)
    {
        sample.token_ids.clear();
        sample.logprobs.clear();
    }
}
