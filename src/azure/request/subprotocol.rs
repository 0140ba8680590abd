//! The subprotocols that a WebSocket request offers. Browsers cannot set header fields on such a request, so OpenAI's
//! clients offer their key as one of them: `openai-insecure-api-key.KEY`.

use http::HeaderMap;
use http::header::SEC_WEBSOCKET_PROTOCOL;

/// What comes before the key.
const KEY_PREFIX: &str = "openai-insecure-api-key.";

/// The subprotocols that are no keys, in the order of the offer.
pub fn offered_subprotocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    offered_items(headers).filter(|item| !names_api_key(item))
}

/// The keys among the offered subprotocols.
pub fn subprotocol_keys(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    offered_items(headers).filter_map(|item| {
        let (prefix, key) = item.split_at_checked(KEY_PREFIX.len())?;
        (prefix.eq_ignore_ascii_case(KEY_PREFIX) && !key.is_empty()).then_some(key.as_bytes())
    })
}

fn offered_items(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(SEC_WEBSOCKET_PROTOCOL).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|item| !item.is_empty())
}

/// Whether this subprotocol contains a key, such as `openai-insecure-api-key.KEY`, in any spelling.
fn names_api_key(item: &str) -> bool {
    let letters: String = item.chars().filter(char::is_ascii_alphanumeric).collect();
    letters.to_ascii_lowercase().contains("apikey")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_from_subprotocols() {
        for (values, subprotocols, keys) in [
            (&[][..], &[][..], &[][..]),
            (&["realtime"], &["realtime"], &[]),
            (
                &["realtime, openai-insecure-api-key.K-1, openai-beta.realtime-v1"],
                &["realtime", "openai-beta.realtime-v1"],
                &["K-1"],
            ),
            (
                &["openai-insecure-api-key.a.b,realtime", " ,, OpenAI-Insecure-API-Key.c"],
                &["realtime"],
                &["a.b", "c"],
            ),
            // Not ours to understand, and nobody else's to see.
            (&["openai-insecure-api-key., azure-api-key.K, apikey"], &[], &[]),
            (&["x, \u{e9}"], &[], &[]),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers
                    .append(SEC_WEBSOCKET_PROTOCOL, http::HeaderValue::from_bytes(value.as_bytes()).unwrap());
            }
            assert_eq!(offered_subprotocols(&headers).collect::<Vec<_>>(), subprotocols, "{values:?}");
            let found: Vec<_> = subprotocol_keys(&headers).map(|key| str::from_utf8(key).unwrap()).collect();
            assert_eq!(found, keys, "{values:?}");
        }
    }
}
