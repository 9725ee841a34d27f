//! Questions with lettered options: read like a verdict, from one token, but not learnt like one.

use super::JudgeError;
use crate::preference::{Message, Role};
use crate::text::{ChatTemplate, RenderOptions, Tokenizer};

/// What options are lettered with.
const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// Asks questions with lettered options: the next token of the assistant is the letter.
#[derive(Clone)]
pub struct OptionReader {
    tokenizer: Tokenizer,
    chat: ChatTemplate,
    /// The letters that are one token each where an answer begins, from A on.
    letters: Vec<u32>,
    /// Why no question can be asked, where none can.
    unusable: Option<String>,
}

impl OptionReader {
    /// # Errors
    /// If the chat template or the tokenizer fails.
    pub fn new(tokenizer: Tokenizer, chat: ChatTemplate) -> Result<Self, JudgeError> {
        let question = [Message::new(Role::User, "?")];
        let prompt = chat.render(&question, &RenderOptions::for_generation())?;
        let before = tokenizer.encode_rendered(&prompt)?.ids;
        let mut letters = Vec::new();
        for letter in LETTERS.chars() {
            let mut with = prompt.clone();
            with.push_trusted(letter.encode_utf8(&mut [0; 4]));
            let ids = tokenizer.encode_rendered(&with)?.ids;
            match ids.strip_prefix(before.as_slice()) {
                Some(&[id]) if !letters.contains(&id) => letters.push(id),
                _ => break,
            }
        }
        Ok(Self {
            tokenizer,
            chat,
            letters,
            unusable: None,
        })
    }

    /// [`Self::new`]; where that fails, a reader that refuses every question with the reason.
    pub fn new_or_unusable(tokenizer: Tokenizer, chat: ChatTemplate) -> Self {
        Self::new(tokenizer.clone(), chat.clone()).unwrap_or_else(|error| Self {
            tokenizer,
            chat,
            letters: Vec::new(),
            unusable: Some(error.to_string()),
        })
    }

    /// Refuses where no question can be asked.
    ///
    /// # Errors
    /// [`JudgeError::Unusable`].
    pub fn check(&self) -> Result<(), JudgeError> {
        match &self.unusable {
            Some(reason) => Err(JudgeError::Unusable(reason.clone())),
            None => Ok(()),
        }
    }

    /// Options that a question may have.
    pub fn max_options(&self) -> usize {
        self.letters.len()
    }

    /// The prompt of a question about `input`, and the token of each option, in the options' order.
    ///
    /// # Errors
    /// If the chat template or the tokenizer fails, or there are clearly more than `max_tokens`.
    ///
    /// # Panics
    /// With more than [`Self::max_options`] options.
    pub fn encode(
        &self,
        input: &str,
        question: &str,
        options: &[&str],
        max_tokens: usize,
    ) -> Result<(Vec<u32>, Vec<u32>), JudgeError> {
        let mut text = format!("{input}\n\n{question}\n");
        for (letter, option) in LETTERS.chars().zip(options) {
            text.push_str(&format!("\n{letter}. {option}"));
        }
        text.push_str("\n\nAnswer with one letter.");
        let messages = [Message::new(Role::User, text)];
        let rendered = self
            .chat
            .render(&messages, &RenderOptions::for_generation())?;
        let encoded = self
            .tokenizer
            .encode_rendered_within(&rendered, max_tokens)?;
        let prompt = encoded.ids;
        Ok((prompt, self.letters[..options.len()].to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::fixtures;

    #[test]
    fn options_follow_the_question_with_their_letters() {
        let reader = OptionReader::new(fixtures::tokenizer(), fixtures::chat()).unwrap();
        assert!(reader.max_options() >= 2, "{}", reader.max_options());
        let (prompt, letters) = reader.encode("in", "which?", &["x", "y"], 512).unwrap();
        assert_eq!(letters.len(), 2);
        assert_ne!(letters[0], letters[1]);
        let text = fixtures::tokenizer().decode(&prompt, false).unwrap();
        assert!(text.contains("in\n\nwhich?\n\nA. x\nB. y\n"), "{text}");
    }
}
