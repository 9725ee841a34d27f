//! The readings of one text, and what was found in any of them.

use std::ops::Range;

use super::scan::{Find, Scan};

/// A text that was searched: as it stands, and with its escapes as what they stand for.
#[derive(Debug)]
pub(super) struct Views {
    scans: Vec<Scan>,
}

impl Views {
    /// The first of the scans is that of the text as it stands.
    pub fn new(scans: Vec<Scan>) -> Self {
        Self { scans }
    }

    /// Returns what was found, with its places in the original. Finds that overlap become one, named by the longest of them.
    pub fn places(&self) -> Vec<(Range<usize>, Find)> {
        let mut all: Vec<(Range<usize>, Find)> = Vec::new();
        for (view, scan) in self.scans.iter().enumerate() {
            // What begins within an escape, as the `n` of a line's end, is read right with escapes.
            let misread = |place: &Range<usize>| {
                view == 0
                    && self.scans[1..]
                        .iter()
                        .any(|other| other.is_inside(place.start))
            };
            let found = scan.places().into_iter();
            all.extend(found.filter(|(place, _)| !misread(place)));
        }
        // Of equal places, that with escapes comes later and names the value.
        all.sort_by_key(|(place, _)| (place.start, place.end));
        let mut united: Vec<(Range<usize>, Find, usize)> = Vec::with_capacity(all.len());
        for (place, find) in all {
            let length = place.len();
            match united.last_mut() {
                Some((last, named, longest)) if place.start < last.end => {
                    last.end = last.end.max(place.end);
                    if length >= *longest {
                        *longest = length;
                        *named = find;
                    }
                }
                _ => united.push((place, find, length)),
            }
        }
        united
            .into_iter()
            .map(|(place, find, _)| (place, find))
            .collect()
    }

    /// Returns the original with a replacement for every find; none if there was none.
    pub fn replaced(&self, original: &str, with: impl Fn(&Find) -> String) -> Option<String> {
        let places = self.places();
        let mut replaced = String::with_capacity(original.len());
        let mut kept = 0;
        for (range, find) in &places {
            // Two finds may have parts of one character.
            if range.start > kept {
                replaced.push_str(&original[kept..range.start]);
            }
            replaced.push_str(&with(find));
            kept = range.end.max(kept);
        }
        (!places.is_empty()).then(|| {
            replaced.push_str(&original[kept..]);
            replaced
        })
    }

    /// How many bytes were read.
    #[cfg(test)]
    pub fn reads(&self) -> u64 {
        self.scans.iter().map(Scan::reads).sum()
    }
}
