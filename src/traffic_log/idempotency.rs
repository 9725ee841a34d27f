//! Idempotency keys: the record of a principal's earlier call with the same key, and whether its request was the same.
//!
//! A key is stored as a digest salted by the log, because it may be a person's address or number. Records of earlier versions have the
//! key as it was sent and no digest of the request; then the prompts are compared.

use sha2::{Digest, Sha256};
use sql::{Connection, Row, query};

use super::columns::{stored_id, to_json};
use super::{Consent, IdempotencyKey, NewRecord, Principal, RecordId, Result, id};

/// The prefix of digests, by which they differ from keys of earlier versions that were stored as sent.
const DIGEST: &str = "v1:";

/// A key in the forms in which it is stored and searched.
#[derive(Debug)]
pub(super) struct StoredKey {
    /// The form that is stored.
    pub digest: String,
    /// The form that earlier versions stored.
    plain: String,
    /// Hex SHA-256 of the request.
    pub request: String,
}

impl StoredKey {
    pub fn of(key: &IdempotencyKey, principal: &Principal, salt: &str) -> Self {
        let mut hasher = Sha256::new();
        for part in ["idempotency", salt, principal.as_str(), &key.name] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Self {
            digest: format!("{DIGEST}{}", id::hex(&hasher.finalize())),
            plain: key.name.clone(),
            request: id::hex(&key.request),
        }
    }
}

/// The record of an earlier call with the same key.
#[derive(Debug)]
pub(super) struct Earlier {
    pub id: RecordId,
    kind: String,
    prompt: String,
    /// None in records of earlier versions.
    pub request: Option<String>,
}

impl Earlier {
    /// Finds the record of a principal's key.
    pub async fn find(
        connection: &mut Connection,
        principal: &Principal,
        key: &StoredKey,
    ) -> Result<Option<Self>> {
        let found = query(
            "SELECT id, kind, prompt, request_digest FROM records WHERE principal = $1 \
             AND (idempotency_key = $2 OR (idempotency_key = $3 AND request_digest IS NULL))",
        )
        .bind(principal.as_str())
        .bind(key.digest.as_str())
        .bind(key.plain.as_str())
        .fetch_optional(connection)
        .await?;
        let earlier = |row: Row| -> Result<Self> {
            Ok(Self {
                id: stored_id(row.get("id")?)?,
                kind: row.get("kind")?,
                prompt: row.get("prompt")?,
                request: row.get("request_digest")?,
            })
        };
        found.map(earlier).transpose()
    }

    /// Returns whether `record`, after redaction, is the same request.
    pub fn is_of(&self, record: &NewRecord, key: &StoredKey) -> Result<bool> {
        Ok(match &self.request {
            Some(request) => *request == key.request,
            None => self.kind == record.kind.as_str() && self.prompt == to_json(&record.prompt)?,
        })
    }

    /// Withdraws the consent to training if the repeated call does not give it.
    pub async fn restrict(&self, connection: &mut Connection, consent: Consent) -> Result<()> {
        if !consent.train {
            query("UPDATE records SET train = 0 WHERE id = $1 AND train = 1")
                .bind(self.id.as_str())
                .execute(connection)
                .await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_key_shows_nothing_and_is_a_principals_own() {
        let key = |name: &str| IdempotencyKey {
            name: name.to_owned(),
            request: [1; 32],
        };
        let (ann, bob) = (Principal::of_key("ann"), Principal::of_key("bob"));
        let stored =
            |name: &str, principal, salt| StoredKey::of(&key(name), principal, salt).digest;
        let one = stored("ann@example.org", &ann, "salt");
        assert!(one.starts_with(DIGEST) && !one.contains("ann"), "{one}");
        assert_eq!(one, stored("ann@example.org", &ann, "salt"));
        assert_ne!(one, stored("ann@example.org", &bob, "salt"));
        assert_ne!(one, stored("ann@example.org", &ann, "pepper"));
        assert_ne!(one, stored("ann@example.com", &ann, "salt"));
    }
}
