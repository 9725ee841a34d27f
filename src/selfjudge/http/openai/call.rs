//! The data about a call that every piece of its answer contains.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::http::AppState;
use crate::http::answering::Ends;
use crate::http::sampling::Sampling;
use text::TokenTexts;

pub struct Call {
    /// Texts of single tokens.
    pub texts: Arc<TokenTexts>,
    pub id: String,
    pub created: u64,
    pub model: String,
    pub ends: Ends,
}

impl AppState {
    pub(super) fn call(&self, kind: &str, sampling: &Sampling) -> Call {
        Call {
            texts: Arc::clone(self.service.token_texts()),
            id: self.next_id(kind),
            created: created(),
            model: self.model_name.to_string(),
            ends: Ends {
                stop: Arc::clone(&sampling.stop),
                ids: self.service.stop_ids().into(),
            },
        }
    }
}

/// Returns the seconds since 1970, for OpenAI's `created`.
pub fn created() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
