//! Surrogates: the replacements of redacted values, like `[EMAIL-kdbcnaofghij]`.

use sha2::{Digest, Sha256};

use super::rule::RedactionRule;

/// The bytes of the hash in a surrogate, two letters each.
const SHOWN: usize = 6;

/// The letters of a hash: one for each value of four bits.
const LETTERS: std::ops::RangeInclusive<u8> = b'a'..=b'p';

/// Creates the surrogates of one log.
#[derive(Debug)]
pub(super) struct Surrogates {
    salt: String,
}

impl Surrogates {
    pub fn new(salt: String) -> Self {
        Self { salt }
    }

    /// Returns the surrogate of a value: equal values of a log have equal surrogates. The hash is written in letters, so that no rule
    /// finds anything in it.
    pub fn of(&self, rule: RedactionRule, value: &str) -> String {
        let mut hasher = Sha256::new();
        for part in [self.salt.as_str(), rule.name(), value] {
            hasher.update(part);
            hasher.update([0]);
        }
        let letter = |nibble: u8| char::from(LETTERS.start() + nibble);
        let hash: String = hasher.finalize()[..SHOWN]
            .iter()
            .flat_map(|byte| [letter(byte >> 4), letter(byte & 15)])
            .collect();
        format!("[{}-{hash}]", rule.name().to_uppercase())
    }
}

/// Returns the length of the surrogate at the start of `text`; none if there is no surrogate.
pub(super) fn length(text: &[u8]) -> Option<usize> {
    RedactionRule::ALL.into_iter().find_map(|rule| {
        let name = rule.name().as_bytes();
        let (open, rest) = text.split_first()?;
        let (head, rest) = rest.split_at_checked(name.len())?;
        let (dash, rest) = rest.split_first()?;
        let (hash, rest) = rest.split_at_checked(2 * SHOWN)?;
        let is_one = *open == b'['
            && *dash == b'-'
            && head
                .iter()
                .map(u8::to_ascii_lowercase)
                .eq(name.iter().copied())
            && hash.iter().all(|letter| LETTERS.contains(letter))
            && rest.first() == Some(&b']');
        is_one.then_some(name.len() + 2 * SHOWN + 3)
    })
}

/// The maximum length of a surrogate in bytes.
pub(super) const LONGEST: usize = "[SECRET-]".len() + 2 * SHOWN;
