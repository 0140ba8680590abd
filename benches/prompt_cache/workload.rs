//! The requests of clients, the same in each run. They come at their times, whether or not others are answered: a turn
//! has what was said before, also if the turn before it was refused.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

/// The turns of a conversation, after which another one takes its place.
const TURNS: u64 = 10;
/// Between two turns of a conversation.
const TURN_INTERVAL: Duration = Duration::from_secs(25);
const TURN_INTERVAL_RANGE: Duration = Duration::from_secs(30);
/// The output of each request, which is its limit as well.
const OUTPUT_TOKENS: u64 = 300;
/// A token is taken as three quarters of a word, as in the simulated Azure.
const WORDS_OF_4_TOKENS: u64 = 3;

/// A request that is to arrive.
pub struct CacheRequest {
    /// After the start.
    pub at: Duration,
    messages: Vec<Message>,
    pub cache_key: String,
    pub prompt_tokens: u64,
    pub output_tokens: u64,
}

/// A role and a text, which is that of other turns as well.
type Message = (&'static str, Arc<str>);

impl CacheRequest {
    pub fn body(&self) -> Bytes {
        // No text has a character that is to be escaped.
        let message = |(role, text): &Message| format!(r#"{{"role":"{role}","content":"{text}"}}"#);
        let messages = self.messages.iter().map(message).collect::<Vec<_>>().join(",");
        let key = match self.cache_key.as_str() {
            "" => String::new(),
            key => format!(r#","prompt_cache_key":"{key}""#),
        };
        let limit = self.output_tokens;
        Bytes::from(format!(r#"{{"messages":[{messages}],"max_completion_tokens":{limit}{key}}}"#))
    }

    /// All that the model reads.
    pub fn prompt(&self) -> String {
        self.messages.iter().map(|(_, text)| &**text).collect::<Vec<_>>().join("\n")
    }
}

/// The tokens that a deployment counts for all of them.
pub fn total_tokens(requests: &[CacheRequest]) -> u64 {
    requests.iter().map(|request| request.prompt_tokens + request.output_tokens).sum()
}

#[derive(Clone, Copy, Debug)]
pub enum Workload {
    /// 100 conversations at a time, each about a text of its own.
    Conversations,
    /// The same, 300 at a time.
    ManyConversations,
    /// 40 runs of an agent at a time, which all begin with the same long instructions.
    Agents,
    /// The same, all with one `prompt_cache_key`.
    KeyedAgents,
    /// Conversations with a `prompt_cache_key`, runs of an agent, and requests that have nothing in common with others:
    /// short ones and long ones.
    Mixed,
}

impl Workload {
    pub const ALL: [Self; 5] =
        [Self::Conversations, Self::ManyConversations, Self::Agents, Self::KeyedAgents, Self::Mixed];

    pub fn name(self) -> &'static str {
        match self {
            Self::Conversations => "conversations",
            Self::ManyConversations => "300 conversations",
            Self::Agents => "agents",
            Self::KeyedAgents => "agents with one key",
            Self::Mixed => "mixed",
        }
    }

    /// The requests until the end of the load, in the order of their times.
    pub fn requests(self, length: Duration) -> Vec<CacheRequest> {
        let keys = CacheKeys::None;
        let conversation = DialogueKind { system_words: 60, first_words: 1_200, turn_words: 250, keys };
        let agent = DialogueKind { system_words: 4_500, first_words: 100, turn_words: 300, keys };
        let mut requests = match self {
            Self::Conversations => dialogues("chat", conversation, 100, length),
            Self::ManyConversations => dialogues("chat", conversation, 300, length),
            Self::Agents => dialogues("agent", agent, 40, length),
            Self::KeyedAgents => {
                dialogues("agent", DialogueKind { keys: CacheKeys::OneForAll, ..agent }, 40, length)
            }
            Self::Mixed => {
                let keyed = DialogueKind { keys: CacheKeys::OneForEach, ..conversation };
                let mut all = dialogues("chat", keyed, 60, length);
                all.extend(dialogues("agent", agent, 20, length));
                all.extend(singles("short", 200, 120.0, length));
                all.extend(singles("long", 2_500, 20.0, length));
                all
            }
        };
        requests.sort_by_key(|request| request.at);
        requests
    }
}

/// What conversations or runs of an agent have in common.
#[derive(Clone, Copy)]
struct DialogueKind {
    /// The same in all of them.
    system_words: u64,
    /// The first message.
    first_words: u64,
    /// What each turn adds: an answer and the next message.
    turn_words: u64,
    keys: CacheKeys,
}

/// Which `prompt_cache_key` dialogues have.
#[derive(Clone, Copy)]
enum CacheKeys {
    None,
    OneForEach,
    OneForAll,
}

/// So many at a time. They begin in the middle, so that the load is the same all the time.
fn dialogues(name: &str, kind: DialogueKind, at_a_time: u64, length: Duration) -> Vec<CacheRequest> {
    let mut requests = Vec::new();
    let system: Arc<str> = words(&format!("{name}-system"), kind.system_words).into();
    for place in 0..at_a_time {
        let mut random = fastrand::Rng::with_seed(place + 1);
        let mut at = TURN_INTERVAL.mul_f64(random.f64());
        let mut turn = random.u64(0..TURNS);
        let mut dialogue = 0;
        let mut messages = opening(name, &system, place, dialogue, kind, turn);
        while at < length {
            let key = match kind.keys {
                CacheKeys::None => String::new(),
                CacheKeys::OneForEach => format!("{name}-{place}-{dialogue}"),
                CacheKeys::OneForAll => name.to_owned(),
            };
            requests.push(request(at, &messages, key));
            at += TURN_INTERVAL + TURN_INTERVAL_RANGE.mul_f64(random.f64());
            turn += 1;
            if turn < TURNS {
                messages.extend(turn_messages(name, place, dialogue, turn, kind));
            } else {
                (turn, dialogue) = (0, dialogue + 1);
                messages = opening(name, &system, place, dialogue, kind, 0);
            }
        }
    }
    requests
}

/// The messages up to this turn.
fn opening(
    name: &str,
    system: &Arc<str>,
    place: u64,
    dialogue: u64,
    kind: DialogueKind,
    turn: u64,
) -> Vec<Message> {
    let first = words(&format!("{name}-{place}-{dialogue}"), kind.first_words);
    let mut messages = vec![("system", Arc::clone(system)), ("user", first.into())];
    for turn in 1..=turn {
        messages.extend(turn_messages(name, place, dialogue, turn, kind));
    }
    messages
}

fn turn_messages(name: &str, place: u64, dialogue: u64, turn: u64, kind: DialogueKind) -> [Message; 2] {
    let part = |role: &'static str| {
        (role, words(&format!("{name}-{place}-{dialogue}-{turn}-{role}"), kind.turn_words / 2).into())
    };
    [part("assistant"), part("user")]
}

/// Requests of about so many words that have nothing in common, so many per minute.
fn singles(name: &str, mean_words: u64, per_minute: f64, length: Duration) -> Vec<CacheRequest> {
    let mut random = fastrand::Rng::with_seed(mean_words);
    let mut at = Duration::ZERO;
    let mut requests = Vec::new();
    loop {
        at += Duration::from_secs_f64(-(1.0 - random.f64()).ln() * 60.0 / per_minute);
        if at >= length {
            return requests;
        }
        let text =
            words(&format!("{name}-{}", requests.len()), random.u64(mean_words / 2..mean_words * 3 / 2));
        requests.push(request(at, &[("user", text.into())], String::new()));
    }
}

fn request(at: Duration, messages: &[Message], cache_key: String) -> CacheRequest {
    let prompt_words: usize = messages.iter().map(|(_, text)| text.split_ascii_whitespace().count()).sum();
    CacheRequest {
        at,
        messages: messages.to_vec(),
        cache_key,
        prompt_tokens: prompt_words as u64 * 4 / WORDS_OF_4_TOKENS,
        output_tokens: OUTPUT_TOKENS,
    }
}

/// So many words, which are those of no other seed.
fn words(seed: &str, count: u64) -> String {
    (0..count).map(|index| format!("{seed}.{index}")).collect::<Vec<_>>().join(" ")
}
