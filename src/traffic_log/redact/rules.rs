//! The built-in rules of one log.

use std::collections::HashMap;
use std::ops::Range;

use super::normalise::Plain;
use super::numbers::national::Forms;
use super::rule::RedactionRule;
use super::scan::{Find, Scan};
use super::surrogate::{self, Surrogates};
use super::views::Views;
use super::words::Words;
use super::{email, network, numbers, seam, secrets};
use crate::Result;

/// The rules of one log.
#[derive(Debug)]
pub(super) struct Rules {
    chosen: Vec<RedactionRule>,
    words: Words,
    forms: Forms,
    surrogates: Surrogates,
}

impl Rules {
    pub fn new(rules: &[RedactionRule], salt: String) -> Result<Self> {
        let words = secrets::words()
            .chain(email::words())
            .chain(network::words())
            .chain(numbers::words());
        Ok(Self {
            chosen: rules.to_vec(),
            words: Words::new(words)?,
            forms: Forms::new(),
            surrogates: Surrogates::new(salt),
        })
    }

    /// Returns the text with surrogates, or none if nothing was found.
    pub fn apply(&self, text: &str) -> Option<String> {
        if self.chosen.is_empty() {
            return None;
        }
        self.search(text)
            .replaced(text, |find| self.surrogate(find))
    }

    /// Returns the values that are found in a text, with their places.
    pub fn places(&self, text: &str) -> Vec<(Range<usize>, Find)> {
        self.search(text).places()
    }

    /// Returns the surrogate of a value.
    pub fn surrogate(&self, find: &Find) -> String {
        self.surrogates.of(find.rule, &find.value)
    }

    /// Returns texts with surrogates. A repeated text, like stop strings and principles, is searched once. `seams` are pairs of texts
    /// over which a value may be split.
    pub fn apply_all(&self, texts: &[String], seams: &[(usize, usize)]) -> Vec<String> {
        let closed;
        let texts = match seams {
            [] => texts,
            _ => {
                let mut whole = texts.to_vec();
                seam::close(self, &mut whole, seams);
                closed = whole;
                &closed
            }
        };
        let mut known: HashMap<&str, Option<String>> = HashMap::new();
        let mut redacted = Vec::with_capacity(texts.len());
        for text in texts {
            let found = known
                .entry(text)
                .or_insert_with(|| self.apply(text))
                .clone();
            redacted.push(found.unwrap_or_else(|| text.clone()));
        }
        redacted
    }

    /// Searches a text, both with its escapes and with these replaced by their characters.
    pub fn search(&self, text: &str) -> Views {
        let plain = [Some(Plain::new(text)), Plain::unescaped(text)];
        let searched = plain
            .into_iter()
            .flatten()
            .map(|plain| self.searched(plain));
        Views::new(searched.collect())
    }

    /// Searches one reading of a text. Values that contain values of other rules are found first and hidden from those rules.
    fn searched(&self, plain: Plain) -> Scan {
        let wanted = |rule: RedactionRule| self.chosen.contains(&rule);
        let mut scan = Scan::new(plain);
        hide_surrogates(&mut scan);
        let hits = self.words.find(&scan);
        if wanted(RedactionRule::Secret) {
            secrets::find(&mut scan, &hits);
        }
        if wanted(RedactionRule::Email) {
            email::find(&mut scan, &hits);
            scan.hide();
        }
        network::find(&mut scan, &hits, wanted);
        numbers::find(&mut scan, &hits, &self.forms, wanted);
        scan
    }
}

/// Hides the surrogates of an earlier redaction, so that they stay unchanged.
fn hide_surrogates(scan: &mut Scan) {
    let mut at = 0;
    while at < scan.len() {
        at += scan.run(at, usize::MAX, |byte| byte != b'[');
        match surrogate::length(scan.bytes(at..at + surrogate::LONGEST)) {
            Some(length) => {
                scan.skip(at..at + length);
                at += length;
            }
            None => at += 1,
        }
    }
}
