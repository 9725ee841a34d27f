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

use super::HttpConfig;
use super::error::ApiError;
use crate::preference::log::Consent;

/// The keys that are accepted. Only their digests are kept.
#[derive(Clone, Default)]
pub struct ApiKeys(Vec<ApiKey>);

#[derive(Clone)]
struct ApiKey {
    name: Arc<str>,
    digest: [u8; 32],
    allowed: Consent,
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
    #[error("line {0}: `{1}` is no word about a key: no-retain or no-train")]
    Word(usize, String),
    #[error("there is no key in the list")]
    None,
}

/// What a key's traffic may be used for, unless its line says less.
const EVERYTHING: Consent = Consent {
    retain: true,
    train: true,
};

/// The longest key.
const MAX_KEY: usize = 1024;

impl ApiKeys {
    /// Reads `key` or `name:key`, one a line, and after it what the key's traffic may not be used for: `no-train`, or
    /// `no-retain`, which says both. Empty lines and what comes after `#` at the start of a line do not count.
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
            let (name, rest) = match line.split_once(':') {
                Some((name, rest)) => (name.trim().to_owned(), rest),
                None => (format!("key-{}", keys.len() + 1), line),
            };
            let mut words = rest.split_ascii_whitespace();
            let key = words.next().unwrap_or_default();
            let allowed = allowed(at, words)?;
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
            keys.push(ApiKey {
                name: name.into(),
                digest,
                allowed,
            });
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
        self.find_by(secret, |known, digest| known.ct_eq(digest))
    }

    /// Compares with every key, wherever the one is that is meant: `same` answers with a [`Choice`], on which nothing can branch.
    fn find_by(
        &self,
        secret: &[u8],
        mut same: impl FnMut(&[u8; 32], &[u8; 32]) -> Choice,
    ) -> Option<usize> {
        let digest: [u8; 32] = Sha256::digest(secret).into();
        let (mut found, mut at) = (Choice::from(0), 0u32);
        for (index, key) in (0u32..).zip(&self.0) {
            let same = same(&key.digest, &digest);
            at.conditional_assign(&index, same);
            found |= same;
        }
        bool::from(found).then_some(at as usize)
    }
}

/// What the words behind a key leave of its traffic's uses.
fn allowed<'a>(line: usize, words: impl Iterator<Item = &'a str>) -> Result<Consent, KeysError> {
    let mut allowed = EVERYTHING;
    for word in words {
        match word {
            "no-train" => allowed.train = false,
            "no-retain" => allowed = Consent::default(),
            other => return Err(KeysError::Word(line, other.to_owned())),
        }
    }
    Ok(allowed)
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
    admins: Arc<ApiKeys>,
    limiter: Option<Arc<DefaultKeyedRateLimiter<usize>>>,
}

/// Whose call it is.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The name of the key.
    pub name: Arc<str>,
    /// What the key's traffic may be used for.
    pub allowed: Consent,
    /// Whether the key is an operator's.
    pub admin: bool,
}

impl Caller {
    /// Whoever reaches a listener that is the operators' own.
    fn at_the_admin_listener() -> Self {
        Self {
            name: "admin-listener".into(),
            allowed: EVERYTHING,
            admin: true,
        }
    }
}

impl Gate {
    pub fn of(config: &HttpConfig) -> Self {
        let (keys, admins) = (config.keys.clone(), config.admin_keys.clone());
        Self::new(keys, admins, config.rate_limit)
    }

    pub fn new(keys: ApiKeys, admins: ApiKeys, limit: Option<RateLimit>) -> Self {
        let limiter = limit.map(|limit| {
            let quota = Quota::per_second(limit.per_second).allow_burst(limit.burst);
            Arc::new(RateLimiter::keyed(quota))
        });
        Self {
            keys: Arc::new(keys),
            admins: Arc::new(admins),
            limiter,
        }
    }

    /// Who calls; nobody known, where no keys are needed.
    fn admit(&self, headers: &HeaderMap) -> Result<Option<Caller>, ApiError> {
        let secret = secret(headers);
        let caller = |keys: &ApiKeys, at: usize, admin| Caller {
            name: Arc::clone(&keys.0[at].name),
            allowed: keys.0[at].allowed,
            admin,
        };
        if let Some(at) = secret.and_then(|secret| self.admins.find(secret)) {
            return Ok(Some(caller(&self.admins, at, true)));
        }
        if self.keys.is_empty() {
            return Ok(None);
        }
        let Some(at) = secret.and_then(|secret| self.keys.find(secret)) else {
            return Err(unknown_key());
        };
        if let Some(limiter) = &self.limiter
            && let Err(until) = limiter.check_key(&at)
        {
            let wait = until.wait_time_from(DefaultClock::default().now());
            return Err(too_fast(wait));
        }
        Ok(Some(caller(&self.keys, at, false)))
    }
}

fn unknown_key() -> ApiError {
    ApiError::new(
        StatusCode::UNAUTHORIZED,
        "invalid_api_key",
        "an API key is needed, as `Authorization: Bearer …` or `X-Api-Key: …`",
    )
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
        tracing::Span::current().record("caller", &*caller.name);
        request.extensions_mut().insert(caller);
    }
    Ok(next.run(request).await)
}

/// The middleware of what only operators may do.
pub async fn guard_admin(
    State(gate): State<Gate>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let caller = match gate.admins.is_empty() {
        true => Caller::at_the_admin_listener(),
        false => gate.admit(request.headers())?.ok_or_else(unknown_key)?,
    };
    if !caller.admin {
        return Err(not_an_admin());
    }
    tracing::Span::current().record("caller", &*caller.name);
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}

/// What a caller without an operator's key is told.
pub fn not_an_admin() -> ApiError {
    ApiError::new(
        StatusCode::FORBIDDEN,
        "admin_only",
        "only an operator's key may do this",
    )
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
        let gate = Gate::new(keys, ApiKeys::default(), None);
        let admit = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            gate.admit(&headers)
                .map(|caller| caller.unwrap().name.to_string())
        };
        assert_eq!(admit("authorization", "bearer plain").unwrap(), "key-2");
        assert_eq!(admit("x-api-key", "s3cret:1").unwrap(), "alice");
        assert!(admit("authorization", "Basic plain").is_err());
        assert!(admit("authorization", "x").is_err());
        assert!(gate.admit(&HeaderMap::new()).is_err());
    }

    #[test]
    fn every_key_is_compared_with_wherever_the_right_one_is() {
        let names: Vec<String> = (0..40).map(|at| format!("key-{at}-of-many")).collect();
        let keys = ApiKeys::parse(&names.join("\n")).unwrap();
        let find = |secret: &str| {
            let mut compared = Vec::new();
            let found = keys.find_by(secret.as_bytes(), |known, digest| {
                compared.push(*known);
                known.ct_eq(digest)
            });
            assert_eq!(found, keys.find(secret.as_bytes()));
            let all: Vec<[u8; 32]> = keys.0.iter().map(|key| key.digest).collect();
            assert_eq!(compared, all, "{secret}");
            found
        };
        for (at, name) in names.iter().enumerate() {
            assert_eq!(find(name), Some(at));
        }
        for wrong in ["", "key-0-of-man", "key-0-of-many2", "another"] {
            assert_eq!(find(wrong), None);
        }
    }

    #[test]
    fn a_keys_line_says_what_its_traffic_may_be_used_for() {
        let keys = ApiKeys::parse("a:1\nb: 2  no-train\nc:3 no-retain").unwrap();
        let gate = Gate::new(keys, ApiKeys::parse("root:9").unwrap(), None);
        let admit = |key: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-api-key", key.parse().unwrap());
            let caller = gate.admit(&headers).unwrap().unwrap();
            (caller.allowed.retain, caller.allowed.train, caller.admin)
        };
        assert_eq!(admit("1"), (true, true, false));
        assert_eq!(admit("2"), (true, false, false));
        assert_eq!(admit("3"), (false, false, false));
        assert_eq!(admit("9"), (true, true, true));
    }

    #[test]
    fn what_is_no_key_is_named_by_its_line() {
        for (list, error) in [
            ("", KeysError::None),
            ("# only\n", KeysError::None),
            ("a\n\nname:\n", KeysError::Empty(3)),
            ("a b", KeysError::Word(1, "b".into())),
            ("x:ä", KeysError::Unsendable(1)),
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
        let gate = Gate::new(keys, ApiKeys::default(), Some(limit));
        let call = |key: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-api-key", key.parse().unwrap());
            gate.admit(&headers).is_ok()
        };
        assert_eq!([call("a"), call("a"), call("a")], [true, true, false]);
        assert!(call("b"));
    }
}
