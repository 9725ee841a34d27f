//! Where an assistant's turn ends in a rendered conversation.

use std::ops::Range;

use crate::text::Rendered;

/// A turn's span without the white space that follows its end-of-turn mark: generation ends at the mark. A template whose
/// mark is white space keeps it.
pub(super) fn without_trailing_space(full: &Rendered, span: Range<usize>) -> Range<usize> {
    let inside = |range: &&Range<usize>| range.start >= span.start && range.end <= span.end;
    let content_end = full
        .untrusted
        .iter()
        .filter(inside)
        .map(|range| range.end)
        .max();
    let closing = &full.text[content_end.unwrap_or(span.end)..span.end];
    match closing.trim_end() {
        "" => span,
        mark => span.start..span.end - (closing.len() - mark.len()),
    }
}
