//! The bytes of an encoded text that may become control tokens.

use std::ops::Range;

/// The trust in a text. Ranges are sorted and disjoint.
#[derive(Clone, Copy)]
pub(super) enum Trust<'a> {
    All,
    Nothing,
    /// Everything outside `untrusted` is trusted; in `own` only markers are recognised, and only if `markers` is set.
    Outside {
        untrusted: &'a [Range<usize>],
        own: &'a [Range<usize>],
        markers: bool,
    },
}

impl Trust<'_> {
    /// Returns whether these bytes may be a control token; `marker` states whether that token marks reasoning or tool calls.
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
