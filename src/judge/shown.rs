//! Shortening of long texts to the part that a prompt can show, once, before they are encoded with every prompt.
//!
//! [`super::fit()`] cuts prompts by tokens, and encodes them whole to do so: for an answer of one megabyte under 64 principles that is
//! 128 megabytes. A prompt has room for a limited number of tokens, and the tokens of a text that [`super::fit()`] may keep lie within
//! that distance of its ends. Here the rest is removed, so that the cost of a prompt depends on its own length, and the resulting prompts
//! are the same.

use std::borrow::Cow;

use super::{Judge, JudgeError};
use text::{Message, Rendered, TextError, Tokenizer};

/// Tokens kept beyond those that may be shown: a cut may change how the word at the cut is tokenized.
const EDGE: usize = 32;

impl Judge {
    /// Returns an answer as prompts show it: its beginning and its end, or all of it.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn shown_answer<'a>(&self, answer: &'a str) -> Result<Cow<'a, str>, JudgeError> {
        let half = self.max_prompt.div_ceil(2) + EDGE;
        Ok(ends(&self.tokenizer, answer, half, half)?)
    }

    /// Returns a conversation as prompts show it: its end, or all of it.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn shown_context(&self, context: &[Message]) -> Result<String, JudgeError> {
        let text = self.template.context(context);
        let shown = ends(&self.tokenizer, &text, 0, self.max_prompt + EDGE)?;
        Ok(shown.into_owned())
    }
}

/// Returns at least the first `head` and the last `tail` tokens of a text; all of it if it has no more.
fn ends<'a>(
    tokenizer: &Tokenizer,
    text: &'a str,
    head: usize,
    tail: usize,
) -> Result<Cow<'a, str>, TextError> {
    // No token is shorter than a byte.
    if text.len() <= head + tail {
        return Ok(Cow::Borrowed(text));
    }
    let (Some(head), Some(tail)) = (
        end_of_first(tokenizer, text, head)?,
        start_of_last(tokenizer, text, tail)?,
    ) else {
        return Ok(Cow::Borrowed(text));
    };
    match head < tail {
        true if head == 0 => Ok(Cow::Borrowed(&text[tail..])),
        true => Ok(Cow::Owned([&text[..head], &text[tail..]].concat())),
        false => Ok(Cow::Borrowed(text)),
    }
}

/// Returns the byte at which the first `tokens` tokens of a text end; none if it has no more.
fn end_of_first(
    tokenizer: &Tokenizer,
    text: &str,
    tokens: usize,
) -> Result<Option<usize>, TextError> {
    if tokens == 0 {
        return Ok(Some(0));
    }
    let mut bytes = tokens.saturating_mul(2);
    loop {
        let looked_at = &text[..text.floor_char_boundary(bytes)];
        let offsets = offsets(tokenizer, looked_at)?;
        match offsets.get(tokens) {
            Some(next) => return Ok(Some(text.ceil_char_boundary(*next))),
            None if looked_at.len() == text.len() => return Ok(None),
            None => bytes = bytes.saturating_mul(2),
        }
    }
}

/// Returns the byte at which the last `tokens` tokens of a text start; none if it has no more.
fn start_of_last(
    tokenizer: &Tokenizer,
    text: &str,
    tokens: usize,
) -> Result<Option<usize>, TextError> {
    let mut bytes = tokens.saturating_mul(2);
    loop {
        let from = text.ceil_char_boundary(text.len().saturating_sub(bytes));
        let offsets = offsets(tokenizer, &text[from..])?;
        match offsets.len().checked_sub(tokens) {
            Some(first) if first > 0 => {
                let start = from + offsets.get(first).copied().unwrap_or(text.len() - from);
                return Ok(Some(text.floor_char_boundary(start)));
            }
            _ if from == 0 => return Ok(None),
            _ => bytes = bytes.saturating_mul(2),
        }
    }
}

/// Returns the first byte of each token.
fn offsets(tokenizer: &Tokenizer, text: &str) -> Result<Vec<usize>, TextError> {
    let mut rendered = Rendered::new();
    rendered.push_untrusted(text);
    let encoded = tokenizer.encode_rendered(&rendered)?;
    Ok(encoded
        .offsets
        .into_iter()
        .map(|token| token.start)
        .collect())
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::PrincipleTable;
    use crate::{Comparison, Order, fit, fixtures};
    use text::Role;

    fn judge(max_context: usize) -> Judge {
        Judge::new(
            fixtures::tokenizer(),
            fixtures::chat(),
            fixtures::template(),
            PrincipleTable::default(),
            max_context,
        )
        .unwrap()
    }

    #[test]
    fn prompts_are_those_of_the_whole_texts() {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let judge = judge(90);
        let mut word = |most: usize| -> String {
            let length = rng.random_range(0..most);
            (0..length)
                .map(|_| ['a', 'b', ' ', 'c', 'd', '\n'][rng.random_range(0..6)])
                .collect()
        };
        let mut cut = 0;
        for round in 0..300 {
            let most = [20, 90, 400, 3000][round % 4];
            let (context, a, b) = (word(most), word(most), word(most));
            let messages = [Message::new(Role::User, context)];
            let pair = Comparison {
                context: messages.to_vec(),
                a: a.clone(),
                b: b.clone(),
                principles: Vec::new(),
            };
            let encoded = judge.encode(&pair).unwrap();
            for (at, order) in Order::BOTH.into_iter().enumerate() {
                let (first, second) = match order {
                    Order::Given => (&a, &b),
                    Order::Swapped => (&b, &a),
                };
                let whole = judge
                    .template
                    .render(&judge.chat, &messages, first, second, &[]);
                let whole = fit(&judge.tokenizer, &whole.unwrap(), judge.max_prompt).unwrap();
                assert_eq!(encoded.prompts[at], whole.ids);
                assert_eq!(encoded.shared[at], whole.b.start);
                assert!(encoded.cut || !whole.cut);
                cut += usize::from(whole.cut);
            }
        }
        assert!(cut > 200, "{cut} prompts were cut");
    }

    #[test]
    fn what_is_shown_is_as_long_as_a_prompt_and_not_as_the_text() {
        let judge = judge(90);
        let long = "ab c".repeat(1_000_000);
        let shown = judge.shown_answer(&long).unwrap();
        assert!(
            shown.len() < 4 * (89 + 2 * EDGE + 2),
            "{} bytes",
            shown.len()
        );
        assert!(long.starts_with(&shown[..40]) && long.ends_with(&shown[shown.len() - 40..]));
        let context = judge.shown_context(&[Message::new(Role::User, long.clone())]);
        let context = context.unwrap();
        assert!(context.len() < 4 * (89 + EDGE + 2) && long.ends_with(&context));
        for short in ["", "a", "ab c"] {
            assert_eq!(judge.shown_answer(short).unwrap(), short);
        }
    }
}
