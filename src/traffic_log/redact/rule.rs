//! The kinds of personal data and secrets that can be redacted.

use std::fmt;
use std::str::FromStr;

/// A kind of personal data or secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RedactionRule {
    /// Keys and tokens with a known prefix, private keys, passwords and other values that a name marks as secret, credentials in
    /// addresses and headers.
    Secret,
    Email,
    /// Hardware addresses of 48 and 64 bits.
    Mac,
    /// IPv4 and IPv6 addresses.
    Ip,
    /// Bank accounts with a valid structure and check digits (ISO 13616), and account numbers that a word announces.
    Iban,
    /// Payment cards of a known network with a valid check digit (ISO/IEC 7812).
    Card,
    /// Government-issued numbers of persons: identity, tax, social insurance and health.
    Id,
    /// Telephone numbers in international and national forms.
    Phone,
}

impl RedactionRule {
    /// All rules, in the order in which they are applied.
    pub const ALL: [Self; 8] = [
        Self::Secret,
        Self::Email,
        Self::Mac,
        Self::Ip,
        Self::Iban,
        Self::Card,
        Self::Id,
        Self::Phone,
    ];

    /// Returns the rule's name. Surrogates contain it in capitals.
    pub fn name(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::Email => "email",
            Self::Mac => "mac",
            Self::Ip => "ip",
            Self::Iban => "iban",
            Self::Card => "card",
            Self::Id => "id",
            Self::Phone => "phone",
        }
    }
}

impl FromStr for RedactionRule {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|rule| rule.name() == name)
            .ok_or_else(|| format!("unknown redaction rule `{name}`"))
    }
}

impl fmt::Display for RedactionRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_is_found_by_its_name() {
        for rule in RedactionRule::ALL {
            assert_eq!(rule.to_string().parse(), Ok(rule));
        }
        assert!("everything".parse::<RedactionRule>().is_err());
    }
}
