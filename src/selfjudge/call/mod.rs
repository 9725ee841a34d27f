//! Calls: their scheduling, token counts and errors, and the computation outside the threads that serve connections.

mod record_error;
mod spawn_blocking;
mod threads;

use std::time::Instant;

use serde::Serialize;
use utoipa::ToSchema;

pub use record_error::RecordError;
pub use spawn_blocking::on_behalf_of;
pub(crate) use spawn_blocking::{Watch, spawn_blocking, spawn_blocking_until};

use engine::{CacheSalt, Class, RequestFailure, SubmitError, Tenant};
use judge::JudgeError;
use model::PrincipalHash;
use text::TextError;

/// The scheduling of a call: its caller, its place among other calls, and its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Lower values are served first.
    pub priority: i32,
    pub class: Class,
    /// The arrival of the call. Its reads arrive at the engine later, each at its own time.
    pub arrival: Instant,
    pub deadline: Option<Instant>,
    /// The caller, by which the canary's traffic is selected.
    pub principal: Option<PrincipalHash>,
    /// The unit of fair sharing: a call waits for its own tenant's calls, and shares cached prefixes only with them.
    pub tenant: Tenant,
    /// Restricts prefix sharing to those of the tenant's calls that have the same salt.
    pub cache_salt: Option<CacheSalt>,
}

impl Turn {
    /// Returns the turn of a local call that arrives now.
    pub fn now() -> Self {
        Self {
            priority: 0,
            class: Class::Foreground,
            arrival: Instant::now(),
            deadline: None,
            principal: None,
            tenant: Tenant::local(),
            cache_salt: None,
        }
    }

    /// Returns the turn of the server's own work, for which no client waits.
    pub fn background() -> Self {
        Self {
            class: Class::Background,
            tenant: Tenant::server(),
            ..Self::now()
        }
    }
}

/// Token counts of a call, including judging.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ToSchema)]
#[schema(as = UsageBody)]
pub struct Usage {
    /// Tokens of the prompts, and of the texts that the judge read.
    pub prompt_tokens: usize,
    /// Generated tokens, including those of all candidates.
    pub completion_tokens: usize,
    /// Prompt tokens that were in the prefix cache.
    pub cached_tokens: usize,
}

impl Usage {
    pub fn add(&mut self, other: Self) {
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
        self.cached_tokens += other.cached_tokens;
    }
}

/// An error of a call.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error(transparent)]
    Submit(#[from] SubmitError),
    #[error(transparent)]
    Failed(#[from] RequestFailure),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(transparent)]
    Judge(#[from] JudgeError),
    #[error(transparent)]
    Record(#[from] RecordError),
    /// An invalid parameter, by name.
    #[error("{param}: {message}")]
    Invalid {
        param: &'static str,
        message: String,
    },
}

impl CallError {
    pub(crate) fn invalid(param: &'static str, message: impl Into<String>) -> Self {
        Self::Invalid {
            param,
            message: message.into(),
        }
    }
}

/// Runs work that takes longer than a millisecond outside the threads that serve connections.
///
/// # Errors
/// Errors if the runtime is shutting down.
pub async fn offload<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, CallError> {
    spawn_blocking(move || Ok(work())).await
}
