//! The span of an assistant turn in a rendered conversation.

use std::ops::Range;

use text::Rendered;

/// Returns a turn's span without the white space after its end-of-turn mark: generation ends at the mark. If the mark itself is white
/// space, it is kept.
pub(super) fn without_trailing_space(full: &Rendered, span: Range<usize>) -> Range<usize> {
    let content_end = full
        .contents()
        .into_iter()
        .filter(|range| range.start >= span.start && range.end <= span.end)
        .map(|range| range.end)
        .max();
    let closing = &full.text[content_end.unwrap_or(span.end)..span.end];
    match closing.trim_end() {
        "" => span,
        mark => span.start..span.end - (closing.len() - mark.len()),
    }
}

/// Returns the number of bytes that a prompt and the conversation with its answer share, up to the beginning of the answer; `None` if
/// they differ in message contents, and not only in the text with which the template opens the answer.
///
/// Templates of reasoning models open `<think>` in the prompt and render a finished turn without it: the answer then begins before it, as
/// in TRL.
pub(super) fn shared_beginning(prompt: &Rendered, full: &str) -> Option<usize> {
    let same = prompt.text.chars().zip(full.chars());
    let shared = same.take_while(|(a, b)| a == b);
    let shared = shared.map(|(c, _)| c.len_utf8()).sum();
    let contents_end = prompt.contents().last().map_or(0, |range| range.end);
    // Only the opening of the answer may be cut off.
    let whole = shared == prompt.text.len();
    (whole || shared > 0 && contents_end <= shared).then_some(shared)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(before: &str, content: &str, behind: &str) -> Rendered {
        let mut prompt = Rendered::new();
        prompt.push_trusted(before);
        prompt.push_untrusted(content);
        prompt.push_trusted(behind);
        prompt
    }

    #[test]
    fn an_answer_begins_where_the_prompt_ends_or_opens_it() {
        let asked = prompt("<u>", "q", "<a><think>\n");
        for (full, expected) in [
            ("<u>q<a><think>\nhm</think>x<e>", Some(15)),
            ("<u>q<a>x<e>", Some(7)),
            // Half a tag is shared: the caller cuts at tokens.
            ("<u>q<a><tool>x<e>", Some(9)),
            ("<u>Q<a>x<e>", None),
            ("", None),
        ] {
            assert_eq!(shared_beginning(&asked, full), expected, "{full}");
        }
        // Like Mistral Nemo's template, which moves the system message into the last user turn.
        let moved = prompt("[INST]", "be kind\n\nq", "[/INST]");
        assert_eq!(shared_beginning(&moved, "[INST]q[/INST]x</s>"), None);
    }
}
