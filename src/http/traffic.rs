//! Which traffic is kept, on whose behalf, and what is done when it cannot be.

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::error::ApiError;
use super::idempotency::CallName;
use super::keys::{Caller, tenant_of};
use super::memory::Holding;
use crate::engine::Tenant;
use crate::preference::log::{Consent, Principal, TrafficLog};

/// How the server keeps its traffic.
#[derive(Clone, Default)]
pub struct TrafficConfig {
    /// Where; without a log nothing is kept.
    pub log: Option<TrafficLog>,
    /// What may be done with a call that says nothing. Nothing, unless the operator says so.
    pub default: Consent,
    /// The most that may be done with any call, whatever it says.
    pub allowed: Permitted,
    /// The most that may be done with calls without a key.
    pub strangers: Permitted,
    pub on_failure: OnLogFailure,
    /// Whether `user` says on whose behalf a call comes. Only where callers are trusted to say the truth: it decides who
    /// reads a record, and how much one person may teach the model.
    pub trust_user: bool,
}

/// A ceiling: everything, unless the operator says less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permitted(pub Consent);

impl Default for Permitted {
    fn default() -> Self {
        Self(Consent {
            retain: true,
            train: true,
        })
    }
}

impl std::str::FromStr for Permitted {
    type Err = String;

    /// `nothing`, `retain` or `train`.
    fn from_str(said: &str) -> Result<Self, String> {
        let (retain, train) = match said {
            "nothing" => (false, false),
            "retain" => (true, false),
            "train" => (true, true),
            _ => return Err(format!("`{said}` is none of nothing, retain and train")),
        };
        Ok(Self(Consent { retain, train }))
    }
}

/// What becomes of calls whose record cannot be committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnLogFailure {
    /// They are answered, with `"logged": false`.
    #[default]
    ServeUnlogged,
    /// They are turned away with 503.
    Refuse,
}

impl std::str::FromStr for OnLogFailure {
    type Err = String;

    /// `serve-unlogged` or `refuse`.
    fn from_str(said: &str) -> Result<Self, String> {
        match said {
            "serve-unlogged" => Ok(Self::ServeUnlogged),
            "refuse" => Ok(Self::Refuse),
            _ => Err(format!("`{said}` is neither serve-unlogged nor refuse")),
        }
    }
}

/// What a call may be used for. What the server or the key forbids stays forbidden: the strictest of them decides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LogBody {
    /// Whether the call and its answers are kept. By default as the server is set up, or true beside `"train": true`.
    pub retain: Option<bool>,
    /// Whether the model may be trained on what is kept. By default as the server is set up: no, unless the operator says yes.
    pub train: Option<bool>,
}

impl TrafficConfig {
    /// What may be done with a call: the least of what the server, the key and the call itself allow.
    ///
    /// # Errors
    /// A call that contradicts itself, or asks a server without a log to keep it.
    pub fn consent(
        &self,
        caller: Option<&Caller>,
        said: Option<LogBody>,
    ) -> Result<Consent, ApiError> {
        let said = said.unwrap_or_default();
        let to_train = said.train == Some(true);
        if to_train && said.retain == Some(false) {
            return Err(ApiError::invalid(
                "log",
                "asks to train on a call that is not retained: `train` needs `retain`",
            ));
        }
        if self.log.is_none() {
            return match to_train || said.retain == Some(true) {
                true => Err(ApiError::invalid(
                    "log",
                    "cannot be asked for: this server keeps no log",
                )),
                false => Ok(Consent::default()),
            };
        }
        let key = caller.map_or(self.strangers.0, |caller| caller.allowed);
        let allowed = |what: fn(&Consent) -> bool| what(&self.allowed.0) && what(&key);
        let retain = said.retain.unwrap_or(self.default.retain || to_train);
        let train = said.train.unwrap_or(self.default.train);
        let retain = retain && allowed(|consent| consent.retain);
        Ok(Consent {
            retain,
            train: retain && train && allowed(|consent| consent.train),
        })
    }

    /// [`Self::consent`] of a call that says who calls. What a page of another origin sends is not kept: it teaches nothing.
    ///
    /// # Errors
    /// As there; such a page that asks for it.
    pub fn consent_of(
        &self,
        identity: &Identity,
        said: Option<LogBody>,
    ) -> Result<Consent, ApiError> {
        let consent = self.consent(identity.caller.as_ref(), said)?;
        if !identity.of_another_page {
            return Ok(consent);
        }
        let said = said.unwrap_or_default();
        match said.retain == Some(true) || said.train == Some(true) {
            true => Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "origin_not_allowed",
                "a web page of another origin may not have its calls kept: the server's --cors-origin names the pages that may",
            )
            .about("log")),
            false => Ok(Consent::default()),
        }
    }

    /// On whose behalf a call comes. `user` counts only where it is trusted.
    ///
    /// # Errors
    /// A user that could be taken for another principal.
    pub fn principal(
        &self,
        caller: Option<&Caller>,
        user: Option<&str>,
    ) -> Result<Principal, ApiError> {
        let user = user.filter(|_| self.trust_user);
        user.map_or(Ok(()), |user| check_name("user", user))?;
        Ok(match (caller, user) {
            (None, None) => Principal::anonymous(),
            (Some(caller), None) if caller.admin => Principal::of_operator(&caller.name),
            (Some(caller), Some(user)) if caller.admin => {
                Principal::of_operators_user(&caller.name, user)
            }
            (Some(caller), None) => Principal::of_key(&caller.name),
            (caller, Some(user)) => Principal::of_user(caller.map(|caller| &*caller.name), user),
        })
    }

    /// The principal that earlier versions gave to a user of an operator's key. It is the one of a user of a caller's key of the same
    /// name, so it counts only where no caller has a key of that name.
    pub fn former_principal(
        &self,
        caller: Option<&Caller>,
        user: Option<&str>,
    ) -> Option<Principal> {
        let user = user.filter(|_| self.trust_user)?;
        let caller = caller.filter(|caller| caller.admin && !caller.namesake)?;
        Some(Principal::of_user(Some(&caller.name), user))
    }

    /// The log, or a clear refusal.
    pub fn log(&self) -> Result<&TrafficLog, ApiError> {
        self.log.as_ref().ok_or_else(|| {
            ApiError::new(StatusCode::NOT_FOUND, "no_log", "this server keeps no log")
        })
    }
}

/// Refuses a name that could be taken for another principal's.
///
/// # Errors
/// A name with a control character, or a long one.
pub fn check_name(param: &str, name: &str) -> Result<(), ApiError> {
    match Principal::can_be_named(name) {
        true => Ok(()),
        false => Err(ApiError::invalid(
            param,
            "must be at most 1024 bytes without control characters",
        )),
    }
}

/// Who calls, and what the call is called.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    pub caller: Option<Caller>,
    /// Whose share of the server the call takes.
    pub tenant: Tenant,
    /// The same name of the same principal names the same record.
    pub name: Option<CallName>,
    /// The memory that the call holds.
    pub memory: Holding,
    /// Whether a web page sends the call that is not to call this server.
    pub of_another_page: bool,
}

/// Marks a request that a web page of another origin sends to a server without keys.
#[derive(Debug, Clone, Copy)]
pub struct OfAnotherPage;

impl<S: Send + Sync> FromRequestParts<S> for Identity {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Ok(Self {
            caller: parts.extensions.get::<Caller>().cloned(),
            tenant: tenant_of(&parts.extensions),
            memory: parts.extensions.get().cloned().unwrap_or_default(),
            of_another_page: parts.extensions.get::<OfAnotherPage>().is_some(),
            name: CallName::of(parts)?,
        })
    }
}

impl Identity {
    /// Whether an operator calls.
    pub fn is_admin(&self) -> bool {
        self.caller.as_ref().is_some_and(|caller| caller.admin)
    }

    /// Who calls, for the audit trail.
    pub fn actor(&self) -> String {
        let name = self.caller.as_ref().map(|caller| caller.name.to_string());
        name.unwrap_or_else(|| "anonymous".to_owned())
    }

    /// A seed for samples of `prompt` (of several, which) where the caller names none: a call that is made again under its name
    /// is answered the same.
    pub fn seed(&self, principal: &Principal, prompt: usize) -> u64 {
        let Some(name) = &self.name else {
            return exact(rand::random());
        };
        let digest = Sha256::digest(format!("{principal}\n{prompt}\n{}", name.as_str()));
        let (first, _) = digest.split_at(size_of::<u64>());
        let digest = first.iter();
        exact(digest.fold(0, |seed, &byte| seed << 8 | u64::from(byte)))
    }
}

/// A seed that clients can read: numbers of JSON are exact up to 2^53 in many of them.
fn exact(seed: u64) -> u64 {
    seed >> 11
}
