//! For any headers, a retry hint is at most a day.
#![no_main]

use std::time::{Duration, SystemTime};

use aoai_lb::azure::response::hints;
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;

const HEADER_NAMES: [&str; 8] = [
    "retry-after-ms",
    "x-ms-retry-after-ms",
    "retry-after",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens",
    "azure-openai-deployment-utilization",
];

fuzz_target!(|values: [Option<&[u8]>; 8]| {
    let mut headers = HeaderMap::new();
    for (name, value) in HEADER_NAMES.into_iter().zip(values) {
        if let Some(Ok(value)) = value.map(HeaderValue::from_bytes) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    if let Some(wait) = hints::cooldown_hint(&headers, now) {
        assert!(wait <= Duration::from_secs(86_400));
    }
    assert!(hints::reported_capacity(&headers).provisioned_utilization.is_none_or(|utilization| utilization >= 0.0));
});
