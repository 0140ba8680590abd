//! JSON objects.

use serde_json::Value;

/// Adds the members of `more` to the object `value`; a member that both have is taken from `more`.
pub(in crate::demo) fn merge_objects(mut value: Value, more: &Value) -> Value {
    if let (Some(map), Some(more)) = (value.as_object_mut(), more.as_object()) {
        map.extend(more.clone());
    }
    value
}
