//! What is kept on the server: what is unavailable, until that is over, and who probes.
//!
//! All keys of a backend have one hash tag, with its name and URL: `{PREFIX:1:backend:NAME URL}:rest:deployment:gpt-4o`
//! has the message that announced it, and expires when it is over. `…:probe:deployment:gpt-4o` has the id of the instance
//! that probes. Each script uses the keys of one backend.

use std::time::Duration;

use super::message::to_millis;
use super::part::SharedPart;
use super::targets::Target;
use crate::azure::Operation;
use crate::shared::{Script, SharedError, SharedLink, Value, cmd};

/// How long the server may take. Only the task of the claim or the write waits.
const TIME_LIMIT: Duration = Duration::from_secs(1);

/// `KEYS`: for each part what is unavailable and who probes. `ARGV`: the id of this instance, then for each part the
/// message (empty: it is over; `-`: it stays as it is) and its time in milliseconds. What this instance has claimed is free
/// again.
const WRITE_SCRIPT: &str = r"
for i = 1, #KEYS / 2 do
  local message, left = ARGV[2 * i], ARGV[2 * i + 1]
  if message == '' then
    redis.call('DEL', KEYS[2 * i - 1])
  elseif message ~= '-' then
    redis.call('SET', KEYS[2 * i - 1], message, 'PX', left)
  end
  if redis.call('GET', KEYS[2 * i]) == ARGV[1] then
    redis.call('DEL', KEYS[2 * i])
  end
end
return redis.status_reply('OK')
";

/// `KEYS`: what may be unavailable. Returns the messages of what is, each followed by its time left in milliseconds.
const READ_SCRIPT: &str = r"
local found = {}
for _, key in ipairs(KEYS) do
  local message = redis.call('GET', key)
  if message then
    table.insert(found, message)
    table.insert(found, redis.call('PTTL', key))
  end
end
return found
";

/// Keeps a claim. `KEYS`: who probes. `ARGV`: the id of this instance, the time in milliseconds.
const RENEW_SCRIPT: &str = r"
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
";

/// What is to be kept of a part. In each case this instance's claim is released.
#[derive(Debug)]
pub(super) enum Change {
    /// It is unavailable for so long, as this message says.
    Unavailable { message: Vec<u8>, left: Duration },
    /// It is available again.
    Over,
    /// Only the claim is released.
    ReleaseClaim,
}

/// Keeps what has changed of a backend.
pub(super) async fn write(
    link: &SharedLink,
    target: &Target,
    own_id: &str,
    changes: &[(SharedPart, Change)],
) -> Result<(), SharedError> {
    let script = Script::new(WRITE_SCRIPT);
    let mut invocation = script.prepare_invoke();
    invocation.arg(own_id);
    for (part, change) in changes {
        invocation.key(key(link, target, "rest", part)).key(key(link, target, "probe", part));
        match change {
            // The server refuses a time of 0.
            Change::Unavailable { message, left } => {
                invocation.arg(message.as_slice()).arg(to_millis(*left).max(1))
            }
            Change::Over => invocation.arg("").arg(0),
            Change::ReleaseClaim => invocation.arg("-").arg(0),
        };
    }
    link.run_script(&invocation, TIME_LIMIT).await.map(|_| ())
}

/// The messages about what is unavailable of a backend, each with the time that is left.
pub(super) async fn read(
    link: &SharedLink,
    target: &Target,
) -> Result<Vec<(Vec<u8>, Duration)>, SharedError> {
    let script = Script::new(READ_SCRIPT);
    let mut invocation = script.prepare_invoke();
    for part in announced_parts(target) {
        invocation.key(key(link, target, "rest", &part));
    }
    let unexpected = || SharedError::UnexpectedReply("it is not a list of messages and times".to_owned());
    let Value::Array(parts) = link.run_script(&invocation, TIME_LIMIT).await? else {
        return Err(unexpected());
    };
    let pairs = parts.as_chunks::<2>().0.iter().map(|pair| match pair {
        [Value::BulkString(message), Value::Int(left)] => {
            Ok((message.clone(), Duration::from_millis(u64::try_from(*left).unwrap_or_default())))
        }
        _ => Err(unexpected()),
    });
    pairs.collect()
}

/// Claims a probe. Returns whether this instance has got it.
pub(super) async fn claim(
    link: &SharedLink,
    target: &Target,
    part: &SharedPart,
    own_id: &str,
    hold: Duration,
    time_limit: Duration,
) -> Result<bool, SharedError> {
    let mut command = cmd("SET");
    command.arg(key(link, target, "probe", part)).arg(own_id).arg("NX").arg("PX").arg(to_millis(hold).max(1));
    Ok(link.run(&command, time_limit).await? == Value::Okay)
}

/// Keeps a claim for so long from now.
pub(super) async fn renew(
    link: &SharedLink,
    target: &Target,
    part: &SharedPart,
    own_id: &str,
    hold: Duration,
) -> Result<(), SharedError> {
    let script = Script::new(RENEW_SCRIPT);
    let mut invocation = script.prepare_invoke();
    invocation.key(key(link, target, "probe", part)).arg(own_id).arg(to_millis(hold).max(1));
    link.run_script(&invocation, TIME_LIMIT).await.map(|_| ())
}

/// All parts of a backend that can be announced.
fn announced_parts(target: &Target) -> Vec<SharedPart> {
    let deployments = target.health.deployments().into_iter();
    [SharedPart::Credential]
        .into_iter()
        .chain(Operation::ALL.map(SharedPart::Operation))
        .chain(
            deployments
                .flat_map(|(name, _)| [SharedPart::Deployment(name.clone()), SharedPart::FlexRequests(name)]),
        )
        .collect()
}

fn key(link: &SharedLink, target: &Target, kind: &str, part: &SharedPart) -> String {
    let owner = format!("backend:{} {}", target.name, target.url);
    link.keys().key_of(&owner, &format!("{kind}:{}:{}", part.kind(), part.name()))
}
