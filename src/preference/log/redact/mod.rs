//! Personal data is taken out before a record is written.

mod command;

pub use command::RedactCommand;

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

/// A kind of personal data or secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RedactionRule {
    Email,
    Phone,
    /// Payment cards whose check digit (Luhn) holds.
    Card,
    /// Bank accounts whose check digits (ISO 7064) hold.
    Iban,
    Ip,
    /// API keys and tokens with a known prefix.
    Secret,
}

impl RedactionRule {
    /// In the order they are applied: what could be taken for something shorter comes first.
    pub const ALL: [Self; 6] = [
        Self::Secret,
        Self::Email,
        Self::Iban,
        Self::Card,
        Self::Ip,
        Self::Phone,
    ];
}
