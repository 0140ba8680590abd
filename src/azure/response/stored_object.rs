//! The id and status of an object that Azure keeps, such as a background response or a run.

use crate::azure::json;

/// Longer ids are not Azure's.
const MAX_ID_BYTES: usize = 256;

/// The statuses after which an object does not change (Responses, runs and batches; reference of Azure OpenAI).
const FINAL_STATUSES: [&str; 7] =
    ["completed", "failed", "cancelled", "canceled", "incomplete", "expired", "succeeded"];

/// An object with an id and a status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredObject {
    /// Its id.
    pub id: String,
    /// Whether its status is final.
    pub has_ended: bool,
}

impl StoredObject {
    /// The object with these raw values of `id` and `status`; `None` if it has none of them.
    pub(super) fn from_raw(id: Option<&str>, status: Option<&str>) -> Option<Self> {
        let id = json::decode_non_empty_string(id).filter(|id| id.len() <= MAX_ID_BYTES)?;
        let status = json::decode_non_empty_string(status)?;
        Some(Self { id: id.into_owned(), has_ended: FINAL_STATUSES.contains(&&*status) })
    }
}
