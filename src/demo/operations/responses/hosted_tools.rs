//! The tools that the service itself runs: search in files, code in a container, and tools of a server that
//! the client has to approve.

use serde_json::{Value, json};

use super::output_context::OutputContext;
use crate::demo::api::response::ErrorResponse;
use crate::demo::operations::containers::{ContainerFileSource, create_container, store_container_file};
use crate::demo::operations::vector_stores::search_vector_stores;
use crate::demo::util::json::{set_member, text_list, text_member};

const DEFAULT_SEARCH_RESULTS: u64 = 10;
const RESULT_FILENAME: &str = "result.txt";

/// What a hosted tool has done: its output item, and what the message says about it.
pub(super) struct ToolOutcome {
    pub(super) item: Value,
    /// A sentence that is added to the message.
    pub(super) sentence: String,
    /// Annotations of the sentence. Their indices count from its beginning.
    pub(super) annotations: Vec<Value>,
    /// Whether the response ends here, since the client has to approve something.
    pub(super) awaits_client: bool,
}

/// Runs each hosted tool of the request once, in order.
///
/// # Errors
/// 404 for a file that a new container is to have.
pub(super) fn run_hosted_tools(
    context: &OutputContext,
    user_text: &str,
) -> Result<Vec<ToolOutcome>, ErrorResponse> {
    let tools = context.body.get("tools").and_then(Value::as_array);
    let is_forbidden = text_member(context.body, "tool_choice") == Some("none");
    let mut outcomes = Vec::new();
    for tool in tools.into_iter().flatten().filter(|_| !is_forbidden) {
        outcomes.extend(match text_member(tool, "type") {
            Some("file_search") => Some(search_files(context, tool, user_text)),
            Some("code_interpreter") => Some(run_code(context, tool, user_text)?),
            Some("mcp") => call_server(context, tool),
            _ => None,
        });
    }
    Ok(outcomes)
}

/// Searches the files of vector stores for what the user said.
fn search_files(context: &OutputContext, tool: &Value, user_text: &str) -> ToolOutcome {
    let limit = tool.get("max_num_results").and_then(Value::as_u64).unwrap_or(DEFAULT_SEARCH_RESULTS);
    let store_ids = text_list(tool, "vector_store_ids");
    let hits = search_vector_stores(context.request, &store_ids, user_text, limit);
    let (sentence, annotations) = match hits.first() {
        Some(hit) => {
            let sentence = format!("I found in {}: {}", hit.filename, hit.text);
            let index = sentence.chars().count();
            let annotation = json!({"type": "file_citation", "index": index, "file_id": hit.file_id, "filename": hit.filename});
            (sentence, vec![annotation])
        }
        None => ("I found nothing in the files.".to_owned(), Vec::new()),
    };
    let results: Vec<Value> = hits
        .iter()
        .map(|hit| {
            json!({
                "file_id": hit.file_id, "filename": hit.filename, "score": hit.score, "text": hit.text,
                "vector_store_id": hit.vector_store_id, "attributes": {},
            })
        })
        .collect();
    let mut item = json!({
        "id": context.new_item_id("fs_"), "type": "file_search_call", "status": "completed",
        "queries": [user_text], "results": null,
    });
    if context.includes("file_search_call.results") {
        set_member(&mut item, "results", json!(results));
    }
    ToolOutcome { item, sentence, annotations, awaits_client: false }
}

/// Runs code that writes the words of the user into a file of the container.
fn run_code(context: &OutputContext, tool: &Value, user_text: &str) -> Result<ToolOutcome, ErrorResponse> {
    let request = context.request;
    let container = tool.get("container").unwrap_or(&Value::Null);
    let container_id = match container.as_str() {
        Some(id) => id.to_owned(),
        None => create_container(request, "auto", &text_list(container, "file_ids"))?,
    };
    let file = store_container_file(
        request,
        &container_id,
        RESULT_FILENAME,
        ContainerFileSource::Assistant,
        user_text.as_bytes().to_vec().into(),
    );
    let sentence = format!("I wrote {RESULT_FILENAME}.");
    let annotation = json!({
        "type": "container_file_citation", "container_id": container_id, "file_id": file.get("id"),
        "filename": RESULT_FILENAME, "start_index": 0, "end_index": sentence.chars().count(),
    });
    let mut item = json!({
        "id": context.new_item_id("ci_"), "type": "code_interpreter_call", "status": "completed",
        "code": format!("open('/mnt/data/{RESULT_FILENAME}', 'w').write({})", json!(user_text)),
        "container_id": container_id, "outputs": null,
    });
    if context.includes("code_interpreter_call.outputs") {
        let logs = user_text.chars().count().to_string();
        set_member(&mut item, "outputs", json!([{"type": "logs", "logs": logs}]));
    }
    Ok(ToolOutcome { item, sentence, annotations: vec![annotation], awaits_client: false })
}

/// Asks the client to approve the call of a tool, unless it has just answered or need not be asked.
fn call_server(context: &OutputContext, tool: &Value) -> Option<ToolOutcome> {
    let last_type = context.items.last().and_then(|item| text_member(item, "type"));
    if last_type == Some("mcp_approval_response") || text_member(tool, "require_approval") == Some("never") {
        return None;
    }
    let item = json!({
        "id": context.new_item_id("mcpr_"), "type": "mcp_approval_request", "name": "simulated_tool",
        "server_label": tool.get("server_label"), "arguments": "{}",
    });
    Some(ToolOutcome { item, sentence: String::new(), annotations: Vec::new(), awaits_client: true })
}
