//! Which bytes of a text that is being encoded may become control tokens.

use std::ops::Range;

/// The trust in a text. Ranges are sorted and disjoint.
#[derive(Clone, Copy)]
pub(super) enum Trust<'a> {
    All,
    Nothing,
    /// Everything outside `untrusted`; in `own` only markers count, and those only with `markers`.
    Outside {
        untrusted: &'a [Range<usize>],
        own: &'a [Range<usize>],
        markers: bool,
    },
}

impl Trust<'_> {
    /// Whether these bytes may be a control token, which is a marker of reasoning or tool calls or is not.
    pub(super) fn covers(self, range: &Range<usize>, marker: bool) -> bool {
        match self {
            Trust::All => true,
            Trust::Nothing => false,
            Trust::Outside {
                untrusted,
                own,
                markers,
            } => !touches(untrusted, range) && (marker && markers || !touches(own, range)),
        }
    }

    pub(super) fn some(self) -> bool {
        !matches!(self, Trust::Nothing)
    }
}

fn touches(ranges: &[Range<usize>], range: &Range<usize>) -> bool {
    let next = ranges.partition_point(|other| other.end <= range.start);
    ranges
        .get(next)
        .is_some_and(|other| other.start < range.end)
}
