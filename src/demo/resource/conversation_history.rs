//! What the simulated model knows of a conversation: its text, what the user said, which tools were called.

use serde_json::{Value, json};

use crate::demo::util::json::content_text;

/// A conversation up to some point.
#[derive(Debug, Clone, Default)]
pub(in crate::demo) struct ConversationHistory {
    /// All that was said, as one text.
    pub(in crate::demo) text: String,
    /// What the user said, one text for each message.
    pub(in crate::demo) user_texts: Vec<String>,
    /// What the model thought, of reasoning that came back encrypted.
    pub(in crate::demo) thoughts: Vec<String>,
    /// The calls of functions, in order.
    calls: Vec<FunctionCall>,
}

#[derive(Debug, Clone)]
struct FunctionCall {
    call_id: String,
    has_output: bool,
}

/// The output of a function that was not called.
#[derive(Debug)]
pub(in crate::demo) struct UnknownCall {
    pub(in crate::demo) call_id: String,
}

impl ConversationHistory {
    /// Adds an input or output item.
    ///
    /// # Errors
    /// When it is the output of a function call that is not part of the conversation.
    pub(in crate::demo) fn add_item(&mut self, item: &Value) -> Result<(), UnknownCall> {
        let field = |name: &str| item.get(name).and_then(Value::as_str);
        let text = item.get("content").or_else(|| item.get("output")).map(content_text).unwrap_or_default();
        match field("type").unwrap_or("message") {
            "message" if field("role") == Some("user") => self.user_texts.push(text.clone()),
            "function_call" | "custom_tool_call" => {
                let call_id = field("call_id").unwrap_or_default().to_owned();
                self.calls.push(FunctionCall { call_id, has_output: false });
            }
            "function_call_output" | "custom_tool_call_output" => {
                let call_id = field("call_id").unwrap_or_default();
                let Some(call) = self.calls.iter_mut().find(|call| call.call_id == call_id) else {
                    return Err(UnknownCall { call_id: call_id.to_owned() });
                };
                call.has_output = true;
            }
            _ => {}
        }
        let role = field("role").unwrap_or("item");
        self.text.push_str(&format!("{role} {text}\n"));
        Ok(())
    }

    /// The first call whose output is missing.
    pub(in crate::demo) fn unanswered_call_id(&self) -> Option<&str> {
        self.calls.iter().find(|call| !call.has_output).map(|call| call.call_id.as_str())
    }

    /// What is to remain of the conversation when it is compacted.
    pub(in crate::demo) fn to_compact_text(&self) -> String {
        json!({"user_texts": self.user_texts}).to_string()
    }

    /// Continues a conversation that was compacted.
    pub(in crate::demo) fn add_compact_text(&mut self, text: &str) {
        let compacted: Value = serde_json::from_str(text).unwrap_or_default();
        let texts = compacted.get("user_texts").and_then(Value::as_array).into_iter().flatten();
        for text in texts.filter_map(Value::as_str) {
            self.user_texts.push(text.to_owned());
            self.text.push_str(&format!("user {text}\n"));
        }
    }

    pub(in crate::demo) fn byte_count(&self) -> usize {
        let texts = self.user_texts.iter().chain(&self.thoughts).map(String::len).sum::<usize>();
        self.text.len() + texts + self.calls.len() * 48
    }
}
