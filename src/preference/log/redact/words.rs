//! Words that say what stands beside them: `passport`, `tel.`, `password`, `sk-`, `-----BEGIN`.
//!
//! One automaton finds all of them in one pass over a text.

use std::collections::BTreeMap;
use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};

use super::normalise::Plain;
use super::scan::Scan;
use crate::preference::log::{LogError, Result};

/// What a word announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    /// A number of one form of [`super::numbers::national`].
    Form(usize),
    /// A number of any state: `tax id`, `social security number`.
    AnyId,
    /// A document's number, whatever its form is: `passport`.
    Document,
    /// A bank account.
    Account,
    /// A bank account whose number follows at once: `account`.
    PlainAccount,
    /// A payment card.
    Card,
    /// A telephone number.
    Phone,
    /// A date of birth.
    Birth,
    /// A secret that begins with the word, by its place in [`super::secrets::tokens`].
    Token(usize),
    /// An address that is a secret, from behind the word.
    Webhook,
    /// A value that is secret because of its name.
    Named(Named),
    /// `-----BEGIN`
    Begin,
    /// `-----END`
    End,
    /// `://`
    Address,
    /// A header whose whole value is secret.
    Header,
    /// `bearer` and other schemes of authorization.
    Scheme,
    /// `-u` and `--user`
    UserOption,
    /// A program that takes a password on its command line, by its place in [`super::secrets::command_line`].
    Program(usize),
    /// What stands beside credentials in the address of a database.
    Connection(Connection),
    /// A part of a private key that a name marks: `<D>`, `"d"`.
    KeyPart,
    /// `wifi:`
    Wifi,
    /// A spelling of the sign `@`.
    At,
    /// A word for electronic mail.
    Mail,
    /// A word for a hardware address.
    Hardware,
    /// A word after which dotted numbers are versions and sections.
    Version,
}

/// How credentials stand beside a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Connection {
    /// `user:password` in front of it: `@tcp(`.
    Front,
    /// `user/password@` behind it: `jdbc:oracle:thin:`.
    Behind,
}

/// Why a named value is secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Named {
    /// People choose passwords: any word may be one.
    Password,
    /// Programs make keys: they are long.
    Key,
    /// As a key, but the name is often that of something else: `token`.
    WeakKey,
    /// A few digits.
    Pin,
}

/// A word of the table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Word {
    pub text: &'static str,
    pub sign: Sign,
    /// Whether letters beside it make another word of it.
    pub whole: bool,
}

/// Where a word stands.
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
        // Spelled as texts are.
        let mut by_text: BTreeMap<Vec<u8>, Vec<Word>> = BTreeMap::new();
        for word in words {
            // The automaton knows the capitals of ASCII alone.
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

/// How many words in front of a place are looked at.
const LOOKED_AT: usize = 48;

impl Hits<'_> {
    /// Returns every place of words with a sign that is `wanted`, with what it makes of the sign.
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

    /// Whether a word with a `wanted` sign ends in front of `at`, at most `reach` bytes before it.
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
    /// Whether a word with a `wanted` sign begins behind `end`, at most `reach` bytes from it, and is `linked` with what ends there.
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

/// Makes words of texts with one sign; letters beside them make other words of them.
pub(super) fn whole(texts: &'static [&'static str], sign: Sign) -> impl Iterator<Item = Word> {
    texts.iter().map(move |text| Word {
        text,
        sign,
        whole: true,
    })
}

/// Makes words of texts with one sign, wherever they stand.
pub(super) fn anywhere(texts: &'static [&'static str], sign: Sign) -> impl Iterator<Item = Word> {
    texts.iter().map(move |text| Word {
        text,
        sign,
        whole: false,
    })
}
