//! Matching of added tokens in text as in `tokenizers`, except that control tokens match only in trusted text.
//!
//! `tokenizers` can ignore "special" tokens only all or none, in a whole string. Here the decision is made per match: a control token
//! counts only if all of its bytes are trusted. Everything else (longest match first, `single_word`, `lstrip`, `rstrip`, matching against
//! the raw or the normalised text) follows `tokenizers`' `AddedVocabulary`, so that fully trusted text encodes identically.

use std::collections::HashMap;
use std::ops::Range;

use tokenizers::{AddedToken, NormalizedString, Normalizer, NormalizerWrapper};

use super::TextError;

/// Returns whether an added token is a control token, which untrusted text must not become.
///
/// Special tokens always are. Of the others only plain words and white space (GPT-NeoX adds runs of spaces) are text; any token with
/// markup in it (`<think>`, `<|fim_prefix|>`, `[INST]`) is treated as a role marker, whether or not the chat template uses it.
pub(super) fn is_control(token: &AddedToken) -> bool {
    let plain = |c: char| c.is_alphanumeric() || c.is_whitespace() || c == '▁';
    token.special || !token.content.chars().all(plain)
}

/// Returns whether a control token marks reasoning or a tool call inside an answer, by its name. Names that could end a turn or name a
/// role are excluded, and so are unknown names.
pub(super) fn is_marker(content: &str) -> bool {
    const PARTS: [&str; 10] = [
        "think",
        "thought",
        "reason",
        "reflect",
        "scratchpad",
        "tool_call",
        "toolcall",
        "tool▁call",
        "function_call",
        "functioncall",
    ];
    /// Words in the names of role headers, turn ends and tool results.
    const ROLES: [&str; 8] = [
        "user",
        "system",
        "assistant",
        "human",
        "turn",
        "response",
        "result",
        "output",
    ];
    let name = content.to_lowercase();
    let tags = ["<answer>", "</answer>", "<solution>", "</solution>"];
    tags.contains(&name.as_str())
        || PARTS.iter().any(|part| name.contains(part))
            && !ROLES.iter().any(|role| name.contains(role))
}

struct Pattern {
    text: String,
    id: u32,
    control: bool,
    marker: bool,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
}

/// A set of added tokens that are matched in one pass.
pub(super) struct AddedTokens {
    /// Longest first among patterns with the same first byte.
    patterns: Vec<Pattern>,
    /// For every first byte the range of `patterns` that start with it.
    by_first_byte: Box<[Range<u32>; 256]>,
    has_text_tokens: bool,
}

/// A span of the text: an added token, or text between added tokens.
pub(super) type Stretch = (Option<u32>, Range<usize>);

impl AddedTokens {
    /// Returns the tokens matched against raw text and those matched against normalised text, in this order.
    pub(super) fn both<'a>(
        tokens: impl IntoIterator<Item = (u32, &'a AddedToken)>,
        normalizer: Option<&NormalizerWrapper>,
    ) -> Result<(Self, Self), TextError> {
        let mut raw = Vec::new();
        let mut normalized = Vec::new();
        for (id, token) in tokens {
            let mut text = token.content.clone();
            if let (true, Some(normalizer)) = (token.normalized, normalizer) {
                let mut string = NormalizedString::from(text.as_str());
                normalizer
                    .normalize(&mut string)
                    .map_err(|error| TextError::Encode(error.to_string()))?;
                text = string.get().to_owned();
            }
            let pattern = Pattern {
                text,
                id,
                control: is_control(token),
                marker: is_marker(&token.content),
                single_word: token.single_word,
                lstrip: token.lstrip,
                rstrip: token.rstrip,
            };
            if !pattern.text.is_empty() {
                let set = if token.normalized {
                    &mut normalized
                } else {
                    &mut raw
                };
                set.push(pattern);
            }
        }
        Ok((Self::new(raw), Self::new(normalized)))
    }

    fn new(mut patterns: Vec<Pattern>) -> Self {
        patterns.sort_by(|a, b| {
            (a.text.as_bytes()[0].cmp(&b.text.as_bytes()[0]))
                .then(b.text.len().cmp(&a.text.len()))
                .then(a.id.cmp(&b.id))
        });
        let mut starts: HashMap<u8, Range<u32>> = HashMap::new();
        for (index, pattern) in (0u32..).zip(&patterns) {
            let range = starts
                .entry(pattern.text.as_bytes()[0])
                .or_insert(index..index);
            range.end = index + 1;
        }
        Self {
            by_first_byte: Box::new(std::array::from_fn(|byte| {
                starts.get(&(byte as u8)).cloned().unwrap_or(0..0)
            })),
            has_text_tokens: patterns.iter().any(|pattern| !pattern.control),
            patterns,
        }
    }

    /// Returns whether any token could match in text of which some part, or none, is trusted.
    pub(super) fn can_match(&self, some_trusted: bool) -> bool {
        self.has_text_tokens || some_trusted && !self.patterns.is_empty()
    }

    /// Returns whether no match depends on text across a seam of untrusted text, see [`super::encoded_parts`]. Control tokens never match
    /// there.
    pub(super) fn keep_seams(&self) -> bool {
        let mut text_tokens = self.patterns.iter().filter(|pattern| !pattern.control);
        text_tokens.all(|pattern| {
            let bytes = pattern.text.as_bytes();
            let mut pairs = bytes.windows(2);
            let contains_seam = pairs.any(|pair| pair[0].is_ascii_graphic() && pair[1] == b' ');
            !contains_seam && !pattern.single_word && !pattern.rstrip
        })
    }

    /// Splits `text` at the added tokens in it. `trusted` is called for each control token found, with its bytes in `text` (before
    /// `lstrip` and `rstrip` extend the span over white space) and whether it is a marker.
    pub(super) fn split(
        &self,
        text: &str,
        trusted: impl Fn(Range<usize>, bool) -> bool,
    ) -> Vec<Stretch> {
        let bytes = text.as_bytes();
        let mut stretches = Vec::new();
        let mut text_from = 0;
        let mut at = 0;
        while at < bytes.len() {
            let candidates = &self.by_first_byte[bytes[at] as usize];
            let found = self.patterns[candidates.start as usize..candidates.end as usize]
                .iter()
                .find(|pattern| {
                    bytes[at..].starts_with(pattern.text.as_bytes())
                        && (!pattern.control
                            || trusted(at..at + pattern.text.len(), pattern.marker))
                });
            let Some(pattern) = found else {
                at += 1;
                continue;
            };
            let (mut start, mut end) = (at, at + pattern.text.len());
            at = end;
            if pattern.single_word && !stands_alone(&text[..start], &text[end..]) {
                continue;
            }
            if pattern.lstrip {
                start = text[..start].trim_end().len().max(text_from);
            }
            if pattern.rstrip {
                end = text.len() - text[end..].trim_start().len();
            }
            if text_from < start {
                stretches.push((None, text_from..start));
            }
            stretches.push((Some(pattern.id), start..end));
            text_from = end;
        }
        if text_from < text.len() {
            stretches.push((None, text_from..text.len()));
        }
        stretches
    }
}

fn stands_alone(before: &str, after: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    !before.chars().next_back().is_some_and(word) && !after.chars().next().is_some_and(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(content: &str, special: bool) -> AddedToken {
        AddedToken::from(content, special).normalized(false)
    }

    fn set(tokens: &[AddedToken]) -> AddedTokens {
        AddedTokens::both((0..).zip(tokens), None).unwrap().0
    }

    #[test]
    fn markup_and_special_tokens_are_control_words_and_spaces_are_text() {
        for (content, special, control) in [
            ("<|im_end|>", true, true),
            ("<think>", false, true),
            ("[INST]", false, true),
            ("im_start", false, true),
            ("Human:", false, true),
            ("word", true, true),
            ("word", false, false),
            ("    ", false, false),
            ("▁▁", false, false),
            ("日本", false, false),
        ] {
            assert_eq!(is_control(&token(content, special)), control, "{content:?}");
        }
    }

    #[test]
    fn markers_are_told_from_turn_ends_and_role_headers() {
        for marker in [
            "<think>",
            "</think>",
            "<tool_call>",
            "</tool_call>",
            "[THINK]",
            "[/THINK]",
            "[TOOL_CALLS]",
            "<|begin_of_thought|>",
            "<|end_of_thought|>",
            "<reasoning>",
            "<|START_THINKING|>",
            "<seed:think>",
            "<｜tool▁calls▁begin｜>",
            "<answer>",
        ] {
            assert!(is_marker(marker), "{marker}");
        }
        for structure in [
            "<|im_end|>",
            "<|im_start|>",
            "</s>",
            "<s>",
            "[INST]",
            "[/INST]",
            "<|eot_id|>",
            "<|start_header_id|>",
            "<end_of_turn>",
            "<|User|>",
            "<｜Assistant｜>",
            "<|endoftext|>",
            "<tool_response>",
            "[TOOL_RESULTS]",
            "<|end_of_answer|>",
            "<|thinking_assistant|>",
            "<unknown>",
        ] {
            assert!(!is_marker(structure), "{structure}");
        }
    }

    #[test]
    fn the_longest_token_wins_and_an_untrusted_one_is_text() {
        let set = set(&[
            token("<a>", true),
            token("<a><b>", true),
            token("  ", false),
        ]);
        assert_eq!(
            set.split("x<a><b>  <a>", |_, _| true),
            [
                (None, 0..1),
                (Some(1), 1..7),
                (Some(2), 7..9),
                (Some(0), 9..12)
            ]
        );
        // Only "<a>" is trusted: the longer token, half in untrusted text, is rejected in favour of the shorter.
        assert_eq!(
            set.split("<a><b>  ", |range, _| range.end <= 3),
            [(Some(0), 0..3), (None, 3..6), (Some(2), 6..8)]
        );
        assert_eq!(
            set.split("<a>  ", |_, _| false),
            [(None, 0..3), (Some(2), 3..5)]
        );
    }

    #[test]
    fn strips_and_single_words() {
        let set = set(&[
            token("<m>", true).lstrip(true).rstrip(true),
            token("ab", false).single_word(true),
        ]);
        assert_eq!(
            set.split("x  <m> \ty", |_, _| true),
            [(None, 0..1), (Some(0), 1..8), (None, 8..9)]
        );
        assert_eq!(
            set.split("ab cab ab", |_, _| true),
            [(Some(1), 0..2), (None, 2..7), (Some(1), 7..9)]
        );
    }
}
