//! Whether a request is the opening handshake of a WebSocket (RFC 6455, section 4.2.1).
//!
//! An offer that the rules of `Upgrade` tell a server to ignore is ignored, as by Envoy: without `Connection:
//! Upgrade`, to another protocol, or in HTTP/1.0 (RFC 9110, section 7.8). The request is then an ordinary one, and
//! nothing of the offer is forwarded. What is meant as a handshake and is malformed is refused.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, CONTENT_LENGTH, HeaderName, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING,
    UPGRADE,
};
use http::{HeaderMap, Method, Version};
use pingora::http::RequestHeader;

use crate::azure::request::subprotocol::offered_subprotocols;
use crate::refusal::{Refusal, RefusalReason};

/// Bytes of a decoded `Sec-WebSocket-Key`.
const KEY_BYTES: usize = 16;

/// What a request asks for with `Upgrade`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum UpgradeOffer {
    /// Nothing, or something that is ignored.
    None,
    WebSocket,
    /// A WebSocket, by a malformed handshake.
    Malformed(Refusal),
}

impl UpgradeOffer {
    pub(super) fn of_request(request: &RequestHeader) -> Self {
        let headers = &request.headers;
        let is_offered = request.version == Version::HTTP_11
            && has_token(headers, &UPGRADE, "websocket")
            && has_token(headers, &CONNECTION, "upgrade");
        if !is_offered {
            return Self::None;
        }
        let has_handshake_fields =
            headers.contains_key(SEC_WEBSOCKET_KEY) || headers.contains_key(SEC_WEBSOCKET_VERSION);
        match request.method {
            Method::GET => {}
            // Ordinary, with an offer that a proxy on the way has left in it.
            _ if !has_handshake_fields => return Self::None,
            _ => return Self::malformed("a WebSocket handshake must be a GET"),
        }
        let has_body = headers.contains_key(TRANSFER_ENCODING)
            || headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0");
        if has_body {
            return Self::malformed("a WebSocket handshake must not have a body");
        }
        match only_value(headers, &SEC_WEBSOCKET_VERSION) {
            Some(b"13") => {}
            None => return Self::malformed("a WebSocket handshake needs one `Sec-WebSocket-Version`"),
            Some(_) => {
                let message = "this WebSocket version is not supported; use 13";
                return Self::Malformed(Refusal::new(RefusalReason::UnsupportedWebSocketVersion, message));
            }
        }
        let is_valid_key = only_value(headers, &SEC_WEBSOCKET_KEY)
            .and_then(|key| STANDARD.decode(key).ok())
            .is_some_and(|key| key.len() == KEY_BYTES);
        if !is_valid_key {
            return Self::malformed(
                "a WebSocket handshake needs one `Sec-WebSocket-Key` of 16 bytes in base64",
            );
        }
        Self::WebSocket
    }

    fn malformed(message: &'static str) -> Self {
        Self::Malformed(Refusal::bad_request(message))
    }
}

/// The subprotocol that is selected for a client: the first that it offers and that is no key.
pub(in crate::proxy) fn offered_subprotocol(headers: &HeaderMap) -> Option<&str> {
    offered_subprotocols(headers).next()
}

/// Whether a field that is a list has this item.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// The value of a field that occurs once.
fn only_value<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h [u8]> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    values.next().is_none().then(|| first.as_bytes().trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: (&str, &str) = ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
    const VERSION: (&str, &str) = ("Sec-WebSocket-Version", "13");
    const OFFER: [(&str, &str); 2] = [("Connection", "Upgrade"), ("Upgrade", "websocket")];

    fn offer(method: Method, fields: &[(&'static str, &'static str)]) -> UpgradeOffer {
        let mut request = RequestHeader::build(method, b"/", None).unwrap();
        for (name, value) in fields {
            request.append_header(*name, *value).unwrap();
        }
        UpgradeOffer::of_request(&request)
    }

    fn refusal_status(offer: &UpgradeOffer) -> Option<u16> {
        match offer {
            UpgradeOffer::Malformed(refusal) => Some(refusal.reason.status()),
            _ => None,
        }
    }

    #[test]
    fn handshakes_are_recognized() {
        for fields in [
            &[OFFER[0], OFFER[1], KEY, VERSION][..],
            &[("connection", "keep-alive, upgrade"), ("UPGRADE", "WebSocket"), KEY, VERSION],
            &[("Connection", "keep-alive"), OFFER[0], ("Upgrade", "h2c, websocket"), VERSION, KEY],
            &[OFFER[0], OFFER[1], KEY, VERSION, ("Content-Length", "0")],
        ] {
            assert_eq!(offer(Method::GET, fields), UpgradeOffer::WebSocket, "{fields:?}");
        }
    }

    #[test]
    fn offers_without_meaning_are_ignored() {
        for (method, fields) in [
            (Method::GET, &[KEY, VERSION][..]),
            (Method::GET, &[OFFER[1], KEY, VERSION]),
            (Method::GET, &[("Connection", "keep-alive"), OFFER[1], KEY, VERSION]),
            (Method::GET, &[("Connection", "upgraded"), OFFER[1], KEY, VERSION]),
            (Method::GET, &[OFFER[0], KEY, VERSION]),
            (Method::GET, &[OFFER[0], ("Upgrade", "h2c"), KEY, VERSION]),
            (Method::GET, &[OFFER[0], ("Upgrade", "websockets"), KEY, VERSION]),
            (Method::POST, &OFFER),
        ] {
            assert_eq!(offer(method, fields), UpgradeOffer::None, "{fields:?}");
        }
        let mut old = RequestHeader::build(Method::GET, b"/", None).unwrap();
        for (name, value) in [OFFER[0], OFFER[1], KEY, VERSION] {
            old.append_header(name, value).unwrap();
        }
        old.set_version(Version::HTTP_10);
        assert_eq!(UpgradeOffer::of_request(&old), UpgradeOffer::None);
    }

    #[test]
    fn malformed_handshakes_are_refused() {
        for (method, fields, status) in [
            (Method::POST, &[KEY, VERSION][..], 400),
            (Method::POST, &[KEY], 400),
            (Method::PUT, &[VERSION], 400),
            (Method::GET, &[VERSION], 400),
            (Method::GET, &[KEY], 400),
            (Method::GET, &[KEY, KEY, VERSION], 400),
            (Method::GET, &[KEY, VERSION, VERSION], 400),
            (Method::GET, &[("Sec-WebSocket-Key", ""), VERSION], 400),
            (Method::GET, &[("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ"), VERSION], 400),
            (Method::GET, &[("Sec-WebSocket-Key", "c2hvcnQ="), VERSION], 400),
            (Method::GET, &[("Sec-WebSocket-Key", "!"), VERSION], 400),
            (Method::GET, &[KEY, VERSION, ("Content-Length", "2")], 400),
            (Method::GET, &[KEY, VERSION, ("Transfer-Encoding", "chunked")], 400),
            (Method::GET, &[KEY, ("Sec-WebSocket-Version", "8")], 426),
            (Method::GET, &[KEY, ("Sec-WebSocket-Version", "13, 8")], 426),
        ] {
            let fields = [&OFFER, fields].concat();
            assert_eq!(refusal_status(&offer(method, &fields)), Some(status), "{fields:?}");
        }
    }
}
