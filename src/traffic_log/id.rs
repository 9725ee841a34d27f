//! Identifiers in the log: records, principals, generations, stages.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Crockford's base 32, in which no letter looks like a digit.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Characters of a record's id: 48 bits of time and 80 random bits, 5 bits each.
const ID_CHARS: usize = 26;

/// Milliseconds since 1970, UTC.
pub type UnixMillis = i64;

/// Returns the current time by this machine's clock.
pub fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    })
}

/// The id of a record, a ULID: it sorts by time of creation and cannot be guessed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct RecordId(String);

impl RecordId {
    pub(super) fn new(at: UnixMillis) -> Self {
        let time = (at.max(0) as u128) & ((1 << 48) - 1);
        let random = rand::random::<u128>() & ((1 << 80) - 1);
        let bits = (time << 80) | random;
        let chars = (0..ID_CHARS).rev();
        Self(
            chars
                .map(|at| ALPHABET[(bits >> (5 * at)) as usize & 31] as char)
                .collect(),
        )
    }

    /// Parses an id; none if the text is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let known = |c: u8| ALPHABET.contains(&c);
        (text.len() == ID_CHARS && text.bytes().all(known)).then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the record's bucket from 0 to 999. It depends on the id only, so that a held-out row stays held out.
    pub(super) fn bucket(&self) -> i64 {
        let digest = Sha256::digest(self.0.as_bytes());
        i64::from(u32::from_be_bytes([
            digest[0], digest[1], digest[2], digest[3],
        ])) % 1000
    }
}

impl TryFrom<String> for RecordId {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("`{text}` is not a record id"))
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The principal on whose behalf a request was made: a SHA-256 digest, or the word `anonymous`. The name is not stored, but the digest of
/// a guessed name can be computed: the digest has no salt, because access to a record must not depend on a file that may be lost.
///
/// The digested text depends on the kind of principal; no name contains a control character (see [`Principal::can_be_named`]):
///
/// | principal | digest of |
/// |---|---|
/// | a key | `NAME` |
/// | a user of a key | `NAME\nUSER` |
/// | a user of no key | `\nUSER` |
/// | an operator's key | `\nadmin\nNAME` |
/// | a user of an operator's key | `\nadmin\nNAME\nUSER` |
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Principal(String);

/// The word for callers without a key.
const ANONYMOUS: &str = "anonymous";

/// The maximum length of a user's name in bytes.
const MAX_USER: usize = 1024;

impl Principal {
    /// Returns the principal of requests without a key. It is the same for all of them, so that they share one limit.
    pub fn anonymous() -> Self {
        Self(ANONYMOUS.to_owned())
    }

    /// Returns the principal of the key called `name`.
    pub fn of_key(name: &str) -> Self {
        Self::digest(name)
    }

    /// Returns the principal of a user of the key called `key`, or of no key.
    pub fn of_user(key: Option<&str>, user: &str) -> Self {
        Self::digest(&format!("{}\n{user}", key.unwrap_or_default()))
    }

    /// Returns the principal of the operator's key called `name`.
    pub fn of_operator(name: &str) -> Self {
        Self::digest(&format!("\nadmin\n{name}"))
    }

    /// Returns the principal of a user of the operator's key called `name`.
    pub fn of_operators_user(name: &str, user: &str) -> Self {
        Self::digest(&format!("\nadmin\n{name}\n{user}"))
    }

    /// Returns whether `name` is a valid user name: at most 1024 bytes and no control character, so that a principal cannot be mistaken
    /// for one of another kind.
    pub fn can_be_named(name: &str) -> bool {
        name.len() <= MAX_USER && !name.chars().any(char::is_control)
    }

    /// Parses a principal as an operator writes it: `NAME` or `key:NAME` is a key, `operator:NAME` an operator's key, `anonymous` all
    /// callers without a key; `user` is a user of it. A key called `anonymous` is written `key:anonymous`; no key's name contains a
    /// colon.
    ///
    /// # Errors
    /// Errors with a sentence if the text is not a principal.
    pub fn spelled(whose: &str, user: Option<&str>) -> std::result::Result<Self, String> {
        let name = whose
            .strip_prefix("operator:")
            .or_else(|| whose.strip_prefix("key:"))
            .unwrap_or(whose);
        if name.is_empty() || name.contains(':') || !Self::can_be_named(name) {
            return Err(format!(
                "`{}` is not a principal: use NAME or key:NAME for a key, operator:NAME for an operator's key, or anonymous",
                whose.escape_debug()
            ));
        }
        let operator = whose.strip_prefix("operator:");
        let key = match whose.strip_prefix("key:") {
            Some(name) => Some(name),
            None => Some(whose).filter(|&name| name != ANONYMOUS),
        };
        Ok(match (operator, key, user) {
            (Some(name), _, None) => Self::of_operator(name),
            (Some(name), _, Some(user)) => Self::of_operators_user(name, user),
            (None, key, Some(user)) => Self::of_user(key, user),
            (None, Some(name), None) => Self::of_key(name),
            (None, None, None) => Self::anonymous(),
        })
    }

    fn digest(name: &str) -> Self {
        Self(hex(&Sha256::digest(name.as_bytes())))
    }

    pub(super) fn stored(text: String) -> Self {
        Self(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The id of a generation: the digest of its directory, or [`GenerationId::base`] for the model without an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GenerationId(String);

impl GenerationId {
    /// Returns the id of generation 0, the base model without an adapter.
    pub fn base() -> Self {
        Self("base".to_owned())
    }

    pub fn new(digest: impl Into<String>) -> Self {
        Self(digest.into())
    }

    pub fn is_base(&self) -> bool {
        self.0 == "base"
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The number of a stage, counted from 1 over the life of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StageId(pub i64);

impl fmt::Display for StageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Returns bytes as lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_ids_sort_by_time_and_can_be_read_back() {
        let (early, late) = (RecordId::new(1_000), RecordId::new(2_000));
        assert!(early < late);
        assert_eq!(RecordId::parse(early.as_str()), Some(early.clone()));
        assert_ne!(RecordId::new(1_000), early);
        for wrong in [
            "",
            "01",
            "01ARZ3NDEKTSV4RRFFQ69G5FAI",
            "../../../../etc/passwd-----",
        ] {
            assert_eq!(RecordId::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn buckets_depend_on_the_id_alone_and_spread() {
        let ids: Vec<_> = (0..2000).map(RecordId::new).collect();
        assert!(ids.iter().all(|id| id.bucket() == id.clone().bucket()));
        let low = ids.iter().filter(|id| id.bucket() < 500).count();
        // Expected: 1000, standard deviation 22.
        assert!((850..1150).contains(&low), "{low}");
    }

    #[test]
    fn principals_of_different_kinds_are_never_one() {
        let names = ["a", "admin", "anonymous", "key:a", "operator:a", "a b", "ä"];
        let mut all = vec![Principal::anonymous()];
        for name in names {
            all.extend([
                Principal::of_key(name),
                Principal::of_operator(name),
                Principal::of_user(None, name),
            ]);
            for user in names {
                all.push(Principal::of_user(Some(name), user));
                all.push(Principal::of_operators_user(name, user));
            }
        }
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
        // Names that would make two principals equal are refused.
        for forged in ["admin\na", "\nadmin\na", "a\u{0}", "a\r", "a\u{85}"] {
            assert!(!Principal::can_be_named(forged), "{forged:?}");
        }
        assert!(!Principal::can_be_named(&"x".repeat(MAX_USER + 1)));
        assert!(names.into_iter().all(Principal::can_be_named));
    }

    #[test]
    fn every_principal_has_a_spelling() {
        for (whose, user, principal) in [
            ("anonymous", None, Principal::anonymous()),
            ("alice", None, Principal::of_key("alice")),
            ("key:alice", None, Principal::of_key("alice")),
            ("key:anonymous", None, Principal::of_key("anonymous")),
            ("operator:root", None, Principal::of_operator("root")),
            ("anonymous", Some("eve"), Principal::of_user(None, "eve")),
            (
                "alice",
                Some("eve"),
                Principal::of_user(Some("alice"), "eve"),
            ),
            (
                "key:anonymous",
                Some("eve"),
                Principal::of_user(Some("anonymous"), "eve"),
            ),
            (
                "operator:root",
                Some("eve"),
                Principal::of_operators_user("root", "eve"),
            ),
        ] {
            assert_eq!(
                Principal::spelled(whose, user),
                Ok(principal),
                "{whose} {user:?}"
            );
        }
    }

    #[test]
    fn what_spells_no_principal_is_refused() {
        for whose in [
            "",
            "key:",
            "operator:",
            "foo:bar",
            "key:a:b",
            "key:key:a",
            "Key:a",
            "a\nb",
        ] {
            let refused = Principal::spelled(whose, None).unwrap_err();
            assert!(refused.contains("is not a principal"), "{refused}");
            assert!(!refused.contains('\n'), "{refused}");
            assert!(Principal::spelled(whose, Some("eve")).is_err(), "{whose}");
        }
    }

    #[test]
    fn a_principal_does_not_show_its_key() {
        let principal = Principal::of_key("alice");
        assert!(!principal.as_str().contains("alice"));
        assert_eq!(principal, Principal::of_key("alice"));
        assert_ne!(principal, Principal::of_key("bob"));
    }
}
