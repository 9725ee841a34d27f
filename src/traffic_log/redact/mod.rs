//! Redaction of personal data and secrets before a record is written.
//!
//! Each value that is found is replaced by a surrogate like `[EMAIL-kdbcnaofghij]`: its kind, and a hash salted by the log, so that equal
//! values have equal surrogates within a log, which mean nothing outside it. The tokens of a redacted text are dropped, because they
//! would reveal what was removed.
//!
//! A text is [normalised](normalise) and [searched](scan), by one module for each kind, both with its [escapes] and [without](views)
//! them. `docs/privacy.md` lists the forms.

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

/// The redaction of records.
#[derive(Debug, Clone)]
pub struct Redaction {
    /// The built-in rules to apply.
    pub rules: Vec<RedactionRule>,
    /// An external program that redacts each text after the built-in rules.
    pub command: Option<RedactCommand>,
}

impl Redaction {
    /// Returns a redaction that changes nothing.
    pub fn none() -> Self {
        Self {
            rules: Vec::new(),
            command: None,
        }
    }
}

impl Default for Redaction {
    /// Returns all built-in rules.
    fn default() -> Self {
        Self {
            rules: RedactionRule::ALL.to_vec(),
            command: None,
        }
    }
}
