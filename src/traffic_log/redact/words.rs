//! Words that announce the kind of a value beside them: `passport`, `tel.`, `password`, `sk-`, `-----BEGIN`.
//!
//! One automaton finds all of them in one pass over a text.

use std::collections::BTreeMap;
use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};

use super::normalise::Plain;
use super::scan::Scan;
use crate::{LogError, Result};

/// The kind of value that a word announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    /// A number of one form of [`super::numbers::national`].
    Form(usize),
    /// A number of any state: `tax id`, `social security number`.
    AnyId,
    /// A document's number in any form: `passport`.
    Document,
    /// A bank account.
    Account,
    /// A bank account whose number follows immediately: `account`.
    PlainAccount,
    /// A payment card.
    Card,
    /// A telephone number.
    Phone,
    /// A list of numbers.
    List,
    /// A date of birth.
    Birth,
    /// A secret that starts with the word; the index is into [`super::secrets::tokens`].
    Token(usize),
    /// An address that is a secret from the end of the word on.
    Webhook,
    /// A value that its name marks as secret.
    Named(Named),
    /// `-----BEGIN`
    Begin,
    /// `-----END`
    End,
    /// `://`
    Address,
    /// A header whose whole value is secret.
    Header,
    /// `bearer` and other authorization schemes.
    Scheme,
    /// `-u` and `--user`
    UserOption,
    /// A program that takes a password on its command line; the index is into [`super::secrets::command_line`].
    Program(usize),
    /// A part of a database address that is next to credentials.
    Connection(Connection),
    /// A part of a private key that is marked by a name: `<D>`, `"d"`.
    KeyPart,
    /// `wifi:`
    Wifi,
    /// A spelling of the sign `@`.
    At,
    /// A word for electronic mail.
    Mail,
    /// A word for a hardware address.
    Hardware,
    /// A word after which dotted numbers are versions or sections.
    Version,
}

/// The position of credentials relative to a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Connection {
    /// `user:password` before it: `@tcp(`.
    Front,
    /// `user/password@` after it: `jdbc:oracle:thin:`.
    Behind,
}

/// The kind of a named secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Named {
    /// Passwords are chosen by people: any word may be one.
    Password,
    /// Keys are generated: they are long.
    Key,
    /// Like a key, but the name often has other meanings: `token`.
    WeakKey,
    /// A few digits.
    Pin,
}

/// A word of the table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Word {
    pub text: &'static str,
    pub sign: Sign,
    /// Whether the word must not have letters directly beside it.
    pub whole: bool,
}

/// An occurrence of a word.
#[derive(Debug, Clone)]
pub(super) struct Hit {
    pub range: Range<usize>,
    pattern: usize,
}

/// The words of all rules.
#[derive(Debug)]
pub(super) struct Words {
    automaton: AhoCorasick,
    signs: Vec<Vec<Word>>,
}

impl Words {
    pub fn new(words: impl Iterator<Item = Word>) -> Result<Self> {
        // Words are normalised like texts.
        let mut by_text: BTreeMap<Vec<u8>, Vec<Word>> = BTreeMap::new();
        for word in words {
            // The automaton ignores case only for ASCII.
            let mut spellings = vec![word.text.to_owned()];
            if !word.text.is_ascii() {
                let mut rest = word.text.chars();
                let first = rest.next().into_iter().flat_map(char::to_uppercase);
                spellings.extend([word.text.to_uppercase(), first.chain(rest).collect()]);
                spellings.sort();
                spellings.dedup();
            }
            for spelling in spellings {
                let text = Plain::new(&spelling).bytes;
                by_text.entry(text).or_default().push(word);
            }
        }
        let automaton = AhoCorasick::builder()
            .ascii_case_insensitive(true)
            .match_kind(MatchKind::Standard)
            .build(by_text.keys())
            .map_err(|error| LogError::Config(error.to_string()))?;
        Ok(Self {
            automaton,
            signs: by_text.into_values().collect(),
        })
    }

    /// Finds all words in a text, in the order of their ends.
    pub fn find(&self, scan: &Scan) -> Hits<'_> {
        let bytes = scan.all();
        let is_letter = |at: Option<&u8>| at.is_some_and(u8::is_ascii_alphabetic);
        let found = self.automaton.find_overlapping_iter(bytes);
        let hits = found.filter_map(|found| {
            let pattern = found.pattern().as_usize();
            let letters = |at: usize| is_letter(bytes.get(at));
            let beside =
                (found.start() > 0 && letters(found.start() - 1) && letters(found.start()))
                    || (letters(found.end()) && letters(found.end() - 1));
            let fits = !beside || self.signs[pattern].iter().any(|word| !word.whole);
            fits.then(|| Hit {
                range: found.range(),
                pattern,
            })
        });
        Hits {
            hits: hits.collect(),
            words: self,
        }
    }
}

/// The words of one text.
#[derive(Debug)]
pub(super) struct Hits<'a> {
    hits: Vec<Hit>,
    words: &'a Words,
}

/// The maximum number of words that are checked beside a place.
const LOOKED_AT: usize = 48;

impl Hits<'_> {
    /// Returns every occurrence of a word whose sign is `wanted`, with the closure's value.
    pub fn all<T>(
        &self,
        wanted: impl Fn(Sign) -> Option<T> + Copy,
    ) -> impl Iterator<Item = (Range<usize>, T)> {
        self.hits.iter().flat_map(move |hit| {
            self.words.signs[hit.pattern]
                .iter()
                .filter_map(move |word| Some((hit.range.clone(), wanted(word.sign)?)))
        })
    }

    /// Returns whether a word with a `wanted` sign ends before `at`, at most `reach` bytes away.
    pub fn announce(&self, at: usize, reach: usize, wanted: impl Fn(Sign) -> bool) -> bool {
        let after = self.hits.partition_point(|hit| hit.range.end <= at);
        self.hits[..after]
            .iter()
            .rev()
            .take(LOOKED_AT)
            .take_while(|hit| hit.range.end + reach >= at)
            .any(|hit| {
                self.words.signs[hit.pattern]
                    .iter()
                    .any(|word| wanted(word.sign))
            })
    }
}

impl Hits<'_> {
    /// Returns whether a word with a `wanted` sign starts after `end`, at most `reach` bytes away, and is `linked` to the value that ends
    /// there.
    pub fn follow(
        &self,
        end: usize,
        reach: usize,
        wanted: impl Fn(Sign) -> bool,
        linked: impl Fn(usize) -> bool,
    ) -> bool {
        let after = self.hits.partition_point(|hit| hit.range.end <= end);
        self.hits[after..]
            .iter()
            .take(LOOKED_AT)
            .filter(|hit| (end + 1..=end + reach).contains(&hit.range.start))
            .any(|hit| {
                let is_wanted = self.words.signs[hit.pattern]
                    .iter()
                    .any(|word| wanted(word.sign));
                is_wanted && linked(hit.range.start)
            })
    }
}

/// Returns words with one sign that must not have letters directly beside them.
pub(super) fn whole(texts: &'static [&'static str], sign: Sign) -> impl Iterator<Item = Word> {
    texts.iter().map(move |text| Word {
        text,
        sign,
        whole: true,
    })
}

/// Returns words with one sign that count also within other words.
pub(super) fn anywhere(texts: &'static [&'static str], sign: Sign) -> impl Iterator<Item = Word> {
    texts.iter().map(move |text| Word {
        text,
        sign,
        whole: false,
    })
}
