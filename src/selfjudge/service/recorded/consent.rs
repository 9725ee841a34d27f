//! Consent: the permitted use of a call, as the strictest of the server's, the key's and the call's settings.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{CallOrigin, Caller};
use crate::call::RecordError;
use traffic_log::{Consent, Principal, TrafficLog};

/// The settings of recording.
#[derive(Clone, Default)]
pub struct TrafficConfig {
    /// The log; without it nothing is recorded.
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
    fn from_str(text: &str) -> Result<Self, String> {
        let (retain, train) = match text {
            "nothing" => (false, false),
            "retain" => (true, false),
            "train" => (true, true),
            _ => {
                return Err(format!(
                    "unknown value `{text}`; use nothing, retain or train"
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
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "serve-unlogged" => Ok(Self::ServeUnlogged),
            "refuse" => Ok(Self::Refuse),
            _ => Err(format!(
                "unknown value `{text}`; use serve-unlogged or refuse"
            )),
        }
    }
}

/// The permitted use of a call. The strictest of the server's, the key's and the call's settings applies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = LogBody)]
pub struct ConsentRequest {
    /// Whether the call and its answers are kept. By default the server's setting, or true with `"train": true`.
    pub retain: Option<bool>,
    /// Whether the model may be trained on the record. By default the server's setting, which is no unless the operator changes it.
    pub train: Option<bool>,
}

impl ConsentRequest {
    /// Returns whether the call explicitly asks to be recorded.
    pub(super) fn wants_record(self) -> bool {
        self.retain == Some(true) || self.train == Some(true)
    }
}

impl TrafficConfig {
    /// Returns the permitted use of a call. Requests from pages of other origins are not recorded and not trained on.
    ///
    /// # Errors
    /// Errors if the call contradicts itself, requests recording from a server without a log, or requests it from such a page.
    pub(super) fn consent_of(
        &self,
        origin: &CallOrigin,
        request: ConsentRequest,
    ) -> Result<Consent, RecordError> {
        let consent = self.consent(origin.caller.as_ref(), request)?;
        match (origin.of_another_page, request.wants_record()) {
            (false, _) => Ok(consent),
            (true, true) => Err(RecordError::OriginNotAllowed),
            (true, false) => Ok(Consent::default()),
        }
    }

    /// Returns the minimum of the server's, the key's and the call's consent.
    fn consent(
        &self,
        caller: Option<&Caller>,
        request: ConsentRequest,
    ) -> Result<Consent, RecordError> {
        let to_train = request.train == Some(true);
        if to_train && request.retain == Some(false) {
            return Err(RecordError::TrainWithoutRetain);
        }
        if self.log.is_none() {
            return match request.wants_record() {
                true => Err(RecordError::NoLogToAskFor),
                false => Ok(Consent::default()),
            };
        }
        let key = caller.map_or(self.strangers.0, |caller| caller.allowed);
        let allowed = |what: fn(&Consent) -> bool| what(&self.allowed.0) && what(&key);
        let retain = request.retain.unwrap_or(self.default.retain || to_train);
        let train = request.train.unwrap_or(self.default.train);
        let retain = retain && allowed(|consent| consent.retain);
        Ok(Consent {
            retain,
            train: retain && train && allowed(|consent| consent.train),
        })
    }

    /// Returns the principal of a call. `user` counts only if it is trusted.
    ///
    /// # Errors
    /// Errors if the user's name could be mistaken for another principal.
    pub fn principal(
        &self,
        caller: Option<&Caller>,
        user: Option<&str>,
    ) -> Result<Principal, RecordError> {
        let user = user.filter(|_| self.trust_user);
        if user.is_some_and(|user| !Principal::can_be_named(user)) {
            return Err(RecordError::InvalidUser);
        }
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

    /// Returns the log.
    ///
    /// # Errors
    /// Errors with [`RecordError::NoLog`] if the server has none.
    pub fn log(&self) -> Result<&TrafficLog, RecordError> {
        self.log.as_ref().ok_or(RecordError::NoLog)
    }
}
