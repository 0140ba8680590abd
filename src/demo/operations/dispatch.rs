//! Finds the operation that a request is for.

use super::{
    audio, batches, chat, completions, containers, conversations, embeddings, files, images, models, objects,
    responses, uploads, vector_stores,
};
use crate::demo::api::error_response::error_with_code;
use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::{OperationResult, SimulatedResponse, WebSocketApi};
use crate::demo::api::route::ApiDialect;
use crate::demo::moods::simulated_error::SimulatedError;

/// Runs the operation that method and path name.
///
/// # Errors
/// 404 if there is none, or the error of the operation.
pub(in crate::demo) fn dispatch_operation(request: &SimulatedRequest) -> OperationResult {
    let path = request.route.operation_path_segments();
    let is_per_deployment = matches!(
        path.as_slice(),
        ["chat", "completions"]
            | ["completions" | "embeddings"]
            | ["audio", "transcriptions" | "translations" | "speech"]
            | ["images", "generations" | "edits"]
    );
    let is_v1 = request.route.dialect == ApiDialect::V1;
    // Classic paths name a deployment for these operations and for no others.
    if !is_v1 && is_per_deployment != request.route.has_deployment_in_path {
        return Err(SimulatedError::ResourceNotFound.into());
    }
    match (request.head.method.as_str(), path.as_slice()) {
        ("POST", ["chat", "completions"]) => chat::create_chat_completion(request),
        ("POST", ["completions"]) => completions::create_completion(request),
        ("POST", ["embeddings"]) => embeddings::create_embeddings(request),
        ("POST", ["audio", "transcriptions"]) => audio::transcribe_audio(request),
        ("POST", ["audio", "translations"]) => audio::translate_audio(request),
        ("POST", ["audio", "speech"]) => audio::synthesize_speech(request),
        ("POST", ["images", "generations"]) => images::generate_images(request),
        ("POST", ["images", "edits"]) => images::edit_images(request),
        ("GET", ["models"]) => Ok(models::list_models(request)),
        ("GET", ["models", id]) => models::get_model(request, id),
        ("GET", ["realtime"]) => open_realtime(request),
        ("GET", ["responses"]) if is_v1 && request.head.is_websocket_upgrade() => {
            Ok(SimulatedResponse::websocket_upgrade(WebSocketApi::Responses))
        }
        (method, ["responses", path @ ..]) => responses::handle_responses(request, method, path),
        (method, ["files", path @ ..]) => files::handle_files(request, method, path),
        (method, ["uploads", path @ ..]) => uploads::handle_uploads(request, method, path),
        (method, ["batches", path @ ..]) => batches::handle_batches(request, method, path),
        (method, ["vector_stores", path @ ..]) => vector_stores::handle_vector_stores(request, method, path),
        (method, ["containers", path @ ..]) => containers::handle_containers(request, method, path),
        (method, ["conversations", path @ ..]) => conversations::handle_conversations(request, method, path),
        (method, path) => objects::handle_other_collections(request, method, path),
    }
}

fn open_realtime(request: &SimulatedRequest) -> OperationResult {
    let deployment = request.requested_deployment(None)?;
    if !request.head.is_websocket_upgrade() {
        let message = "This endpoint expects a WebSocket upgrade.";
        return Err(Box::new(error_with_code(400, "BadRequest", message)));
    }
    Ok(SimulatedResponse::websocket_upgrade(WebSocketApi::Realtime(deployment.name.clone())))
}
