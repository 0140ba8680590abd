//! Generated images: how many there are, and in place of their data its size and hash.

use super::ResponseCapture;
use crate::azure::Operation;
use crate::azure::binary_data::replace_binary_data;
use crate::azure::json;

impl ResponseCapture {
    /// Takes the images of a complete body. Of an outline, only their number is known.
    pub(super) fn capture_images(&mut self, body: &str) {
        let [Some(data)] = json::find_fields(body, &["data"]) else { return };
        let mut count = 0;
        json::for_each_array_item(data, |_| count += 1);
        self.image_count = Some(count);
        if self.text_budget.limit_bytes() > 0 && !self.text_budget.is_truncated() {
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
    use crate::azure::response::collected_body::CollectedBody;
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

    #[test]
    fn images_are_counted_in_a_body_that_is_too_long_to_be_kept() {
        let image =
            format!(r#"{{"b64_json":"{}","revised_prompt":"a, {{b}}"}}"#, "iVBORw0KGgo".repeat(1_000));
        let body = format!(r#"{{"created":1,"data":[{}],"size":"1024x1024"}}"#, [&*image; 3].join(","));
        for (body, expected) in
            [(body.as_bytes(), Some(3)), (&body.as_bytes()[..body.len() - 100], None), (b"{}", None)]
        {
            let (mut capture, mut collected) =
                (ResponseCapture::new(Operation::Images, 1_000), CollectedBody::new(0));
            body.chunks(1_000).for_each(|chunk| collected.append(chunk));
            collected.capture_into(true, &mut capture);
            assert_eq!((capture.image_count, capture.completion_text()), (expected, None));
        }
    }
}
