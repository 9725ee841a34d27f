//! What every piece of an answer says of its call.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::http::AppState;
use crate::http::answering::Ends;
use crate::http::sampling::Sampling;
use crate::text::Tokenizer;

pub struct Call {
    tokenizer: Tokenizer,
    pub id: String,
    pub created: u64,
    pub model: String,
    pub ends: Ends,
}

impl Call {
    /// A token by itself. Half a character shows as a replacement character, as it does with others.
    pub fn word(&self, id: u32) -> String {
        self.tokenizer.decode(&[id], false).unwrap_or_default()
    }
}

impl AppState {
    pub(super) fn call(&self, kind: &str, sampling: &Sampling) -> Call {
        Call {
            tokenizer: self.service.tokenizer().clone(),
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

/// Seconds since the epoch, as OpenAI's `created`.
pub fn created() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
