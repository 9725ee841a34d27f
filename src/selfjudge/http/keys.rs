//! Authentication: API keys, and the rate limit of each.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{Extensions, HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::HttpConfig;
use super::client_address::TrustedProxies;
use super::error::ApiError;
use crate::call::on_behalf_of;
use crate::service::Caller;
use engine::Tenant;
use traffic_log::Consent;

/// The accepted keys, stored as digests.
#[derive(Clone, Default)]
pub struct ApiKeys(Vec<ApiKey>);

#[derive(Clone)]
struct ApiKey {
    name: Arc<str>,
    digest: [u8; 32],
    allowed: Consent,
    /// The line of the key, counted from 1.
    line: usize,
    /// Whether it has fewer characters than [`SHORT_KEY`].
    short: bool,
}

/// An error in a list of keys.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    #[error("line {0}: the key is empty")]
    Empty(usize),
    #[error(
        "line {0}: the key is too long for a header, or has characters that a header cannot have"
    )]
    Unsendable(usize),
    #[error("line {0}: duplicate key")]
    Twice(usize),
    #[error("line {line}: the name `{name}` is already used in line {first}")]
    NameTwice {
        line: usize,
        name: String,
        first: usize,
    },
    #[error(
        "line {0}: the name has the form of a derived one (`key-` and 12 hexadecimal digits), which only a key without a name has"
    )]
    DerivedName(usize),
    #[error("line {0}: the name has a control character")]
    ControlInName(usize),
    /// The word is not shown: it may be a key whose name is not followed by a colon.
    #[error(
        "line {0}: a word after the key is not a restriction (no-retain, no-train); a name ends with a colon: `name:key`"
    )]
    Word(usize),
    #[error("the list has no keys")]
    None,
}

/// The permitted use of a key's traffic, unless its line restricts it.
const EVERYTHING: Consent = Consent {
    retain: true,
    train: true,
};

/// Maximum length of a key.
const MAX_KEY: usize = 1024;

/// Keys with fewer characters can be guessed.
const SHORT_KEY: usize = 16;

/// Hexadecimal digits of a derived name.
const DERIVED_DIGITS: usize = 12;

impl ApiKeys {
    /// Parses `key` or `name:key`, one per line, optionally followed by a restriction on the use of the key's traffic: `no-train`, or
    /// `no-retain`, which implies both. Empty lines and lines that start with `#` are ignored.
    ///
    /// A key without a name is named by its digest, such as `key-3fa94be1c07d`: the name, and with it the access to records, does not
    /// depend on the other lines.
    ///
    /// # Errors
    /// Names the line that is not a key, or whose name another key has or could get.
    pub fn parse(list: &str) -> Result<Self, KeysError> {
        let mut keys: Vec<ApiKey> = Vec::new();
        // The lines of the names, and the digests, seen so far.
        let (mut names, mut digests) = (HashMap::new(), HashSet::new());
        // Some editors begin a file with a byte order mark.
        let list = list.strip_prefix('\u{feff}').unwrap_or(list);
        for (at, line) in list.lines().enumerate() {
            let (at, line) = (at + 1, line.trim());
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (given, rest) = match line.split_once(':') {
                Some((name, rest)) => (Some(name.trim()), rest),
                None => (None, line),
            };
            let mut words = rest.split_ascii_whitespace();
            let key = words.next().unwrap_or_default();
            let allowed = allowed(at, words)?;
            if key.is_empty() || given == Some("") {
                return Err(KeysError::Empty(at));
            }
            if key.len() > MAX_KEY || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(KeysError::Unsendable(at));
            }
            let digest: [u8; 32] = Sha256::digest(key).into();
            if !digests.insert(digest) {
                return Err(KeysError::Twice(at));
            }
            let name = match given {
                Some(name) if is_derived(name) => return Err(KeysError::DerivedName(at)),
                Some(name) if name.chars().any(char::is_control) => {
                    return Err(KeysError::ControlInName(at));
                }
                Some(name) => name.to_owned(),
                None => derived_name(&digest),
            };
            let name: Arc<str> = name.into();
            if let Some(first) = names.insert(Arc::clone(&name), at) {
                return Err(KeysError::NameTwice {
                    line: at,
                    first,
                    name: name.to_string(),
                });
            }
            keys.push(ApiKey {
                name,
                digest,
                allowed,
                line: at,
                short: key.len() < SHORT_KEY,
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

    /// Returns whether a key has this name.
    pub fn has_name(&self, name: &str) -> bool {
        self.0.iter().any(|key| &*key.name == name)
    }

    /// Returns the lines, counted from 1, of keys that are short enough to be guessed.
    pub fn short_keys(&self) -> Vec<usize> {
        let short = self.0.iter().filter(|key| key.short);
        short.map(|key| key.line).collect()
    }

    /// Returns the index of the key equal to `secret`, in a time that does not depend on the secret.
    fn find(&self, secret: &[u8]) -> Option<usize> {
        self.find_by(secret, |known, digest| known.ct_eq(digest))
    }

    /// Compares with every key, regardless of matches: `same` returns a [`Choice`], which cannot be branched on.
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

/// Returns the name of a key without one: a function of the key alone.
fn derived_name(digest: &[u8; 32]) -> String {
    let digits = digest.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    let digits = digits
        .take(DERIVED_DIGITS)
        .map(|digit| char::from_digit(digit.into(), 16).unwrap_or('0'));
    format!("key-{}", digits.collect::<String>())
}

fn is_derived(name: &str) -> bool {
    name.strip_prefix("key-").is_some_and(|digits| {
        digits.len() == DERIVED_DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// Returns the permitted use of a key's traffic after applying the restrictions on its line.
fn allowed<'a>(line: usize, words: impl Iterator<Item = &'a str>) -> Result<Consent, KeysError> {
    let mut allowed = EVERYTHING;
    for word in words {
        match word {
            "no-train" => allowed.train = false,
            "no-retain" => allowed = Consent::default(),
            _ => return Err(KeysError::Word(line)),
        }
    }
    Ok(allowed)
}

/// Shows the names and no secrets.
impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|key| &key.name))
            .finish()
    }
}

/// The rate limit of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    pub per_second: NonZeroU32,
    /// Calls that may arrive in a burst.
    pub burst: NonZeroU32,
}

/// Admits calls with known keys, within their rate limits.
#[derive(Clone)]
pub struct Gate {
    keys: Arc<ApiKeys>,
    admins: Arc<ApiKeys>,
    limiter: Option<Arc<DefaultKeyedRateLimiter<usize>>>,
    /// Allowed calls per second.
    rate: u32,
    proxies: TrustedProxies,
}

/// The key's name as an extension of the response, for the log line.
#[derive(Debug, Clone)]
pub struct CallerName(pub Arc<str>);

/// Returns the caller at the operators' own listener, if operators have no keys.
fn caller_at_the_admin_listener() -> Caller {
    Caller {
        name: "admin-listener".into(),
        allowed: EVERYTHING,
        admin: true,
        namesake: false,
        tenant: None,
    }
}

impl Gate {
    pub fn of(config: &HttpConfig) -> Self {
        let (keys, admins) = (config.keys.clone(), config.admin_keys.clone());
        Self {
            proxies: config.trusted_proxies.clone(),
            ..Self::new(keys, admins, config.rate_limit)
        }
    }

    pub fn new(keys: ApiKeys, admins: ApiKeys, limit: Option<RateLimit>) -> Self {
        let limiter = limit.map(|limit| {
            let quota = Quota::per_second(limit.per_second).allow_burst(limit.burst);
            Arc::new(RateLimiter::keyed(quota))
        });
        Self {
            keys: Arc::new(keys),
            admins: Arc::new(admins),
            rate: limit.map_or(0, |limit| limit.per_second.get()),
            limiter,
            proxies: TrustedProxies::default(),
        }
    }

    /// Authenticates a request. Returns none if no keys are required and none matches.
    fn admit(&self, headers: &HeaderMap) -> Result<Option<Caller>, ApiError> {
        let secrets = || secrets(headers);
        let caller = |keys: &ApiKeys, at: usize, admin| Caller {
            name: Arc::clone(&keys.0[at].name),
            allowed: keys.0[at].allowed,
            admin,
            namesake: admin && self.keys.has_name(&keys.0[at].name),
            tenant: Some(Tenant::of_key(&keys.0[at].digest)),
        };
        if let Some(at) = secrets().find_map(|secret| self.admins.find(secret)) {
            return Ok(Some(caller(&self.admins, at, true)));
        }
        if self.keys.is_empty() {
            return Ok(None);
        }
        let Some(at) = secrets().find_map(|secret| self.keys.find(secret)) else {
            return Err(match secrets().next() {
                Some(_) => unknown_key(),
                None => missing_key(),
            });
        };
        if let Some(limiter) = &self.limiter
            && let Err(until) = limiter.check_key(&at)
        {
            let wait = until.wait_time_from(DefaultClock::default().now());
            return Err(too_fast(wait, self.rate));
        }
        Ok(Some(caller(&self.keys, at, false)))
    }
}

fn missing_key() -> ApiError {
    ApiError::new(
        StatusCode::UNAUTHORIZED,
        "invalid_api_key",
        "the call has no API key; send one as `Authorization: Bearer …` or `X-Api-Key: …`",
    )
}

fn unknown_key() -> ApiError {
    ApiError::new(
        StatusCode::UNAUTHORIZED,
        "invalid_api_key",
        "the API key of this call is unknown",
    )
}

fn too_fast(wait: Duration, rate: u32) -> ApiError {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    ApiError::new(
        StatusCode::TOO_MANY_REQUESTS,
        "rate_limited",
        format!(
            "the key has reached its limit of {rate} calls a second; the next call is allowed in {} s",
            seconds.max(1)
        ),
    )
    .retry_after(seconds.max(1))
}

/// Returns the candidates for the call's key: `X-Api-Key`, and then `Authorization` if the first is absent or unknown.
fn secrets(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let named = headers.get("x-api-key").map(HeaderValue::as_bytes);
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(b"Bearer ".len())?;
        let is_bearer = scheme.eq_ignore_ascii_case(b"Bearer ");
        is_bearer.then(|| key.trim_ascii())
    });
    named.into_iter().chain(bearer)
}

impl Gate {
    /// Continues with a request on behalf of its caller.
    async fn pass(&self, caller: Option<Caller>, mut request: Request, next: Next) -> Response {
        let tenant = caller.as_ref().and_then(|caller| caller.tenant);
        let tenant = tenant.unwrap_or_else(|| Tenant::of_address(self.proxies.client(&request)));
        request.extensions_mut().insert(tenant);
        let name = caller
            .as_ref()
            .map(|caller| CallerName(Arc::clone(&caller.name)));
        if let Some(caller) = caller {
            tracing::Span::current().record("caller", &*caller.name);
            request.extensions_mut().insert(caller);
        }
        let mut response = on_behalf_of(tenant, next.run(request)).await;
        if let Some(name) = name {
            response.extensions_mut().insert(name);
        }
        response
    }
}

/// Returns the tenant of a request that has passed the guard.
pub fn tenant_of(extensions: &Extensions) -> Tenant {
    extensions.get().copied().unwrap_or_default()
}

/// Authenticates callers (middleware).
pub async fn guard(
    State(gate): State<Gate>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let caller = gate.admit(request.headers())?;
    Ok(gate.pass(caller, request, next).await)
}

/// Guards metrics on a listener that callers can reach (middleware): if callers have keys, only operators may read metrics.
pub async fn guard_metrics(
    State(gate): State<Gate>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let caller = gate.admit(request.headers())?;
    if caller.as_ref().is_some_and(|caller| !caller.admin) {
        return Err(not_an_admin());
    }
    Ok(gate.pass(caller, request, next).await)
}

/// Admits operators only (middleware).
pub async fn guard_admin(
    State(gate): State<Gate>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let caller = match gate.admins.is_empty() {
        true => caller_at_the_admin_listener(),
        false => match gate.admit(request.headers())? {
            Some(caller) => caller,
            None => return Err(no_admin(request.headers())),
        },
    };
    if !caller.admin {
        return Err(not_an_admin());
    }
    Ok(gate.pass(Some(caller), request, next).await)
}

/// Returns the error for a caller without an operator's key on a server whose callers need no key.
fn no_admin(headers: &HeaderMap) -> ApiError {
    match secrets(headers).next() {
        Some(_) => unknown_key(),
        None => missing_key(),
    }
}

/// Returns the error for a caller whose key is not an operator's.
pub fn not_an_admin() -> ApiError {
    ApiError::new(
        StatusCode::FORBIDDEN,
        "admin_only",
        "this call needs an operator's key (--admin-key-file), and its key is not one",
    )
}

#[cfg(test)]
mod tests;
