//! What the output of a response is generated from.

use serde_json::Value;

use crate::demo::api::request::SimulatedRequest;
use crate::demo::resource::conversation_history::ConversationHistory;
use crate::demo::resource::definition::SimulatedDeployment;
use crate::demo::util::ids::ChainKey;
use crate::demo::util::json::text_list;

/// What the model is given.
pub(super) struct OutputContext<'a> {
    pub(super) request: &'a SimulatedRequest<'a>,
    pub(super) body: &'a Value,
    pub(super) deployment: &'a SimulatedDeployment,
    pub(super) chain_key: &'a ChainKey,
    pub(super) items: &'a [Value],
    pub(super) history: &'a ConversationHistory,
    pub(super) max_output_tokens: Option<u64>,
}

impl OutputContext<'_> {
    /// An id of an item of this response.
    pub(super) fn new_item_id(&self, prefix: &str) -> String {
        self.request.resource.id_generator.new_chained_id(prefix, self.chain_key)
    }

    /// Whether the request wants this to be part of the output.
    pub(super) fn includes(&self, name: &str) -> bool {
        text_list(self.body, "include").contains(&name)
    }
}
