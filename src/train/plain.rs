//! Encoding of plain-text pairs as in TRL: no chat template; control tokens in the text are encoded as control tokens; the tokens that
//! the tokenizer adds before a text come before the prompt; and the end-of-sequence token follows an answer that does not end with it.

use std::path::Path;

use judge::PreferencePair;
use text::{SpecialTokens, TextError, Tokenizer};

/// The end of a plain-text answer.
#[derive(Debug, Clone, Default)]
pub(super) struct PlainEnd(Option<String>);

impl PlainEnd {
    /// Reads the `eos_token` of a model's tokenizer; without one nothing is appended.
    ///
    /// # Errors
    /// If a file cannot be read.
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

    /// Returns the ids of an answer after the ids of its prompt: the rest of the whole text's ids or, if a token would straddle the seam,
    /// the ids of the answer alone.
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

/// Returns whether a text of the pair contains a control token: as raw text it is encoded as the token, in a chat as its letters.
pub(super) fn spells_control_tokens(tokenizer: &Tokenizer, pair: &PreferencePair) -> bool {
    let prompt = pair.messages.iter().map(|message| message.content.as_str());
    prompt
        .chain([pair.chosen.as_str(), &pair.rejected])
        .any(|text| {
            let ids = tokenizer.encode_template(text);
            ids.is_ok_and(|ids| ids.iter().any(|&id| tokenizer.is_control(id)))
        })
}

/// Logs once per run that plain texts hold control tokens, and how these are encoded.
pub(super) fn warn_of_control_tokens(pairs: u64, raw: bool) {
    if pairs == 0 {
        return;
    }
    if raw {
        tracing::warn!(
            "{pairs} plain-text records contain control tokens, which are encoded as control tokens, not as text"
        );
    } else {
        tracing::warn!(
            "{pairs} plain-text records contain control tokens, which `plain = \"chat\"` encodes as text: use `plain = \"raw\"` for texts \
             that a chat template has written"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use judge::fixtures;

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
