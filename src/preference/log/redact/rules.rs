//! The built-in rules: patterns, each with a check of what a pattern cannot say.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use regex::Regex;
use sha2::{Digest, Sha256};

use crate::preference::log::{LogError, Result};

/// A kind of personal data or secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RedactionRule {
    Email,
    /// Numbers in international form, and in North America's.
    Phone,
    /// Payment cards whose check digit (Luhn) holds.
    Card,
    /// Bank accounts whose check digits (ISO 7064, MOD 97-10) hold.
    Iban,
    Ip,
    /// API keys and tokens with a known prefix, and private keys.
    Secret,
}

impl RedactionRule {
    /// In the order they are applied: what holds something that another rule would find comes before it.
    pub const ALL: [Self; 6] = [
        Self::Secret,
        Self::Email,
        Self::Iban,
        Self::Card,
        Self::Ip,
        Self::Phone,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Phone => "phone",
            Self::Card => "card",
            Self::Iban => "iban",
            Self::Ip => "ip",
            Self::Secret => "secret",
        }
    }

    /// What could be one.
    fn pattern(self) -> &'static str {
        match self {
            Self::Email => {
                r"[\p{L}\p{N}._%+'-]*[\p{L}\p{N}_+]@[\p{L}\p{N}-]+(?:\.[\p{L}\p{N}-]+)*\.[\p{L}]{2,}"
            }
            Self::Phone => {
                r"\+[0-9](?:[ ().-]{0,2}[0-9]){7,14}\b|(?:\([0-9]{3}\) ?|\b[0-9]{3}[-.])[0-9]{3}[-.][0-9]{4}\b"
            }
            Self::Card => r"\b[0-9](?:[ -]?[0-9]){12,18}\b",
            Self::Iban => r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}\b",
            Self::Ip => {
                r"\b(?:[0-9]{1,3}\.){3}[0-9]{1,3}\b|[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*[0-9A-Fa-f]"
            }
            Self::Secret => {
                r"(?x)
                -----BEGIN\ [A-Z\ ]*PRIVATE\ KEY-----[\s\S]*?-----END\ [A-Z\ ]*PRIVATE\ KEY-----
                | \bsk-[A-Za-z0-9_-]{20,}                        # OpenAI, Anthropic
                | \b[rs]k_(?:live|test)_[A-Za-z0-9]{16,}         # Stripe
                | \bgh[pousr]_[A-Za-z0-9]{30,} | \bgithub_pat_[A-Za-z0-9_]{22,}
                | \bglpat-[A-Za-z0-9_-]{20,}                     # GitLab
                | \b(?:AKIA|ASIA)[0-9A-Z]{16}\b                  # AWS
                | \bAIza[0-9A-Za-z_-]{35}                        # Google
                | \bxox[abposr]-[A-Za-z0-9-]{10,}                # Slack
                | \bhf_[A-Za-z0-9]{30,} | \bnpm_[A-Za-z0-9]{30,}
                | \beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{5,}  # JSON web tokens
                "
            }
        }
    }

    /// How much of a candidate is one, in bytes; none if it only looks like one. `before` is the character in front.
    fn accepted(self, candidate: &str, before: Option<char>) -> Option<usize> {
        let whole = |is_one: bool| is_one.then_some(candidate.len());
        match self {
            Self::Email | Self::Secret => Some(candidate.len()),
            // A plus after a digit or a letter is a sum.
            Self::Phone => whole(!before.is_some_and(char::is_alphanumeric)),
            Self::Card => whole(luhn(candidate)),
            // The pattern may have run on into the next words.
            Self::Iban => (15..=candidate.len())
                .rev()
                .filter(|&end| !candidate[end..].starts_with(char::is_alphanumeric))
                .find(|&end| mod_97(&candidate[..end]) == Some(1)),
            Self::Ip => whole(
                Ipv4Addr::from_str(candidate).is_ok()
                    || (is_address(candidate) && !before.is_some_and(char::is_alphanumeric)),
            ),
        }
    }
}

impl FromStr for RedactionRule {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|rule| rule.name() == name)
            .ok_or_else(|| format!("`{name}` is no redaction rule"))
    }
}

impl fmt::Display for RedactionRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// IPv6. `a::b` is an address to a parser and a path to a programmer: three colons and a digit are asked for.
fn is_address(candidate: &str) -> bool {
    candidate.matches(':').count() >= 3
        && candidate.contains(|c: char| c.is_ascii_digit())
        && Ipv6Addr::from_str(candidate).is_ok()
}

/// The check of ISO/IEC 7812: from the right every second digit doubled, digits summed, divisible by ten.
fn luhn(candidate: &str) -> bool {
    let digits = candidate.chars().rev().filter_map(|c| c.to_digit(10));
    let sum: u32 = digits
        .enumerate()
        .map(|(at, digit)| match (at % 2, digit) {
            (0, digit) => digit,
            (_, digit) if digit > 4 => 2 * digit - 9,
            (_, digit) => 2 * digit,
        })
        .sum();
    sum.is_multiple_of(10)
}

/// The check of ISO 13616: the first four characters to the end, letters as 10 to 35, modulo 97. None if it is too short.
fn mod_97(candidate: &str) -> Option<u32> {
    let plain: Vec<char> = candidate.chars().filter(|c| *c != ' ').collect();
    if plain.len() < 15 || candidate.ends_with(' ') {
        return None;
    }
    let (front, rest) = plain.split_at(4);
    rest.iter().chain(front).try_fold(0, |value, c| {
        let digit = c.to_digit(36)?;
        let shift = if digit < 10 { 10 } else { 100 };
        Some((value * shift + digit) % 97)
    })
}

/// The rules of one log.
#[derive(Debug)]
pub(super) struct Rules {
    patterns: Vec<(RedactionRule, Regex)>,
    salt: String,
}

impl Rules {
    pub fn new(rules: &[RedactionRule], salt: String) -> Result<Self> {
        let chosen = RedactionRule::ALL
            .into_iter()
            .filter(|rule| rules.contains(rule));
        let patterns = chosen
            .map(|rule| Ok((rule, Regex::new(rule.pattern())?)))
            .collect::<std::result::Result<_, regex::Error>>()
            .map_err(|error| LogError::Config(error.to_string()))?;
        Ok(Self { patterns, salt })
    }

    /// The text with surrogates, or none if there was nothing to replace.
    pub fn apply(&self, text: &str) -> Option<String> {
        let mut redacted: Option<String> = None;
        for (rule, pattern) in &self.patterns {
            let current = redacted.as_deref().unwrap_or(text);
            if let Some(replaced) = self.replace(*rule, pattern, current) {
                redacted = Some(replaced);
            }
        }
        redacted
    }

    fn replace(&self, rule: RedactionRule, pattern: &Regex, text: &str) -> Option<String> {
        let mut replaced = String::new();
        let (mut kept, mut at) = (0, 0);
        while let Some(found) = pattern.find_at(text, at) {
            let before = text[..found.start()].chars().next_back();
            let Some(length) = rule.accepted(found.as_str(), before) else {
                at = found.end();
                continue;
            };
            let end = found.start() + length;
            replaced.push_str(&text[kept..found.start()]);
            replaced.push_str(&self.surrogate(rule, &text[found.start()..end]));
            (kept, at) = (end, end);
        }
        (kept > 0).then(|| {
            replaced.push_str(&text[kept..]);
            replaced
        })
    }

    /// What stands for a value. Its hash is spelled in letters: no rule finds anything in it.
    fn surrogate(&self, rule: RedactionRule, value: &str) -> String {
        // Spelled differently it is the same value.
        let plain: String = match rule {
            RedactionRule::Secret => value.to_owned(),
            RedactionRule::Email | RedactionRule::Ip => value.to_lowercase(),
            RedactionRule::Phone | RedactionRule::Card | RedactionRule::Iban => {
                value.chars().filter(char::is_ascii_alphanumeric).collect()
            }
        };
        let mut hasher = Sha256::new();
        for part in [self.salt.as_str(), rule.name(), &plain] {
            hasher.update(part);
            hasher.update([0]);
        }
        let letter = |nibble: u8| char::from(b'a' + nibble);
        let hash: String = hasher.finalize()[..6]
            .iter()
            .flat_map(|byte| [letter(byte >> 4), letter(byte & 15)])
            .collect();
        format!("[{}-{hash}]", rule.name().to_uppercase())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules::new(&RedactionRule::ALL, "salt".to_owned()).unwrap()
    }

    #[test]
    fn what_identifies_somebody_is_replaced() {
        for (text, kind, secret) in [
            (
                "Mail ann.lee+x@mail.example.org, please",
                "EMAIL",
                "ann.lee",
            ),
            ("call +49 30 1234567-89 today", "PHONE", "1234567"),
            ("call (415) 555-0132.", "PHONE", "0132"),
            ("call 415-555-0132.", "PHONE", "0132"),
            ("card 4111 1111 1111 1111 exp 12/30", "CARD", "4111"),
            ("pay DE89 3704 0044 0532 0130 00 NOW PLEASE", "IBAN", "3704"),
            ("pay GB82WEST12345698765432", "IBAN", "WEST"),
            ("from 192.168.17.4:80", "IP", "192.168"),
            ("from 2001:db8::8a2e:370:7334", "IP", "8a2e"),
            ("key sk-abcdefghijklmnopqrstuvwx1234", "SECRET", "abcdef"),
            ("key AKIAIOSFODNN7EXAMPLE", "SECRET", "IOSFODNN7"),
            (
                "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
                "SECRET",
                "MIIE",
            ),
        ] {
            let redacted = rules().apply(text).unwrap_or_else(|| panic!("{text}"));
            assert!(
                redacted.contains(&format!("[{kind}-")),
                "{text}: {redacted}"
            );
            assert!(!redacted.contains(secret), "{text}: {redacted}");
        }
        let kept = rules().apply("pay DE89 3704 0044 0532 0130 00 NOW PLEASE");
        assert!(kept.unwrap().ends_with("] NOW PLEASE"));
    }

    #[test]
    fn what_only_looks_alike_is_left() {
        for text in [
            "4111 1111 1111 1112 fails the check",
            "DE88 3704 0044 0532 0130 00 fails the check",
            "std::net::Ipv4Addr and a::b",
            "at 12:30:45 it was 1.2.3",
            "version 999.1.2.3",
            "1+23456789012 = ?",
            "sort 123 456 7890",
            "@home, me@localhost",
            "a sk-ing holiday",
        ] {
            assert_eq!(rules().apply(text), None, "{text}");
        }
    }

    #[test]
    fn equal_values_stay_equal_within_a_log() {
        let apply = |salt: &str, text: &str| {
            Rules::new(&RedactionRule::ALL, salt.to_owned())
                .unwrap()
                .apply(text)
                .unwrap()
        };
        assert_eq!(apply("s", "a@b.org"), apply("s", "A@B.ORG"));
        assert_eq!(
            apply("s", "4111 1111 1111 1111"),
            apply("s", "4111111111111111")
        );
        assert_ne!(apply("s", "a@b.org"), apply("s", "c@b.org"));
        assert_ne!(apply("s", "a@b.org"), apply("t", "a@b.org"));
        let once = apply("s", "a@b.org 192.168.17.4 415-555-0132");
        assert_eq!(rules().apply(&once), None, "surrogates are left alone");
    }

    #[test]
    fn a_rule_can_be_left_out_and_named() {
        let only = Rules::new(&[RedactionRule::Email], String::new()).unwrap();
        assert_eq!(only.apply("192.168.17.4"), None);
        for rule in RedactionRule::ALL {
            assert_eq!(rule.to_string().parse(), Ok(rule));
        }
        assert!("everything".parse::<RedactionRule>().is_err());
    }
}
