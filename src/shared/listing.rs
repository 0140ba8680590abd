//! What instances tell of themselves, and the script with which they do.

use std::time::{Duration, SystemTime};

use redis::Value;
use serde::{Deserialize, Serialize};

use super::error::SharedError;

/// Registers an instance, removes those that have not registered for five seconds, and returns the others: their ids,
/// each followed by what it told. The server's clock counts, so that those of the instances need not agree. With an
/// empty id nobody is registered.
///
/// `KEYS[1]`: a hash of ids. `ARGV`: the id, what it tells. A value is the time in milliseconds, a space, and what was
/// told. An entry from the future is one of before the clock was set back.
pub(super) const REGISTER_SCRIPT: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[1] ~= '' then
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%d ', now) .. ARGV[2])
  redis.call('PEXPIRE', KEYS[1], 60000)
end
local entries = redis.call('HGETALL', KEYS[1])
local living = {}
for i = 1, #entries, 2 do
  local seen, told = string.match(entries[i + 1], '^(%d+) (.*)$')
  if seen and math.abs(now - seen) <= 5000 then
    table.insert(living, entries[i])
    table.insert(living, told)
  else
    redis.call('HDEL', KEYS[1], entries[i])
  end
end
return living
";

/// The end of the year 9999, in milliseconds since 1970: a later time is none.
const MAX_TIME_MS: u64 = 253_402_300_799_999;
/// The longest name and version that are taken from another instance, in characters.
const MAX_TEXT: usize = 100;

/// An instance.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// Random, for each process.
    pub id: String,
    /// The host name and process id; empty if it tells none.
    pub name: String,
    /// The version of aoai-lb; empty if it tells none.
    pub version: String,
    /// When it started, by its own clock.
    pub since: Option<SystemTime>,
    /// Requests per second, in the last ten seconds.
    pub requests_per_second: f64,
    /// Requests in flight; `None` if it does not tell, as earlier versions.
    pub in_flight: Option<u64>,
    /// Requests that wait in its queue; `None` likewise.
    pub queued: Option<u64>,
    /// The state of the whole, as it sees it; `None` likewise.
    pub state: Option<String>,
    /// It is this process.
    pub is_self: bool,
}

/// What an instance tells of itself. Fields that a later version adds are ignored, those that it drops are empty.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct ToldInstance {
    name: String,
    version: String,
    since_ms: Option<u64>,
    requests_per_second: f64,
    in_flight: Option<u64>,
    queued: Option<u64>,
    state: Option<String>,
}

impl Instance {
    /// What it tells the others, but for its id.
    pub(super) fn to_text(&self) -> String {
        let since = self.since.and_then(|since| since.duration_since(SystemTime::UNIX_EPOCH).ok());
        let told = ToldInstance {
            name: self.name.clone(),
            version: self.version.clone(),
            since_ms: since.and_then(|since| u64::try_from(since.as_millis()).ok()),
            requests_per_second: self.requests_per_second,
            in_flight: self.in_flight,
            queued: self.queued,
            state: self.state.clone(),
        };
        // Strings and numbers alone cannot fail.
        serde_json::to_string(&told).unwrap_or_default()
    }
}

/// Reads what the script returns: all living instances, this one first, the others by their names. One that tells
/// something that is not understood is an instance as well.
pub(super) fn parse_listing(reply: &Value, own_id: &str) -> Result<Vec<Instance>, SharedError> {
    let Value::Array(parts) = reply else {
        return Err(SharedError::UnexpectedReply("it is not a list".to_owned()));
    };
    let (pairs, rest) = parts.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(SharedError::UnexpectedReply("an id without an instance".to_owned()));
    }
    let mut instances = Vec::with_capacity(pairs.len());
    for [id, told] in pairs {
        let (Some(id), Some(told)) = (bytes_of(id), bytes_of(told)) else {
            return Err(SharedError::UnexpectedReply("an instance is not text".to_owned()));
        };
        let id = clean(&String::from_utf8_lossy(id));
        let told: ToldInstance = serde_json::from_slice(told).unwrap_or_default();
        let since = told.since_ms.filter(|ms| *ms <= MAX_TIME_MS);
        let since = since.and_then(|ms| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms)));
        instances.push(Instance {
            is_self: id == own_id,
            id,
            name: clean(&told.name),
            version: clean(&told.version),
            since,
            requests_per_second: told.requests_per_second.max(0.0),
            in_flight: told.in_flight,
            queued: told.queued,
            state: told.state.as_deref().map(clean).filter(|state| !state.is_empty()),
        });
    }
    instances.sort_by(|a, b| (!a.is_self, &a.name, &a.id).cmp(&(!b.is_self, &b.name, &b.id)));
    Ok(instances)
}

fn bytes_of(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text.as_bytes()),
        _ => None,
    }
}

/// Text of another instance, without control characters and not too long.
fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(id: &str, name: &str) -> Instance {
        Instance {
            id: id.to_owned(),
            name: name.to_owned(),
            version: "0.1.0".to_owned(),
            since: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_420_800_123)),
            requests_per_second: 1.5,
            in_flight: Some(3),
            queued: Some(0),
            state: Some("healthy".to_owned()),
            is_self: false,
        }
    }

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn instances_are_read_as_they_were_written_this_one_first() {
        let (own, a, b) = (instance("3", "z"), instance("1", "a"), instance("2", "b"));
        let pairs = [&b, &own, &a].map(|instance| [text(&instance.id), text(&instance.to_text())]);
        let reply = Value::Array(pairs.into_iter().flatten().collect());
        assert_eq!(parse_listing(&reply, "3").unwrap(), [Instance { is_self: true, ..own }, a, b]);
        assert_eq!(parse_listing(&Value::Array(Vec::new()), "3").unwrap(), []);
    }

    #[test]
    fn an_instance_of_another_version_is_one_whatever_it_tells() {
        for (told, name, rate) in [
            ("", "", 0.0),
            ("not JSON", "", 0.0),
            (r#"{"name":5}"#, "", 0.0),
            (r#"{"name":"a","new":{"x":1},"requests_per_second":-2}"#, "a", 0.0),
            (r#"{"name":"a\u001b[31m","requests_per_second":2}"#, "a[31m", 2.0),
            (r#"{"since_ms":18446744073709551615}"#, "", 0.0),
        ] {
            let reply = Value::Array(vec![text("1"), text(told)]);
            let found = parse_listing(&reply, "2").unwrap();
            assert_eq!(found.len(), 1, "{told}");
            assert_eq!((found[0].name.as_str(), found[0].requests_per_second), (name, rate), "{told}");
            assert_eq!(found[0].since, None, "{told}");
            assert_eq!((found[0].in_flight, &found[0].state), (None, &None), "{told}");
        }
        let long = format!("{{\"name\":\"{}\"}}", "x".repeat(5_000));
        let reply = Value::Array(vec![text("1"), text(&long)]);
        assert_eq!(parse_listing(&reply, "2").unwrap()[0].name.len(), MAX_TEXT);
    }

    #[test]
    fn a_reply_of_another_form_is_an_error() {
        for reply in [
            Value::Nil,
            Value::Okay,
            text("1"),
            Value::Array(vec![text("1")]),
            Value::Array(vec![text("1"), Value::Int(5)]),
            Value::Array(vec![Value::Nil, text("{}")]),
        ] {
            let found = parse_listing(&reply, "1");
            assert!(matches!(found, Err(SharedError::UnexpectedReply(_))), "{reply:?}: {found:?}");
        }
    }
}
