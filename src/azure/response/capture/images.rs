//! Generated images: how many there are, and in place of their data its size and hash.

use super::ResponseCapture;
use crate::azure::Operation;
use crate::azure::binary_data::replace_binary_data;
use crate::azure::json;

impl ResponseCapture {
    /// Takes the images of a complete body.
    pub(super) fn capture_images(&mut self, body: &str) {
        let [Some(data)] = json::find_fields(body, &["data"]) else { return };
        let mut count = 0;
        json::for_each_array_item(data, |_| count += 1);
        self.image_count = Some(count);
        if self.text_budget.limit_bytes() > 0 {
            self.text_budget
                .append_text(&mut self.choices.get_or_insert_choice(0).content, &replace_binary_data(data));
        }
    }

    /// Counts the image of the last event of a stream, which has one for each image.
    pub(super) fn count_streamed_image(&mut self) {
        if self.operation == Operation::Images {
            self.image_count = Some(self.image_count.unwrap_or_default().saturating_add(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::azure::Operation;
    use crate::azure::response::capture::ResponseCapture;
    use crate::azure::response::sse::SseEvent;

    #[test]
    fn images_are_counted_in_bodies_and_streams() {
        for (operation, body, expected) in [
            (Operation::Images, r#"{"created":1,"data":[{"url":"a"},{"b64_json":"YQ=="}]}"#, Some(2)),
            (Operation::Images, r#"{"data":[]}"#, Some(0)),
            (Operation::Images, r#"{"error":{"code":"content_policy_violation"}}"#, None),
            (Operation::Embeddings, r#"{"data":[{"embedding":[1]}]}"#, None),
        ] {
            let mut capture = ResponseCapture::new(operation, 0);
            capture.capture_json_body(body.as_bytes());
            assert_eq!(capture.image_count, expected, "{body}");
        }
        let event = |kind: &str| format!(r#"{{"type":"{kind}","b64_json":"YQ=="}}"#);
        for (operation, expected) in [(Operation::Images, Some(2)), (Operation::Audio, None)] {
            let mut capture = ResponseCapture::new(operation, 0);
            for kind in
                ["image_generation.partial_image", "image_generation.completed", "image_edit.completed"]
            {
                capture.capture_event(&SseEvent::from_message(event(kind).as_bytes()));
            }
            assert_eq!(capture.image_count, expected);
        }
    }
}
