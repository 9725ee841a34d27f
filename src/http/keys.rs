//! Who may call: API keys, and how many calls a second each of them has.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::error::ApiError;

/// The keys that are accepted. Only their digests are kept.
#[derive(Clone, Default)]
pub struct ApiKeys(Vec<ApiKey>);

#[derive(Clone)]
struct ApiKey {
    name: Arc<str>,
    digest: [u8; 32],
}

/// Why a list of keys cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    #[error("line {0}: the key is empty")]
    Empty(usize),
    #[error(
        "line {0}: the key is longer than a line of a header may be, or has characters that no header has"
    )]
    Unsendable(usize),
    #[error("line {0}: the key is there twice")]
    Twice(usize),
    #[error("there is no key in the list")]
    None,
}

/// The longest key.
const MAX_KEY: usize = 1024;

impl ApiKeys {
    /// Reads `key` or `name:key`, one a line. Empty lines and what comes after `#` at the start of a line do not count.
    ///
    /// # Errors
    /// Names the line that is no key.
    pub fn parse(list: &str) -> Result<Self, KeysError> {
        let mut keys: Vec<ApiKey> = Vec::new();
        for (at, line) in list.lines().enumerate() {
            let (at, line) = (at + 1, line.trim());
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, key) = match line.split_once(':') {
                Some((name, key)) => (name.trim().to_owned(), key.trim()),
                None => (format!("key-{}", keys.len() + 1), line),
            };
            if key.is_empty() || name.is_empty() {
                return Err(KeysError::Empty(at));
            }
            if key.len() > MAX_KEY || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(KeysError::Unsendable(at));
            }
            let digest = Sha256::digest(key).into();
            if keys.iter().any(|known| known.digest == digest) {
                return Err(KeysError::Twice(at));
            }
            let name = name.into();
            keys.push(ApiKey { name, digest });
        }
        match keys.is_empty() {
            true => Err(KeysError::None),
            false => Ok(Self(keys)),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The key that `secret` is, found in a time that says nothing about it.
    fn find(&self, secret: &[u8]) -> Option<usize> {
        let digest: [u8; 32] = Sha256::digest(secret).into();
        let (mut found, mut at) = (Choice::from(0), 0u32);
        for (index, key) in (0u32..).zip(&self.0) {
            let same = key.digest.ct_eq(&digest);
            at.conditional_assign(&index, same);
            found |= same;
        }
        bool::from(found).then_some(at as usize)
    }
}

/// Names, no secrets.
impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|key| &key.name))
            .finish()
    }
}

/// Calls that one key has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    pub per_second: NonZeroU32,
    /// Calls that may come at once.
    pub burst: NonZeroU32,
}

/// Lets known keys pass, as often as they may.
#[derive(Clone)]
pub struct Gate {
    keys: Arc<ApiKeys>,
    limiter: Option<Arc<DefaultKeyedRateLimiter<usize>>>,
}

/// Whose call it is: the name of its key.
#[derive(Debug, Clone)]
pub struct Caller(pub Arc<str>);

impl Gate {
    pub fn new(keys: ApiKeys, limit: Option<RateLimit>) -> Self {
        let limiter = limit.map(|limit| {
            let quota = Quota::per_second(limit.per_second).allow_burst(limit.burst);
            Arc::new(RateLimiter::keyed(quota))
        });
        Self {
            keys: Arc::new(keys),
            limiter,
        }
    }

    fn admit(&self, headers: &HeaderMap) -> Result<Option<Caller>, ApiError> {
        if self.keys.is_empty() {
            return Ok(None);
        }
        let key = secret(headers).and_then(|secret| self.keys.find(secret));
        let Some(key) = key else {
            return Err(ApiError::new(
                StatusCode::UNAUTHORIZED,
                "invalid_api_key",
                "an API key is needed, as `Authorization: Bearer …` or `X-Api-Key: …`",
            ));
        };
        if let Some(limiter) = &self.limiter
            && let Err(until) = limiter.check_key(&key)
        {
            let wait = until.wait_time_from(DefaultClock::default().now());
            return Err(too_fast(wait));
        }
        Ok(Some(Caller(Arc::clone(&self.keys.0[key].name))))
    }
}

fn too_fast(wait: Duration) -> ApiError {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    ApiError::new(
        StatusCode::TOO_MANY_REQUESTS,
        "rate_limited",
        "this key has made all the calls it may make for now",
    )
    .retry_after(seconds.max(1))
}

fn secret(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(key) = headers.get("x-api-key") {
        return Some(key.as_bytes());
    }
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked(b"Bearer ".len())?;
    scheme
        .eq_ignore_ascii_case(b"Bearer ")
        .then(|| key.trim_ascii())
}

/// The middleware.
pub async fn guard(
    State(gate): State<Gate>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if let Some(caller) = gate.admit(request.headers())? {
        tracing::Span::current().record("caller", &*caller.0);
        request.extensions_mut().insert(caller);
    }
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_by_either_header_and_never_shown() {
        let keys = ApiKeys::parse("# ours\n\nalice: s3cret:1\nplain\n").unwrap();
        assert_eq!(keys.find(b"s3cret:1"), Some(0));
        assert_eq!(keys.find(b"plain"), Some(1));
        assert_eq!(keys.find(b"s3cret"), None);
        assert_eq!(keys.find(b""), None);
        assert_eq!(format!("{keys:?}"), r#"["alice", "key-2"]"#);
        let gate = Gate::new(keys, None);
        let admit = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            gate.admit(&headers)
                .map(|caller| caller.unwrap().0.to_string())
        };
        assert_eq!(admit("authorization", "bearer plain").unwrap(), "key-2");
        assert_eq!(admit("x-api-key", "s3cret:1").unwrap(), "alice");
        assert!(admit("authorization", "Basic plain").is_err());
        assert!(admit("authorization", "x").is_err());
        assert!(gate.admit(&HeaderMap::new()).is_err());
    }

    #[test]
    fn what_is_no_key_is_named_by_its_line() {
        for (list, error) in [
            ("", KeysError::None),
            ("# only\n", KeysError::None),
            ("a\n\nname:\n", KeysError::Empty(3)),
            ("a b", KeysError::Unsendable(1)),
            ("a\nagain:a", KeysError::Twice(2)),
        ] {
            assert_eq!(ApiKeys::parse(list).unwrap_err(), error, "{list:?}");
        }
    }

    #[test]
    fn each_key_has_its_own_calls() {
        let keys = ApiKeys::parse("a\nb").unwrap();
        let limit = RateLimit {
            per_second: NonZeroU32::MIN,
            burst: NonZeroU32::new(2).unwrap(),
        };
        let gate = Gate::new(keys, Some(limit));
        let call = |key: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-api-key", key.parse().unwrap());
            gate.admit(&headers).is_ok()
        };
        assert_eq!([call("a"), call("a"), call("a")], [true, true, false]);
        assert!(call("b"));
    }
}
