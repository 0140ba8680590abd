//! Reads and checks `websocket`.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::config::schema::{RequestsConfig, WebSocketConfig};
use crate::config::yaml::{YamlMapping, YamlNode};

const FIRST_FRAME_RANGE: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_mins(5);
const MAX_FRAME_RANGE: RangeInclusive<u64> = 64 << 10..=256 << 20;
const DEFAULT_MAX_FRAME: u64 = 16 << 20;
const ROTATE_RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(24);
/// Azure closes a Responses WebSocket after 60 minutes. A minute is left for the turn that is under way.
const LONGEST_USEFUL_ROTATE: Duration = Duration::from_mins(59);

/// Reads the block. A frame has to fit into the memory of `requests`.
pub(super) fn read_websocket(
    root: &YamlMapping<'_, '_>,
    requests: Option<&RequestsConfig>,
) -> Option<WebSocketConfig> {
    let map = root.read_block("websocket", &["first_frame", "max_frame", "rotate"])?;
    let first_frame = map.read_or("first_frame", Duration::from_secs(10), |node| {
        let timeout = node.read_duration()?;
        if !FIRST_FRAME_RANGE.contains(&timeout) {
            return node.report_error("must be from 100ms to 5m");
        }
        Some(timeout)
    });
    let body_memory = requests.map(|requests| requests.max_total_buffered_bytes);
    // The default follows a smaller body_memory, so that it can be lowered alone.
    let default_max_frame = body_memory.map_or(DEFAULT_MAX_FRAME, |memory| memory.min(DEFAULT_MAX_FRAME));
    let max_frame = map.read_or("max_frame", default_max_frame, |node| read_max_frame(node, body_memory));
    let rotate = map.read_or("rotate", Duration::from_mins(55), |node| {
        let age = node.read_duration()?;
        if !ROTATE_RANGE.contains(&age) {
            return node.report_error("must be from 1s to 24h");
        }
        if age > LONGEST_USEFUL_ROTATE {
            node.report_warning(
                "is above 59m: Azure closes a WebSocket after 60 minutes, even during a turn, which is then lost",
            );
        }
        Some(age)
    });
    Some(WebSocketConfig {
        first_frame_timeout: first_frame?,
        max_frame_bytes: usize::try_from(max_frame?).unwrap_or(usize::MAX),
        rotate_after: rotate?,
    })
}

fn read_max_frame(node: &YamlNode<'_, '_>, body_memory: Option<u64>) -> Option<u64> {
    let bytes = node.read_byte_size()?;
    if !MAX_FRAME_RANGE.contains(&bytes) {
        return node.report_error("must be from 64KiB to 256MiB");
    }
    if body_memory.is_some_and(|memory| bytes > memory) {
        return node.report_error("must be at most requests.body_memory");
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::config::WebSocketConfig;
    use crate::config::testing::{assert_errors, assert_warnings, parse_valid};

    #[test]
    fn the_block_has_defaults() {
        let defaults = WebSocketConfig {
            first_frame_timeout: Duration::from_secs(10),
            max_frame_bytes: 16 << 20,
            rotate_after: Duration::from_secs(55 * 60),
        };
        assert_eq!(parse_valid("").config.websocket, defaults);
        let small = parse_valid("requests: { max_body: 1KiB, body_memory: 1MiB }").config.websocket;
        assert_eq!(small, WebSocketConfig { max_frame_bytes: 1 << 20, ..defaults });
    }

    #[test]
    fn written_values_replace_the_defaults_up_to_their_bounds() {
        for (yaml, first_frame_timeout, max_frame_bytes, rotate_after) in [
            ("first_frame: 100ms, max_frame: 64KiB, rotate: 1s", Duration::from_millis(100), 64 << 10, 1),
            ("first_frame: 5m, max_frame: 256MiB, rotate: 24h", Duration::from_secs(300), 256 << 20, 86_400),
        ] {
            let rotate_after = Duration::from_secs(rotate_after);
            let expected = WebSocketConfig { first_frame_timeout, max_frame_bytes, rotate_after };
            assert_eq!(parse_valid(&format!("websocket: {{ {yaml} }}")).config.websocket, expected, "{yaml}");
        }
    }

    #[test]
    fn values_out_of_bounds_are_reported() {
        const FIRST_FRAME: &str = "websocket.first_frame: must be from 100ms to 5m";
        const MAX_FRAME: &str = "websocket.max_frame: must be from 64KiB to 256MiB";
        const ROTATE: &str = "websocket.rotate: must be from 1s to 24h";
        assert_errors(&[
            (
                "websocket: { first_frame: 99ms, max_frame: 65535B, rotate: 999ms }",
                &[FIRST_FRAME, MAX_FRAME, ROTATE],
            ),
            ("websocket: { first_frame: 301s, max_frame: 257MiB }", &[FIRST_FRAME, MAX_FRAME]),
            (
                "websocket: { max_frame: 2MiB }\nrequests: { max_body: 1MiB, body_memory: 1MiB }",
                &["websocket.max_frame: must be at most requests.body_memory"],
            ),
            (
                "websocket: { max_frames: 1MiB }",
                &["websocket.max_frames: unknown key; did you mean `max_frame`?"],
            ),
        ]);
    }

    #[test]
    fn an_age_beyond_that_of_azure_is_warned_about() {
        assert_warnings(&[
            ("websocket: { rotate: 59m }", &[]),
            (
                "websocket: { rotate: 60m }",
                &[
                    "websocket.rotate: is above 59m: Azure closes a WebSocket after 60 minutes, even during a turn, which is then lost",
                ],
            ),
        ]);
    }
}
