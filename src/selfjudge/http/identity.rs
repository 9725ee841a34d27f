//! The identity of a call, from its headers and the layers before the handlers.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::error::ApiError;
use super::idempotency::IdempotencyHeader;
use super::keys::tenant_of;
use super::memory::Holding;
use crate::service::{CallOrigin, Caller};
use engine::Tenant;
use traffic_log::Principal;

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
    /// The idempotency key.
    pub name: Option<IdempotencyHeader>,
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
            name: IdempotencyHeader::of(parts)?,
        })
    }
}

impl Identity {
    /// Returns the origin of the call for its record, once its body has been read; `user` is the end user that the body names.
    pub fn origin(&self, user: Option<String>) -> CallOrigin {
        CallOrigin {
            caller: self.caller.clone(),
            user,
            of_another_page: self.of_another_page,
            name: self.name.as_ref().map(IdempotencyHeader::name),
        }
    }

    /// Returns whether the caller is an operator.
    pub fn is_admin(&self) -> bool {
        self.caller.as_ref().is_some_and(|caller| caller.admin)
    }

    /// Returns the caller's name for the audit trail.
    pub fn actor(&self) -> String {
        let name = self.caller.as_ref().map(|caller| caller.name.to_string());
        name.unwrap_or_else(|| "anonymous".to_owned())
    }
}
