//! Which traffic is kept, for which principal, and the policy for failures of the log.

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
use engine::Tenant;
use traffic_log::{Consent, Principal, TrafficLog};

/// The settings of keeping traffic.
#[derive(Clone, Default)]
pub struct TrafficConfig {
    /// The log; without it nothing is kept.
    pub log: Option<TrafficLog>,
    /// The use of a call that does not set it; by default none.
    pub default: Consent,
    /// The maximum use of any call.
    pub allowed: Permitted,
    /// The maximum use of calls without a key.
    pub strangers: Permitted,
    pub on_failure: OnLogFailure,
    /// Whether `user` sets the principal of a call. Only for trusted callers: it decides who can read a record, and how much one person
    /// can influence the model.
    pub trust_user: bool,
}

/// An upper bound on the use of calls; by default everything.
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

    /// Parses `nothing`, `retain` or `train`.
    fn from_str(said: &str) -> Result<Self, String> {
        let (retain, train) = match said {
            "nothing" => (false, false),
            "retain" => (true, false),
            "train" => (true, true),
            _ => {
                return Err(format!(
                    "unknown value `{said}`; use nothing, retain or train"
                ));
            }
        };
        Ok(Self(Consent { retain, train }))
    }
}

/// The policy for calls whose record cannot be committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnLogFailure {
    /// They are answered, with `"logged": false`.
    #[default]
    ServeUnlogged,
    /// They are refused with 503.
    Refuse,
}

impl std::str::FromStr for OnLogFailure {
    type Err = String;

    /// Parses `serve-unlogged` or `refuse`.
    fn from_str(said: &str) -> Result<Self, String> {
        match said {
            "serve-unlogged" => Ok(Self::ServeUnlogged),
            "refuse" => Ok(Self::Refuse),
            _ => Err(format!(
                "unknown value `{said}`; use serve-unlogged or refuse"
            )),
        }
    }
}

/// The permitted use of a call. The strictest of the server's, the key's and the call's settings applies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LogBody {
    /// Whether the call and its answers are kept. By default the server's setting, or true with `"train": true`.
    pub retain: Option<bool>,
    /// Whether the model may be trained on the record. By default the server's setting, which is no unless the operator changes it.
    pub train: Option<bool>,
}

impl TrafficConfig {
    /// Returns the permitted use of a call: the minimum of the server's, the key's and the call's.
    ///
    /// # Errors
    /// Fails if the call contradicts itself, or requests logging from a server without a log.
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

    /// Returns [`Self::consent`] for an identified call. Requests from pages of other origins are not kept and not trained on.
    ///
    /// # Errors
    /// As there; fails also if such a page requests logging.
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
                "calls of a web page of another origin are kept only if the server's --cors-origin names the page",
            )
            .about("log")),
            false => Ok(Consent::default()),
        }
    }

    /// Returns the principal of a call. `user` counts only if it is trusted.
    ///
    /// # Errors
    /// Fails if the user's name could be mistaken for another principal.
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

    /// Returns the principal that earlier versions gave to a user of an operator's key. It equals that of a user of a caller's key with
    /// the same name, so it is used only if no caller's key has that name.
    pub fn former_principal(
        &self,
        caller: Option<&Caller>,
        user: Option<&str>,
    ) -> Option<Principal> {
        let user = user.filter(|_| self.trust_user)?;
        let caller = caller.filter(|caller| caller.admin && !caller.namesake)?;
        Some(Principal::of_user(Some(&caller.name), user))
    }

    /// Returns the log, or an error that explains its absence.
    pub fn log(&self) -> Result<&TrafficLog, ApiError> {
        self.log.as_ref().ok_or_else(|| {
            ApiError::new(StatusCode::NOT_FOUND, "no_log", "this server keeps no log")
        })
    }
}

/// Checks that a name cannot be mistaken for another principal's.
///
/// # Errors
/// Fails if the name has a control character or is too long.
pub fn check_name(param: &str, name: &str) -> Result<(), ApiError> {
    match Principal::can_be_named(name) {
        true => Ok(()),
        false => Err(ApiError::invalid(
            param,
            "must be at most 1024 bytes without control characters",
        )),
    }
}

/// The identity of a call: its caller and its name.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    pub caller: Option<Caller>,
    /// The tenant whose share of the server the call uses.
    pub tenant: Tenant,
    /// The idempotency key: the same name of the same principal stands for the same record.
    pub name: Option<CallName>,
    /// The memory charged to the call.
    pub memory: Holding,
    /// Whether the call comes from a web page whose origin is not allowed.
    pub of_another_page: bool,
}

/// A request extension: a web page of another origin sent the request to a server without keys.
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
    /// Returns whether the caller is an operator.
    pub fn is_admin(&self) -> bool {
        self.caller.as_ref().is_some_and(|caller| caller.admin)
    }

    /// Returns the caller's name for the audit trail.
    pub fn actor(&self) -> String {
        let name = self.caller.as_ref().map(|caller| caller.name.to_string());
        name.unwrap_or_else(|| "anonymous".to_owned())
    }

    /// Returns the seed for the samples of a call's prompt with index `prompt`, if the caller gives none: a repeated call with a name gets
    /// the same answer.
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

/// Shortens a seed to 53 bits, because many JSON clients read larger numbers inexactly.
fn exact(seed: u64) -> u64 {
    seed >> 11
}
