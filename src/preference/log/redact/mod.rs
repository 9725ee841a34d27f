//! Personal data is taken out before a record is written.
//!
//! Each value found becomes a surrogate like `[EMAIL-kdbcnaof]`: the kind, and a hash salted by the log, so that equal values stay
//! equal within a log and mean nothing outside it. Tokens of a text that was changed are dropped, because they would spell out what
//! was taken from it.

mod command;
mod rules;

use std::sync::Arc;

use super::{LogError, NewRecord, Prompt, Result};

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
        let given = record.samples.len();
        let mut texts: Vec<&mut String> = Vec::new();
        texts.append(&mut prompt);
        texts.extend(record.samples.iter_mut().map(|sample| &mut sample.text));
        for verdict in &mut record.verdicts {
            texts.extend(&mut verdict.principles);
        }
        for pair in &mut record.pairs {
            texts.extend(&mut pair.principles);
        }
        let changed = Self::redact_all(this, texts).await?;
        if changed[..prompts].contains(&true) {
            record.prompt_token_ids.clear();
        }
        for (sample, _) in record
            .samples
            .iter_mut()
            .zip(&changed[prompts..prompts + given])
            .filter(|(_, changed)| **changed)
        {
            sample.token_ids.clear();
            sample.logprobs.clear();
        }
        Ok(changed.contains(&true))
    }

    /// Redacts one text.
    pub async fn redact_text(this: &Arc<Self>, text: &mut String) -> Result<()> {
        Self::redact_all(this, vec![text]).await?;
        Ok(())
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
        if this.command.is_some() {
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
