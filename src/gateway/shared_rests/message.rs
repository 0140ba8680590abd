//! What instances tell each other about the unavailability of backends, as JSON.
//!
//! An instance of another version may send anything. What is not understood is an error that changes nothing.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::part::SharedPart;
use crate::routing::health::availability::UnavailableReason;

/// The topic of these messages.
pub(super) const TOPIC: &str = "unavailability";
/// The version of this format.
const VERSION: u32 = 1;
/// The longest message that is read.
const MAX_BYTES: usize = 4096;
/// Longer times are this long: nothing is unavailable for a day.
const MAX_TIME: Duration = Duration::from_secs(86_400);

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// The id of the instance that sent it.
    pub(super) from: String,
    /// The backend's name and URL.
    pub(super) backend: String,
    pub(super) url: String,
    pub(super) part: SharedPart,
    pub(super) reason: UnavailableReason,
    pub(super) event: Event,
}

/// What has happened. Times are durations, since the clocks of machines differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// It is unavailable.
    Unavailable {
        /// For how long from now.
        left: Duration,
        /// The status of the response that showed it, if that matters.
        status: Option<u16>,
        /// Shows which secret was refused (`credentials/secret_proof.rs`).
        proof: Option<String>,
    },
    /// It is available again.
    Over {
        /// How long ago that was not known yet.
        age: Duration,
        /// Shows which secret was accepted.
        proof: Option<String>,
    },
    /// The sender probes. The others leave it to it.
    Probing {
        /// For how long from now.
        left: Duration,
    },
}

/// A message as it is written.
#[derive(Serialize, Deserialize)]
struct WireMessage {
    v: u32,
    from: String,
    event: String,
    backend: String,
    url: String,
    part: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    name: String,
    reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    left_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    age_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    proof: Option<String>,
}

/// The version alone: another version may have other fields.
#[derive(Deserialize)]
struct WireVersion {
    v: u32,
}

impl Message {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut wire = WireMessage {
            v: VERSION,
            from: self.from.clone(),
            event: String::new(),
            backend: self.backend.clone(),
            url: self.url.clone(),
            part: self.part.kind().to_owned(),
            name: self.part.name().to_owned(),
            reason: self.reason.as_str().to_owned(),
            left_ms: None,
            age_ms: None,
            status: None,
            proof: None,
        };
        match &self.event {
            Event::Unavailable { left, status, proof } => {
                wire.event = "unavailable".to_owned();
                (wire.left_ms, wire.status, wire.proof) = (Some(to_millis(*left)), *status, proof.clone());
            }
            Event::Over { age, proof } => {
                wire.event = "over".to_owned();
                (wire.age_ms, wire.proof) = (Some(to_millis(*age)), proof.clone());
            }
            Event::Probing { left } => {
                wire.event = "probing".to_owned();
                wire.left_ms = Some(to_millis(*left));
            }
        }
        // Text and numbers alone cannot fail.
        serde_json::to_vec(&wire).unwrap_or_default()
    }

    /// # Errors
    /// Why it is not understood, without any of its text.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.len() > MAX_BYTES {
            return Err("it is too long");
        }
        let version = serde_json::from_slice::<WireVersion>(bytes).map_err(|_| "it is no JSON object")?;
        if version.v != VERSION {
            return Err("it is of another version");
        }
        let wire: WireMessage =
            serde_json::from_slice(bytes).map_err(|_| "it lacks a field, or has one of another type")?;
        let part = SharedPart::parse(&wire.part, &wire.name).ok_or("it names an unknown part")?;
        let reason = UnavailableReason::parse(&wire.reason).filter(|reason| part.has_reason(*reason));
        let reason = reason.ok_or("it gives an unknown reason")?;
        let time = |ms: Option<u64>| {
            ms.map(|ms| Duration::from_millis(ms).min(MAX_TIME)).ok_or("it does not give a time")
        };
        let event = match wire.event.as_str() {
            "unavailable" => {
                Event::Unavailable { left: time(wire.left_ms)?, status: wire.status, proof: wire.proof }
            }
            "over" => Event::Over { age: time(wire.age_ms)?, proof: wire.proof },
            "probing" => Event::Probing { left: time(wire.left_ms)? },
            _ => return Err("it tells of an unknown event"),
        };
        Ok(Self { from: wire.from, backend: wire.backend, url: wire.url, part, reason, event })
    }
}

pub(super) fn to_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::Operation;

    const S: Duration = Duration::from_secs(1);

    fn message(part: SharedPart, reason: UnavailableReason, event: Event) -> Message {
        let text = str::to_owned;
        Message { from: text("1f"), backend: text("a"), url: text("https://a.b"), part, reason, event }
    }

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let proof = Some("00:11".to_owned());
        let table = [
            (
                SharedPart::Deployment("gpt-4o".to_owned()),
                UnavailableReason::CoolingDown,
                Event::Unavailable { left: 5 * S, status: None, proof: None },
            ),
            (
                SharedPart::Credential,
                UnavailableReason::NoUsableCredential,
                Event::Unavailable { left: S, status: Some(401), proof: proof.clone() },
            ),
            (
                SharedPart::Operation(Operation::Images),
                UnavailableReason::PermissionDenied,
                Event::Over { age: S, proof },
            ),
            (SharedPart::Breaker, UnavailableReason::BreakerOpen, Event::Probing { left: 2 * S }),
            (
                SharedPart::FlexRequests("gpt-4o".to_owned()),
                UnavailableReason::CoolingDown,
                Event::Unavailable { left: S, status: None, proof: None },
            ),
        ];
        for (part, reason, event) in table {
            let message = message(part, reason, event);
            assert_eq!(Message::parse(&message.to_bytes()), Ok(message));
        }
    }

    #[test]
    fn the_format_stays_as_other_instances_know_it() {
        let part = SharedPart::Deployment("gpt-4o".to_owned());
        let event = Event::Unavailable { left: 5 * S, status: None, proof: None };
        let text = message(part, UnavailableReason::CoolingDown, event).to_bytes();
        let expected = r#"{"v":1,"from":"1f","event":"unavailable","backend":"a","url":"https://a.b","part":"deployment","name":"gpt-4o","reason":"cooling","left_ms":5000}"#;
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        let good = r#"{"v":1,"from":"1f","event":"unavailable","backend":"a","url":"https://a.b","part":"deployment","name":"x","reason":"cooling","left_ms":5000}"#;
        assert!(Message::parse(good.as_bytes()).is_ok());
        let replaced = |from: &str, to: &str| {
            assert!(good.contains(from));
            good.replace(from, to)
        };
        let long = replace_name(good, &"x".repeat(5000));
        for (text, expected) in [
            (String::new(), "it is no JSON object"),
            ("[1]".to_owned(), "it lacks a field, or has one of another type"),
            (replaced("\"v\":1", "\"v\":2"), "it is of another version"),
            (r#"{"v":2,"new":{}}"#.to_owned(), "it is of another version"),
            (replaced("\"from\":\"1f\",", ""), "it lacks a field, or has one of another type"),
            (replaced("5000", "-1"), "it lacks a field, or has one of another type"),
            (replaced(",\"left_ms\":5000", ""), "it does not give a time"),
            (replaced("\"deployment\"", "\"moon\""), "it names an unknown part"),
            (replaced("\"deployment\"", "\"operation\""), "it names an unknown part"),
            (replaced("cooling", "drained"), "it gives an unknown reason"),
            (replaced("cooling", "moonlight"), "it gives an unknown reason"),
            (replaced("\"unavailable\"", "\"gone\""), "it tells of an unknown event"),
            (long, "it is too long"),
        ] {
            assert_eq!(Message::parse(text.as_bytes()), Err(expected), "{text}");
        }
        let forever = Message::parse(replaced("5000", "18446744073709551615").as_bytes()).unwrap();
        assert_eq!(forever.event, Event::Unavailable { left: MAX_TIME, status: None, proof: None });
    }

    fn replace_name(text: &str, name: &str) -> String {
        text.replace("\"name\":\"x\"", &format!("\"name\":\"{name}\""))
    }
}
