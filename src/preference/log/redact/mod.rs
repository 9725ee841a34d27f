//! Personal data and secrets are taken out before a record is written.
//!
//! Each value that is found becomes a surrogate like `[EMAIL-kdbcnaofghij]`: the kind, and a hash salted by the log, so that equal
//! values stay equal within a log and mean nothing outside it. Tokens of a text that was changed are dropped, because they would
//! spell out what was taken from it.
//!
//! A text is [normalised](normalise) and [searched](scan) by one module for each kind, with its [escapes] and [without](views) them. `docs/privacy.md` lists the forms.

mod command;
mod digits;
mod email;
mod escapes;
mod network;
mod normalise;
mod numbers;
mod record;
mod rule;
mod rules;
mod scan;
mod seam;
mod secrets;
mod surrogate;
#[cfg(test)]
mod tests;
mod views;
mod words;

pub use command::RedactCommand;
pub(super) use record::Redactor;
pub use rule::RedactionRule;

/// What is taken out of records.
#[derive(Debug, Clone)]
pub struct Redaction {
    /// Built-in rules that are applied.
    pub rules: Vec<RedactionRule>,
    /// An external program that sees each text after the built-in rules.
    pub command: Option<RedactCommand>,
}

impl Redaction {
    /// Nothing is taken out.
    pub fn none() -> Self {
        Self {
            rules: Vec::new(),
            command: None,
        }
    }
}

impl Default for Redaction {
    /// All built-in rules.
    fn default() -> Self {
        Self {
            rules: RedactionRule::ALL.to_vec(),
            command: None,
        }
    }
}
