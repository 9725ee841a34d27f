//! Truncation of over-long judge prompts: the frame stays, the context and the candidates shrink.
//!
//! The released code cuts from the left, so that the question itself is lost first (papers.md 1.3). Here whole tokens are removed from
//! the beginning of the context, and then from the middles of the candidates; the remaining text keeps its token ids, so the frame and
//! the label position are exactly those of an uncut prompt.

use std::ops::Range;

use super::{JudgeError, JudgePrompt};
use text::{Encoded, EncodedParts, Tokenizer};

/// Fewest tokens for the context and the candidates together; with fewer, a verdict would be meaningless.
const LEAST_CONTENT: usize = 12;

/// The token ids of a judge prompt that fits the model's context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FittedPrompt {
    pub ids: Vec<u32>,
    /// Token positions of the candidate shown first.
    pub a: Range<usize>,
    /// Token positions of the candidate shown second.
    pub b: Range<usize>,
    /// Whether any token was removed.
    pub cut: bool,
}

/// Returns the tokens that lie wholly within a byte range.
pub fn tokens_within(encoded: &Encoded, bytes: &Range<usize>) -> Range<usize> {
    let start = encoded
        .offsets
        .partition_point(|token| token.start < bytes.start);
    let end = encoded
        .offsets
        .partition_point(|token| token.end <= bytes.end);
    start..end.max(start)
}

/// Encodes a prompt and cuts it to at most `max_tokens`.
///
/// # Errors
/// If encoding fails, or the frame leaves no room for content.
pub fn fit(
    tokenizer: &Tokenizer,
    prompt: &JudgePrompt,
    max_tokens: usize,
) -> Result<FittedPrompt, JudgeError> {
    cut(
        tokenizer.encode_rendered(&prompt.rendered)?,
        prompt,
        max_tokens,
    )
}

/// Encodes and cuts a prompt as [`fit`] does, with the encodings of texts that other prompts show as well.
///
/// # Errors
/// As [`fit`].
pub fn fit_with_parts(
    tokenizer: &Tokenizer,
    prompt: &JudgePrompt,
    max_tokens: usize,
    parts: &EncodedParts,
) -> Result<FittedPrompt, JudgeError> {
    let slots = [&prompt.context, &prompt.a, &prompt.b].map(Clone::clone);
    let encoded = tokenizer.encode_with_parts(&prompt.rendered, &slots, parts)?;
    cut(encoded, prompt, max_tokens)
}

/// Cuts an encoded prompt to at most `max_tokens`.
fn cut(
    encoded: Encoded,
    prompt: &JudgePrompt,
    max_tokens: usize,
) -> Result<FittedPrompt, JudgeError> {
    let [context, a, b] =
        [&prompt.context, &prompt.a, &prompt.b].map(|bytes| tokens_within(&encoded, bytes));
    let total = encoded.ids.len();
    if total <= max_tokens {
        return Ok(FittedPrompt {
            ids: encoded.ids,
            a,
            b,
            cut: false,
        });
    }
    let frame = total - context.len() - a.len() - b.len();
    let room = max_tokens.saturating_sub(frame);
    if room < LEAST_CONTENT {
        return Err(JudgeError::NoRoom { frame, max_tokens });
    }
    let [keep_context, keep_a, keep_b] = share(room, [context.len(), a.len(), b.len()]);
    let mut gone = [
        context.start..context.end - keep_context,
        middle(&a, keep_a),
        middle(&b, keep_b),
    ];
    gone.sort_by_key(|range| range.start);
    let before = |position: usize| -> usize {
        gone.iter()
            .map(|range| range.end.min(position).saturating_sub(range.start))
            .sum()
    };
    let moved =
        |range: &Range<usize>| range.start - before(range.start)..range.end - before(range.end);
    let (a, b) = (moved(&a), moved(&b));
    let mut ids = encoded.ids;
    for range in gone.iter().rev() {
        ids.drain(range.clone());
    }
    Ok(FittedPrompt {
        ids,
        a,
        b,
        cut: true,
    })
}

/// Returns the middle of a range to be removed so that `keep` positions remain, the odd one at the front.
fn middle(range: &Range<usize>, keep: usize) -> Range<usize> {
    range.start + keep.div_ceil(2)..range.end - keep / 2
}

/// Divides `room` tokens among the context and the two candidates; returns the number that each keeps.
///
/// The candidates have priority, but the context keeps up to a quarter. The longer candidate is cut until both are equal; the rule is
/// symmetric, so both orders show the same pieces.
fn share(room: usize, [context, a, b]: [usize; 3]) -> [usize; 3] {
    let keep_context = context.min(room.saturating_sub(a + b).max(room / 4));
    let rest = room - keep_context;
    if a + b <= rest {
        return [keep_context, a, b];
    }
    let cap = (rest / 2).max(rest.saturating_sub(a.min(b)));
    let (a, b) = (a.min(cap), b.min(cap));
    [context.min(room - a - b), a, b]
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::fixtures;
    use text::{Message, Role};

    fn prompt(context: &str, a: &str, b: &str) -> JudgePrompt {
        let context = [Message::new(Role::User, context)];
        fixtures::template()
            .render(&fixtures::chat(), &context, a, b, &[])
            .unwrap()
    }

    /// `<|user|>By: best.\nQ: ` + `\n1: ` + `\n2: ` + `\nWhich?</s><|assistant|>I say`: characters and special tokens.
    const FRAME: usize = 14 + 4 + 4 + 7 + 2 + 5;

    #[test]
    fn prompts_that_fit_are_left_alone() {
        let fitted = fit(
            &fixtures::tokenizer(),
            &prompt("ctx", "one", "three"),
            FRAME + 11,
        )
        .unwrap();
        assert_eq!(fitted.ids.len(), FRAME + 11);
        assert!(!fitted.cut);
        assert_eq!(fixtures::decode(&fitted.ids[fitted.a]), "one");
        assert_eq!(fixtures::decode(&fitted.ids[fitted.b]), "three");
    }

    #[test]
    fn the_context_goes_from_the_left_then_the_candidates_from_the_middle() {
        let context = "0123456789abcdefghij";
        let cut = |room| {
            let fitted = fit(
                &fixtures::tokenizer(),
                &prompt(context, "alpha", "omegaomega"),
                FRAME + room,
            )
            .unwrap();
            assert_eq!(fitted.ids.len(), FRAME + room);
            assert!(fitted.cut);
            assert_eq!(
                fixtures::decode(&fitted.ids[fitted.a.clone()]).len(),
                fitted.a.len()
            );
            fixtures::decode(&fitted.ids)
        };
        assert_eq!(
            cut(25),
            "<|user|>By: best.\nQ: abcdefghij\n1: alpha\n2: omegaomega\nWhich?</s><|assistant|>I say"
        );
        // 16 tokens remain: a quarter for the context; of the other 12 the shorter candidate keeps its 5.
        assert_eq!(
            cut(16),
            "<|user|>By: best.\nQ: ghij\n1: alpha\n2: omegega\nWhich?</s><|assistant|>I say"
        );
        // 12 tokens remain: 3, 4 and 4 would leave one unused, which goes to the context.
        assert_eq!(
            cut(12),
            "<|user|>By: best.\nQ: ghij\n1: alha\n2: omga\nWhich?</s><|assistant|>I say"
        );
    }

    #[test]
    fn a_frame_that_fills_the_window_is_an_error() {
        let error = fit(
            &fixtures::tokenizer(),
            &prompt("some context", "one", "two"),
            FRAME + 5,
        )
        .unwrap_err();
        assert!(
            matches!(error, JudgeError::NoRoom { frame: FRAME, .. }),
            "{error}"
        );
    }

    #[test]
    fn shares_fill_the_room_and_do_not_depend_on_the_order() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for _ in 0..5000 {
            let [context, a, b] = [(); 3].map(|()| rng.random_range(0..60usize));
            let room = rng.random_range(0..=context + a + b);
            let [kept, left, right] = share(room, [context, a, b]);
            assert!(kept <= context && left <= a && right <= b);
            assert_eq!(share(room, [context, b, a]), [kept, right, left]);
            let used = kept + left + right;
            // Equal caps may leave one token unused when the context needs no more.
            assert!(
                used <= room && used + 1 >= room,
                "{used} of {room} for {context} {a} {b}"
            );
            assert!(kept >= context.min(room / 4));
        }
    }
}
