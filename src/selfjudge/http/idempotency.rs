//! `Idempotency-Key`: the name of a call, by which a repeated call is recognised.
//!
//! A name belongs to a principal and to the content of its call: the digest of the route and the body, without the parameters that
//! only affect how the call is answered ([`UNASKED`]). The same name with another body is refused.

use std::sync::{Arc, OnceLock};

use axum::http::request::Parts;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::error::ApiError;
use crate::service::CallName;

/// The header's description in the API description.
pub const IDEMPOTENCY: &str = "The name of a recorded call. If the same principal repeats the call with this name, no second record is made: the \
    answer has the id of the first record. Without `seed`, the repeated call also has the first call's seed, so the same weights give the \
    same answer. The stricter of both calls' consents applies. Another body with the same name is refused (422 \
    `idempotency_key_reused`), but `log`, `stream`, `stream_options`, `timeout` and `priority` may differ. Calls without a key cannot \
    use names (400 `idempotency_needs_key`).";

/// The name of the header.
const HEADER: &str = "idempotency-key";

/// Maximum length of a name.
const MAX_LENGTH: usize = 255;

/// Parameters that affect how a call is answered or kept, but not its content.
const UNASKED: [&str; 5] = ["log", "stream", "stream_options", "timeout", "priority"];

/// The header with a call's name, and the digest of the call's content once its body has been read.
#[derive(Debug, Clone)]
pub struct IdempotencyHeader {
    name: String,
    content: ContentDigest,
}

impl IdempotencyHeader {
    /// Returns the name of a call, if its header has one. A slot for the digest is added to the call's extensions for the reader of the
    /// body.
    ///
    /// # Errors
    /// Fails if the name is empty, too long or not visible ASCII.
    pub fn of(parts: &mut Parts) -> Result<Option<Self>, ApiError> {
        let Some(value) = parts.headers.get(HEADER) else {
            return Ok(None);
        };
        let name = value.to_str().unwrap_or_default().trim();
        if name.is_empty() || name.len() > MAX_LENGTH {
            return Err(ApiError::invalid(
                "Idempotency-Key",
                format!("must be 1 to {MAX_LENGTH} visible ASCII characters"),
            ));
        }
        let content = ContentDigest {
            path: parts.uri.path().into(),
            digest: Arc::default(),
        };
        parts.extensions.insert(content.clone());
        Ok(Some(Self {
            name: name.to_owned(),
            content,
        }))
    }

    /// Returns the call's name, once the body has been read.
    pub fn name(&self) -> CallName {
        CallName {
            name: self.name.clone(),
            request: self.content.digest.get().copied().unwrap_or_default(),
        }
    }
}

/// The slot for the digest of a named call's content.
#[derive(Debug, Clone)]
pub struct ContentDigest {
    path: Arc<str>,
    digest: Arc<OnceLock<[u8; 32]>>,
}

impl ContentDigest {
    /// Stores the digest of the call's body.
    pub fn note(&self, body: &Value) {
        let mut hasher = Sha256::new();
        field(&mut hasher, b'p', self.path.as_bytes());
        match body {
            Value::Object(body) => object(
                &mut hasher,
                body.iter()
                    .filter(|(name, _)| !UNASKED.contains(&name.as_str())),
            ),
            body => value(&mut hasher, body),
        }
        // A call has one body, so the slot is set once.
        let _ = self.digest.set(hasher.finalize().into());
    }
}

/// Hashes a value in a canonical form: the order of keys, the spelling of numbers and null parameters do not matter.
fn value(hasher: &mut Sha256, json: &Value) {
    match json {
        Value::Null => field(hasher, b'0', b""),
        Value::Bool(truth) => field(hasher, b'b', &[u8::from(*truth)]),
        Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            // 1.0 and 1e0 equal 1, as long as a float represents whole numbers exactly.
            Some(float) if float.fract() == 0.0 && float.abs() < 2f64.powi(53) => {
                field(hasher, b'n', (float as i64).to_string().as_bytes());
            }
            _ => field(hasher, b'n', number.to_string().as_bytes()),
        },
        Value::String(text) => field(hasher, b's', text.as_bytes()),
        Value::Array(items) => {
            field(hasher, b'a', &items.len().to_le_bytes());
            items.iter().for_each(|item| value(hasher, item));
        }
        Value::Object(fields) => object(hasher, fields.iter()),
    }
}

fn object<'a>(hasher: &mut Sha256, fields: impl Iterator<Item = (&'a String, &'a Value)>) {
    let mut fields: Vec<_> = fields.filter(|(_, json)| !json.is_null()).collect();
    fields.sort_by_key(|(name, _)| *name);
    field(hasher, b'o', &fields.len().to_le_bytes());
    for (name, json) in fields {
        field(hasher, b'k', name.as_bytes());
        value(hasher, json);
    }
}

/// Hashes bytes with their kind and length, so that different values never give the same input.
fn field(hasher: &mut Sha256, kind: u8, bytes: &[u8]) {
    hasher.update([kind]);
    hasher.update((bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn digest(path: &str, body: &Value) -> [u8; 32] {
        let asked = ContentDigest {
            path: path.into(),
            digest: Arc::default(),
        };
        asked.note(body);
        *asked.digest.get().unwrap()
    }

    #[test]
    fn what_a_call_asks_for_does_not_depend_on_how_it_is_spelled() {
        let body = json!({"prompt": "x", "n": 2, "judge": {"seed": 1, "orders": "both"}});
        for same in [
            r#"{"n": 2, "prompt": "x", "judge": {"orders": "both", "seed": 1}}"#,
            r#"{"n": 2.0, "prompt": "\u0078", "judge": {"orders": "both", "seed": 1e0}}"#,
            r#"{"n": 2, "prompt": "x", "seed": null, "judge": {"orders": "both", "seed": 1, "bracket": null}}"#,
            r#"{"n": 2, "prompt": "x", "judge": {"orders": "both", "seed": 1}, "log": {"train": false}, "stream": true,
                "stream_options": {"include_usage": true}, "timeout": 3, "priority": 1}"#,
        ] {
            let same: Value = serde_json::from_str(same).unwrap();
            assert_eq!(
                digest("/generate", &same),
                digest("/generate", &body),
                "{same}"
            );
        }
    }

    #[test]
    fn another_call_has_another_digest() {
        let bodies = [
            json!({"prompt": "x"}),
            json!({"prompt": "y"}),
            json!({"prompt": "x", "n": 2}),
            json!({"prompt": "x", "n": 3}),
            json!({"prompt": "x", "n": "2"}),
            json!({"prompt": ["x"]}),
            json!({"prompt": ["x", "y"]}),
            json!({"prompt": ["xy"]}),
            json!({"prompt": "x", "seed": 9_007_199_254_740_993_u64}),
            json!({"prompt": "x", "seed": 9_007_199_254_740_992_u64}),
            json!({"prompt": "x", "temperature": 0.5}),
            json!({"prompt": "x", "judge": {"log": true}}),
        ];
        let mut digests: Vec<_> = bodies
            .iter()
            .map(|body| digest("/generate", body))
            .collect();
        digests.push(digest("/judge", &bodies[0]));
        let count = digests.len();
        digests.sort();
        digests.dedup();
        assert_eq!(digests.len(), count);
    }
}
