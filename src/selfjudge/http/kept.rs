//! The part of an answer about the records of its call.

use serde::Serialize;
use utoipa::ToSchema;

use crate::service::CallRecords;
use traffic_log::RecordId;

/// The part of an answer about its records; empty if none was to be kept.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct KeptBody {
    /// The record of this call, once it is committed; for `GET /records/{id}` and `POST /feedback`.
    #[serde(skip_serializing_if = "Option::is_none")]
    record_id: Option<String>,
    /// The records of a call with several prompts, in their order.
    #[serde(skip_serializing_if = "Option::is_none")]
    record_ids: Option<Vec<String>>,
    /// False if the call should have been recorded and was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    logged: Option<bool>,
}

impl From<CallRecords> for KeptBody {
    fn from(records: CallRecords) -> Self {
        let ids: Vec<String> = records.ids.iter().map(RecordId::to_string).collect();
        let (record_id, record_ids) = match ids.as_slice() {
            [] => (None, None),
            [only] => (Some(only.clone()), None),
            _ => (None, Some(ids)),
        };
        Self {
            record_id,
            record_ids,
            logged: records.missing.then_some(false),
        }
    }
}
