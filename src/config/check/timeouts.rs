//! Reads and checks `timeouts`.

use std::time::Duration;

use crate::config::schema::TimeoutsConfig;
use crate::config::yaml::{YamlMapping, YamlNode};

/// Reads the block.
pub(super) fn read_timeouts(root: &YamlMapping<'_, '_>) -> Option<TimeoutsConfig> {
    let keys =
        ["connect", "first_byte", "first_byte_stream", "idle", "request_header", "request_body", "pool_idle"];
    let map = root.read_block("timeouts", &keys)?;
    let read_seconds =
        |key, default| map.read_or(key, Duration::from_secs(default), YamlNode::read_positive_duration);
    let connect = read_seconds("connect", 5);
    let first_byte = read_seconds("first_byte", 600);
    let first_byte_stream = read_seconds("first_byte_stream", 60);
    let idle = read_seconds("idle", 300);
    let request_header = read_seconds("request_header", 15);
    let request_body = read_seconds("request_body", 60);
    let pool_idle = read_seconds("pool_idle", 90);
    Some(TimeoutsConfig {
        connect: connect?,
        first_byte: first_byte?,
        first_byte_of_stream: first_byte_stream?,
        response_idle: idle?,
        request_head: request_header?,
        request_body: request_body?,
        pooled_connection_idle: pool_idle?,
    })
}
