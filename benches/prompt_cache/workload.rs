//! The requests of clients, the same in each run. They come at their times, whether or not others are answered: a turn
//! has what was said before, also if the turn before it was refused.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

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
    pub body: Bytes,
    pub cache_key: String,
    /// All that the model reads.
    pub prompt: String,
    pub prompt_tokens: u64,
    pub output_tokens: u64,
}

/// The tokens that a deployment counts for all of them.
pub fn total_tokens(requests: &[CacheRequest]) -> u64 {
    requests.iter().map(|request| request.prompt_tokens + request.output_tokens).sum()
}

#[derive(Clone, Copy, Debug)]
pub enum Workload {
    /// 100 conversations at a time, each about a text of its own.
    Conversations,
    /// 40 runs of an agent at a time, which all begin with the same long instructions.
    Agents,
    /// Conversations with a `prompt_cache_key`, runs of an agent, and requests that have nothing in common with others:
    /// short ones and long ones.
    Mixed,
}

impl Workload {
    pub const ALL: [Self; 3] = [Self::Conversations, Self::Agents, Self::Mixed];

    pub fn name(self) -> &'static str {
        match self {
            Self::Conversations => "conversations",
            Self::Agents => "agents",
            Self::Mixed => "mixed",
        }
    }

    /// The requests until the end of the load, in the order of their times.
    pub fn requests(self, length: Duration) -> Vec<CacheRequest> {
        let conversation =
            DialogueKind { system_words: 60, first_words: 1_200, turn_words: 250, has_cache_key: false };
        let agent =
            DialogueKind { system_words: 4_500, first_words: 100, turn_words: 300, has_cache_key: false };
        let mut requests = match self {
            Self::Conversations => dialogues("chat", conversation, 100, length),
            Self::Agents => dialogues("agent", agent, 40, length),
            Self::Mixed => {
                let keyed = DialogueKind { has_cache_key: true, ..conversation };
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
    has_cache_key: bool,
}

/// So many at a time. They begin in the middle, so that the load is the same all the time.
fn dialogues(name: &str, kind: DialogueKind, at_a_time: u64, length: Duration) -> Vec<CacheRequest> {
    let mut requests = Vec::new();
    let system = words(&format!("{name}-system"), kind.system_words);
    for place in 0..at_a_time {
        let mut random = fastrand::Rng::with_seed(place + 1);
        let mut at = TURN_INTERVAL.mul_f64(random.f64());
        let mut turn = random.u64(0..TURNS);
        let mut dialogue = 0;
        let mut messages = opening(name, &system, place, dialogue, kind, turn);
        while at < length {
            let key = if kind.has_cache_key { format!("{name}-{place}-{dialogue}") } else { String::new() };
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
    system: &str,
    place: u64,
    dialogue: u64,
    kind: DialogueKind,
    turn: u64,
) -> Vec<(&'static str, String)> {
    let first = words(&format!("{name}-{place}-{dialogue}"), kind.first_words);
    let mut messages = vec![("system", system.to_owned()), ("user", first)];
    for turn in 1..=turn {
        messages.extend(turn_messages(name, place, dialogue, turn, kind));
    }
    messages
}

fn turn_messages(
    name: &str,
    place: u64,
    dialogue: u64,
    turn: u64,
    kind: DialogueKind,
) -> [(&'static str, String); 2] {
    let part = |role: &'static str| {
        (role, words(&format!("{name}-{place}-{dialogue}-{turn}-{role}"), kind.turn_words / 2))
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
        requests.push(request(at, &[("user", text)], String::new()));
    }
}

fn request(at: Duration, messages: &[(&'static str, String)], cache_key: String) -> CacheRequest {
    let prompt = messages.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("\n");
    let prompt_words = prompt.split_ascii_whitespace().count() as u64;
    let messages = messages.iter().map(|(role, text)| json!({"role": role, "content": text}));
    let mut body =
        json!({"messages": messages.collect::<Vec<Value>>(), "max_completion_tokens": OUTPUT_TOKENS});
    if !cache_key.is_empty() {
        body["prompt_cache_key"] = json!(cache_key);
    }
    CacheRequest {
        at,
        body: Bytes::from(body.to_string()),
        cache_key,
        prompt,
        prompt_tokens: prompt_words * 4 / WORDS_OF_4_TOKENS,
        output_tokens: OUTPUT_TOKENS,
    }
}

/// So many words, which are those of no other seed.
fn words(seed: &str, count: u64) -> String {
    (0..count).map(|index| format!("{seed}.{index}")).collect::<Vec<_>>().join(" ")
}
