//! The readings of one text, and the values found in any of them.

use std::ops::Range;

use super::scan::{Find, Scan};

/// A searched text in two readings: with its escapes, and with these replaced by their characters.
#[derive(Debug)]
pub(super) struct Views {
    scans: Vec<Scan>,
}

impl Views {
    /// Returns the views. The first scan must be of the text with its escapes.
    pub fn new(scans: Vec<Scan>) -> Self {
        Self { scans }
    }

    /// Returns the found values with their places in the original. Overlapping values become one, with the rule of the longest.
    pub fn places(&self) -> Vec<(Range<usize>, Find)> {
        let mut all: Vec<(Range<usize>, Find)> = Vec::new();
        for (view, scan) in self.scans.iter().enumerate() {
            // A value that starts within an escape, such as the `n` of `\n`, is read correctly only without escapes.
            let misread = |place: &Range<usize>| {
                view == 0
                    && self.scans[1..]
                        .iter()
                        .any(|other| other.is_inside(place.start))
            };
            let found = scan.places().into_iter();
            all.extend(found.filter(|(place, _)| !misread(place)));
        }
        // Of equal places, that of the reading without escapes comes later and determines the value.
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

    /// Returns the original with every found value replaced; none if there was no value.
    pub fn replaced(&self, original: &str, with: impl Fn(&Find) -> String) -> Option<String> {
        let places = self.places();
        let mut replaced = String::with_capacity(original.len());
        let mut kept = 0;
        for (range, find) in &places {
            // Two values may share a character of the original.
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

    /// Returns the number of bytes that were read.
    #[cfg(test)]
    pub fn reads(&self) -> u64 {
        self.scans.iter().map(Scan::reads).sum()
    }
}
