//! A SentencePiece vocabulary with scores, as a BPE tokenizer with merges.
//!
//! SentencePiece joins the pair of pieces whose joint piece has the highest score; BPE joins the pair whose merge has the lowest rank. So the
//! merges are all pairs of pieces whose joint piece exists, in the order of its score.

use std::collections::HashSet;

use serde_json::{Value, json};

/// The maximum length of all merges together, in bytes. The largest vocabularies have about 10 MB.
const MAX_MERGE_BYTES: usize = 128 << 20;

/// Returns the merges in order of rank.
///
/// # Errors
/// Errors if they exceed the limit: among pieces that repeat one letter every part of a piece is a piece.
pub(super) fn merges<'a>(tokens: &[&'a str], scores: &[f32]) -> Result<Vec<[&'a str; 2]>, String> {
    let pieces: HashSet<&str> = tokens.iter().copied().collect();
    let mut bytes = 0_usize;
    let mut merges: Vec<(f32, [&str; 2])> = Vec::new();
    for (token, &score) in tokens.iter().zip(scores) {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if !pieces.contains(left) || !pieces.contains(right) {
                continue;
            }
            bytes += token.len();
            if bytes > MAX_MERGE_BYTES {
                return Err(format!(
                    "the tokenizer has more than {MAX_MERGE_BYTES} bytes of merges"
                ));
            }
            merges.push((score, [left, right]));
        }
    }
    // The sort is stable: merges of equal score keep the order of their tokens.
    merges.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    Ok(merges.into_iter().map(|(_, merge)| merge).collect())
}

/// Returns the rule that writes spaces as `▁`, behind one more at the start of a text if `prefix`.
pub(super) fn normalizer(prefix: bool) -> Value {
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    match prefix {
        true => {
            json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, spaces]})
        }
        false => spaces,
    }
}

/// Returns the rule that turns pieces into text: the inverse of [`normalizer`], with tokens like `<0x0A>` as bytes.
pub(super) fn decoder(prefix: bool) -> Value {
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": decoders})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_follow_the_scores_of_their_tokens() {
        let tokens = ["a", "b", "ab", "aa", "aab", "▁"];
        let scores = [-9.0, -9.0, -2.0, -3.0, -1.0, -9.0];
        let expected = [["a", "ab"], ["aa", "b"], ["a", "b"], ["a", "a"]];
        assert_eq!(merges(&tokens, &scores).unwrap(), expected);
    }

    #[test]
    fn pieces_of_one_letter_do_not_exhaust_memory() {
        let long = "a".repeat(4096);
        let tokens: Vec<&str> = (1..=long.len()).map(|length| &long[..length]).collect();
        let error = merges(&tokens, &vec![0.0; tokens.len()]).unwrap_err();
        assert!(error.contains("bytes of merges"), "{error}");
    }
}
