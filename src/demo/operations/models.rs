//! The models that a resource has.

use serde_json::{Value, json};

use super::shared::text_model::dated_model_name;
use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::{OperationResult, SimulatedResponse};
use crate::demo::moods::simulated_error::SimulatedError;

/// `GET /models`
pub(super) fn list_models(request: &SimulatedRequest) -> SimulatedResponse {
    let deployments = &request.resource.definition.deployments;
    let mut models: Vec<&str> = deployments.iter().map(|deployment| deployment.model.as_str()).collect();
    models.sort_unstable();
    models.dedup();
    let data: Vec<Value> = models.into_iter().map(model_object).collect();
    SimulatedResponse::from_json(200, &json!({"object": "list", "data": data}))
}

/// `GET /models/{id}`
pub(super) fn get_model(request: &SimulatedRequest, id: &str) -> OperationResult {
    let mut deployments = request.resource.definition.deployments.iter();
    let is_known =
        deployments.any(|deployment| deployment.model == id || dated_model_name(&deployment.model) == id);
    if is_known {
        Ok(SimulatedResponse::from_json(200, &model_object(id)))
    } else {
        Err(SimulatedError::ResourceNotFound.into())
    }
}

fn model_object(model: &str) -> Value {
    json!({
        "id": dated_model_name(model), "object": "model", "status": "succeeded", "lifecycle_status": "generally-available",
        "created_at": 1_732_060_800, "updated_at": 1_732_060_800, "owned_by": "azure",
        "capabilities": {
            "fine_tune": false, "inference": true, "completion": false,
            "chat_completion": !model.contains("embedding"), "embeddings": model.contains("embedding"),
        },
        "deprecation": {"inference": 1_893_456_000},
    })
}
