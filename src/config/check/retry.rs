//! Reads and checks `retry`, `cooldown` and `breaker`.

use std::time::Duration;

use crate::config::schema::{BreakerConfig, CooldownConfig, RetryConfig, StreamHoldLimits};
use crate::config::values::{Percentage, StatusSet, parse_status_range};
use crate::config::yaml::{YamlMapping, YamlNode};

/// Reads `retry`.
pub(super) fn read_retry(root: &YamlMapping<'_, '_>) -> Option<RetryConfig> {
    let map =
        root.read_block("retry", &["attempts", "statuses", "deadline", "outage", "wait", "budget", "hold"])?;
    let max_retries = map.read_or("attempts", 12, |node| Some(node.read_integer(0..=100)? as u32));
    let retryable_statuses = map.read_or("statuses", StatusSet::default_retryable(), |node| {
        let ranges = node.read_each(read_status_range)?;
        Some(ranges.into_iter().fold(StatusSet::EMPTY, |set, (first, last)| set.with_range(first, last)))
    });
    let time_limit = map.read_or("deadline", Duration::from_secs(120), YamlNode::read_duration);
    let max_outage = map.read_or("outage", Duration::from_secs(5), YamlNode::read_duration);
    let max_cooldown_wait = map.read_or("wait", Duration::from_millis(250), YamlNode::read_duration);
    let budget = map.read_or("budget", Percentage::TWENTY_PERCENT, YamlNode::read_percentage);
    let stream_hold = read_stream_hold(&map);
    Some(RetryConfig {
        max_retries: max_retries?,
        retryable_statuses: retryable_statuses?,
        retry_start_time_limit: time_limit?,
        max_outage: max_outage?,
        max_cooldown_wait: max_cooldown_wait?,
        budget_percentage: budget?,
        stream_hold: stream_hold?,
    })
}

fn read_stream_hold(retry: &YamlMapping<'_, '_>) -> Option<StreamHoldLimits> {
    let map = retry.read_block("hold", &["time", "size"])?;
    let time = map.read_or("time", Duration::from_millis(500), YamlNode::read_duration);
    let size = map.read_or("size", 1024 * 1024, YamlNode::read_byte_size);
    Some(StreamHoldLimits { max_time: time?, max_bytes: size? })
}

/// Reads a number or a range. Returns the first and the last status.
fn read_status_range(node: &YamlNode<'_, '_>) -> Option<(u16, u16)> {
    const EXPECTED: &str = "must be a status such as 429 or a range such as 500-599, within 400 to 599";
    node.read_parsed(|text| parse_status_range(text).ok_or(EXPECTED))
}

/// Reads `cooldown`.
pub(super) fn read_cooldown(root: &YamlMapping<'_, '_>) -> Option<CooldownConfig> {
    let map = root.read_block("cooldown", &["default", "maximum"])?;
    let default = map.read_or("default", Duration::from_secs(10), YamlNode::read_positive_duration);
    let maximum = map.read_or("maximum", Duration::from_secs(60), YamlNode::read_positive_duration);
    let (default, maximum) = (default?, maximum?);
    if maximum < default {
        return map.report_error_at("maximum", "must be at least cooldown.default");
    }
    Some(CooldownConfig { default_duration: default, max_duration: maximum })
}

/// Reads `breaker`.
pub(super) fn read_breaker(root: &YamlMapping<'_, '_>) -> Option<BreakerConfig> {
    let map = root.read_block("breaker", &["failures", "ratio", "window", "open", "maximum"])?;
    let failures = map.read_or("failures", 5, |node| Some(node.read_integer(1..=10_000)? as u32));
    let ratio = map.read_or("ratio", Percentage::FIFTY_PERCENT, YamlNode::read_percentage);
    let window = map.read_or("window", Duration::from_secs(10), YamlNode::read_positive_duration);
    let open = map.read_or("open", Duration::from_secs(10), YamlNode::read_positive_duration);
    let maximum = map.read_or("maximum", Duration::from_secs(300), YamlNode::read_positive_duration);
    let (open, maximum) = (open?, maximum?);
    if maximum < open {
        return map.report_error_at("maximum", "must be at least breaker.open");
    }
    Some(BreakerConfig {
        min_failures: failures?,
        min_failure_percentage: ratio?,
        window: window?,
        open_duration: open,
        max_open_duration: maximum,
    })
}
