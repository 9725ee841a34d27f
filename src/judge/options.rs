//! Questions with lettered options: read from one token like a verdict, but not part of judge training.

use super::JudgeError;
use text::{ChatTemplate, Message, RenderOptions, Role, Tokenizer};

/// The letters of options.
const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// A reader of answers to questions with lettered options: the assistant's first token is the letter.
#[derive(Clone)]
pub struct OptionReader {
    tokenizer: Tokenizer,
    chat: ChatTemplate,
    /// Token ids of the letters that are one token each at the beginning of an answer, from A on.
    letters: Vec<u32>,
    /// The reason why questions cannot be encoded, if so.
    unusable: Option<String>,
}

impl OptionReader {
    /// Creates a reader and resolves the letters' tokens.
    ///
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

    /// Creates a reader as [`Self::new`]; if that fails, a reader that returns the reason as an error for every question.
    pub fn new_or_unusable(tokenizer: Tokenizer, chat: ChatTemplate) -> Self {
        Self::new(tokenizer.clone(), chat.clone()).unwrap_or_else(|error| Self {
            tokenizer,
            chat,
            letters: Vec::new(),
            unusable: Some(error.to_string()),
        })
    }

    /// Returns an error if questions cannot be encoded.
    ///
    /// # Errors
    /// [`JudgeError::Unusable`].
    pub fn check(&self) -> Result<(), JudgeError> {
        match &self.unusable {
            Some(reason) => Err(JudgeError::Unusable(reason.clone())),
            None => Ok(()),
        }
    }

    /// Returns the largest number of options a question may have.
    pub fn max_options(&self) -> usize {
        self.letters.len()
    }

    /// Returns the prompt of a question about `input`, and the token of each option, in the options' order.
    ///
    /// # Errors
    /// If the chat template or the tokenizer fails, or the prompt is clearly longer than `max_tokens`.
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
    use crate::fixtures;

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
