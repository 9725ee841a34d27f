//! Pairs of plain text in tokens, as TRL reads them: no chat template, control tokens in the text are control tokens, what the tokenizer
//! writes before a text stands before the prompt, and the end-of-sequence token follows an answer that does not end with it.

use std::path::Path;

use crate::preference::PreferencePair;
use crate::text::{SpecialTokens, TextError, Tokenizer};

/// What ends an answer of plain text.
#[derive(Debug, Clone, Default)]
pub(super) struct PlainEnd(Option<String>);

impl PlainEnd {
    /// The `eos_token` of a model's tokenizer; without one nothing is written.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn from_model_dir(dir: &Path) -> Result<Self, TextError> {
        Ok(Self(
            SpecialTokens::from_model_dir(dir)?.eos().map(str::to_owned),
        ))
    }

    #[cfg(test)]
    pub fn new(token: &str) -> Self {
        Self(Some(token.to_owned()))
    }

    /// Returns the ids of a prompt.
    pub fn prompt(&self, tokenizer: &Tokenizer, prompt: &str) -> Result<Vec<u32>, TextError> {
        let (mut ids, _) = tokenizer.specials_around()?;
        ids.extend(tokenizer.encode_template(prompt)?);
        Ok(ids)
    }

    /// Returns the ids of an answer behind the ids of its prompt: what the whole text has more, or, where a token would lie across the
    /// seam, the answer's own.
    pub fn answer(
        &self,
        tokenizer: &Tokenizer,
        prompt: &str,
        prompt_ids: &[u32],
        answer: &str,
    ) -> Result<Vec<u32>, TextError> {
        let end = self.0.as_deref().unwrap_or("");
        let end = if answer.ends_with(end) { "" } else { end };
        let answer = format!("{answer}{end}");
        let whole = self.prompt(tokenizer, &format!("{prompt}{answer}"))?;
        match whole.strip_prefix(prompt_ids) {
            Some(rest) => Ok(rest.to_vec()),
            None => tokenizer.encode_template(&answer),
        }
    }
}

/// Whether a text of the pair spells a control token: raw it is read as the token, in a chat as its letters.
pub(super) fn spells_control_tokens(tokenizer: &Tokenizer, pair: &PreferencePair) -> bool {
    let prompt = pair.messages.iter().map(|message| message.content.as_str());
    prompt
        .chain([pair.chosen.as_str(), &pair.rejected])
        .any(|text| {
            let ids = tokenizer.encode_template(text);
            ids.is_ok_and(|ids| ids.iter().any(|&id| tokenizer.is_control(id)))
        })
}

/// Says once for a run that plain texts hold control tokens, and what is made of them.
pub(super) fn warn_of_control_tokens(pairs: u64, raw: bool) {
    if pairs == 0 {
        return;
    }
    if raw {
        tracing::warn!(
            "{pairs} records of plain text hold control tokens, which are read as such and not as their letters"
        );
    } else {
        tracing::warn!(
            "{pairs} records of plain text hold control tokens, which `plain = \"chat\"` reads as their letters: texts that were written \
             by a chat template are read with `plain = \"raw\"`"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::fixtures;

    #[test]
    fn answers_are_what_the_whole_text_has_more() {
        let tokenizer = fixtures::tokenizer();
        let end = PlainEnd::new("!");
        let prompt = end.prompt(&tokenizer, "ab").unwrap();
        let text = |ids: &[u32]| tokenizer.decode(ids, false).unwrap();
        let answer = |answer| text(&end.answer(&tokenizer, "ab", &prompt, answer).unwrap());
        assert_eq!(answer("cd"), "cd!");
        assert_eq!(answer("cd!"), "cd!", "an end is not written twice");
        assert_eq!(answer(""), "!");
    }
}
