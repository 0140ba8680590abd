//! Lists in pages: `limit`, `order`, `after`, `before`.

use serde_json::{Value, json};

use crate::demo::api::error_response::{invalid_parameter, not_found};
use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::{ErrorResponse, OperationResult, SimulatedResponse};
use crate::demo::util::json::text_member;

const DEFAULT_LIMIT: usize = 20;
const MAX_LIMIT: usize = 100;
/// The list of files, which is longer than others.
pub(in crate::demo::operations) const MAX_LISTED_FILES: usize = 10_000;

/// The page of a list that the query asks for. `items` are oldest first; the newest comes first in the
/// response, unless the query says otherwise.
///
/// # Errors
/// 400 for an invalid parameter, 404 if `after` or `before` name no item of the list.
pub(in crate::demo::operations) fn list_response(
    request: &SimulatedRequest,
    kind: &str,
    items: Vec<Value>,
) -> OperationResult {
    list_page(request, kind, items, DEFAULT_LIMIT, MAX_LIMIT)
}

/// The same with other limits: how many items there are if the query does not say, and at most.
pub(in crate::demo::operations) fn list_page(
    request: &SimulatedRequest,
    kind: &str,
    mut items: Vec<Value>,
    default_limit: usize,
    max_limit: usize,
) -> OperationResult {
    let query = |name: &str| request.head.query_parameter(name).filter(|text| !text.is_empty());
    let limit = match query("limit").map(|text| text.parse::<usize>()) {
        None => default_limit,
        Some(Ok(limit)) if (1..=max_limit).contains(&limit) => limit,
        Some(_) => {
            let message = format!("Invalid 'limit': expected an integer from 1 to {max_limit}.");
            return Err(invalid_parameter("limit", &message));
        }
    };
    match query("order").as_deref() {
        None | Some("desc") => items.reverse(),
        Some("asc") => {}
        Some(_) => return Err(invalid_parameter("order", "Invalid 'order': expected 'asc' or 'desc'.")),
    }
    let position = |items: &[Value], id: &str| -> Result<usize, ErrorResponse> {
        let found = items.iter().position(|item| text_member(item, "id") == Some(id));
        found.ok_or_else(|| not_found(kind, id))
    };
    if let Some(after) = query("after") {
        items.drain(..=position(&items, &after)?);
    }
    // `before` wants the page that ends just before that item.
    let mut has_more = items.len() > limit;
    if let Some(before) = query("before") {
        items.truncate(position(&items, &before)?);
        has_more = items.len() > limit;
        items.drain(..items.len().saturating_sub(limit));
    }
    items.truncate(limit);
    let id = |item: Option<&Value>| item.and_then(|item| item.get("id")).cloned();
    let list = json!({
        "object": "list", "data": items, "has_more": has_more,
        "first_id": id(items.first()), "last_id": id(items.last()),
    });
    Ok(SimulatedResponse::from_json(200, &list))
}
