//! What a whole file may say: its blocks, their keys and defaults, and what has to agree
//! between them. Larger blocks have a file of their own below `check/`.
//!
//! Everything is read before anything is given up, so that all problems are found at once.

mod admin;
mod backends;
mod clients;
mod credentials;
mod listeners;
mod record;
mod requests;

use std::path::PathBuf;
use std::time::Duration;

use super::node::{Inner, Map, Node};
use super::statuses::{self, Statuses};
use super::{Balance, Breaker, Config, Content, Cooldown, Hold, Ratio, Retry, Server, Timeouts};

const KEYS: [&str; 14] = [
    "listeners",
    "backends",
    "clients",
    "entra",
    "requests",
    "balance",
    "retry",
    "breaker",
    "cooldown",
    "timeouts",
    "record",
    "key_vault",
    "admin",
    "server",
];

const SERVER: [&str; 5] = ["threads", "grace_period", "drain_delay", "tcp_keepalive", "upgrade_socket"];
const BALANCE: [(&str, Balance); 2] = [("round_robin", Balance::RoundRobin), ("headroom", Balance::Headroom)];
const CONTENT: [(&str, Content); 3] =
    [("full", Content::Full), ("prompt", Content::Prompt), ("none", Content::None)];

/// Reads the whole document; `None` when a problem was noted.
pub(super) fn config(root: &Node<'_>) -> Option<Config> {
    let root = root.inner().map(&KEYS)?;
    let listeners = listeners::read(&root);
    let backends = backends::read(&root);
    let clients = clients::read(&root, backends.as_ref());
    let entra = root.maybe("entra", clients::tokens);
    let requests = requests::read(&root, backends.as_ref());
    let balance = root.or("balance", Balance::Headroom, |node| node.word(&BALANCE));
    let retry = retry(&root);
    let breaker = breaker(&root);
    let cooldown = cooldown(&root);
    let timeouts = timeouts(&root);
    let record = root.maybe("record", record::read);
    let key_vault = credentials::key_vault(&root);
    let admin = root.maybe("admin", |node| admin::read(node, listeners.as_deref().unwrap_or_default()));
    let server = server(&root);

    let clients = clients?;
    if record.as_ref().is_some_and(Option::is_none) {
        clients::warn_of_content_without_record(&root, &clients);
    }
    if let Some(listeners) = &listeners {
        clients::check_ways_in(&root, &clients, root.find("entra").is_some(), listeners);
        clients::warn_of_open_door(&root, &clients, listeners);
    }
    Some(Config {
        listeners: listeners?,
        backends: backends?.finish()?,
        clients,
        entra: entra?,
        requests: requests?,
        balance: balance?,
        retry: retry?,
        breaker: breaker?,
        cooldown: cooldown?,
        timeouts: timeouts?,
        record: record?,
        key_vault: key_vault?,
        admin: admin?,
        server: server?,
    })
}

fn retry(root: &Map<'_, '_>) -> Option<Retry> {
    let map = root.block("retry", &["attempts", "statuses", "deadline", "wait", "budget", "hold"])?;
    let attempts = map.or("attempts", 12, |node| Some(node.number(0..=100)? as u32));
    let statuses = map.or("statuses", Statuses::usual(), |node| {
        let ranges = node.each(status_range)?;
        Some(ranges.into_iter().fold(Statuses::NONE, |set, (first, last)| set.with(first, last)))
    });
    let deadline = map.or("deadline", Duration::from_secs(120), Inner::duration);
    let wait = map.or("wait", Duration::from_millis(250), Inner::duration);
    let budget = map.or("budget", Ratio::TWENTY, Inner::ratio);
    let hold = hold(&map);
    Some(Retry {
        attempts: attempts?,
        statuses: statuses?,
        deadline: deadline?,
        wait: wait?,
        budget: budget?,
        hold: hold?,
    })
}

fn breaker(root: &Map<'_, '_>) -> Option<Breaker> {
    let map = root.block("breaker", &["failures", "ratio", "window", "open", "maximum"])?;
    let failures = map.or("failures", 5, |node| Some(node.number(1..=10_000)? as u32));
    let ratio = map.or("ratio", Ratio::HALF, Inner::ratio);
    let window = map.or("window", Duration::from_secs(10), Inner::some_time);
    let open = map.or("open", Duration::from_secs(10), Inner::some_time);
    let maximum = map.or("maximum", Duration::from_secs(300), Inner::some_time);
    let (open, maximum) = (open?, maximum?);
    if maximum < open {
        return root.report.error(&map.at("maximum"), "must be at least breaker.open");
    }
    Some(Breaker { failures: failures?, ratio: ratio?, window: window?, open, maximum })
}

fn hold(retry: &Map<'_, '_>) -> Option<Hold> {
    let map = retry.block("hold", &["time", "size"])?;
    let time = map.or("time", Duration::from_millis(500), Inner::duration);
    let size = map.or("size", 1024 * 1024, Inner::size);
    Some(Hold { time: time?, size: size? })
}

fn status_range(node: &Inner<'_, '_>) -> Option<(u16, u16)> {
    const MUST: &str = "must be a status such as 429 or a range such as 500-599, within 400 to 599";
    if node.is_number() {
        let status = node.number(400..=599)? as u16;
        return Some((status, status));
    }
    node.parsed(|text| statuses::range(text).ok_or(MUST))
}

fn cooldown(root: &Map<'_, '_>) -> Option<Cooldown> {
    let map = root.block("cooldown", &["default", "maximum"])?;
    let default = map.or("default", Duration::from_secs(10), Inner::some_time);
    let maximum = map.or("maximum", Duration::from_secs(60), Inner::some_time);
    let (default, maximum) = (default?, maximum?);
    if maximum < default {
        return root.report.error(&map.at("maximum"), "must be at least cooldown.default");
    }
    Some(Cooldown { default, maximum })
}

fn timeouts(root: &Map<'_, '_>) -> Option<Timeouts> {
    let keys =
        ["connect", "first_byte", "first_byte_stream", "idle", "request_header", "request_body", "pool_idle"];
    let map = root.block("timeouts", &keys)?;
    let seconds = |key, default| map.or(key, Duration::from_secs(default), Inner::some_time);
    let connect = seconds("connect", 5);
    let first_byte = seconds("first_byte", 600);
    let first_byte_stream = seconds("first_byte_stream", 60);
    let idle = seconds("idle", 300);
    let request_header = seconds("request_header", 15);
    let request_body = seconds("request_body", 60);
    let pool_idle = seconds("pool_idle", 90);
    Some(Timeouts {
        connect: connect?,
        first_byte: first_byte?,
        first_byte_stream: first_byte_stream?,
        idle: idle?,
        request_header: request_header?,
        request_body: request_body?,
        pool_idle: pool_idle?,
    })
}

fn server(root: &Map<'_, '_>) -> Option<Server> {
    let map = root.block("server", &SERVER)?;
    let threads = map.or("threads", processors(), |node| Some(node.number(1..=256)? as usize));
    let grace_period = map.or("grace_period", Duration::from_secs(600), Inner::duration);
    let drain_delay = map.or("drain_delay", Duration::from_secs(10), Inner::duration);
    let tcp_keepalive = map.or("tcp_keepalive", Duration::from_secs(60), keepalive);
    let upgrade_socket = socket_of(&map);
    Some(Server {
        threads: threads?,
        grace_period: grace_period?,
        drain_delay: drain_delay?,
        tcp_keepalive: tcp_keepalive?,
        upgrade_socket: upgrade_socket?,
    })
}

/// Only that of a whole file; its other keys may be bad.
pub(super) fn upgrade_socket(root: &Node<'_>) -> Option<PathBuf> {
    let root = root.inner().map(&KEYS)?;
    socket_of(&root.block("server", &SERVER)?)
}

fn socket_of(server: &Map<'_, '_>) -> Option<PathBuf> {
    // systemd names the directory.
    let directory = server.report.variable("RUNTIME_DIRECTORY");
    let directory = directory.unwrap_or_else(|| RUNTIME_DIRECTORY.to_owned());
    let usual = PathBuf::from(directory).join("upgrade.sock");
    server.or("upgrade_socket", usual, |node| node.parsed(|text| socket(node, text)))
}

/// Where sockets are when neither the file nor systemd says.
const RUNTIME_DIRECTORY: &str = "/run/aoai-lb";
/// The longest path of a Unix socket, in bytes (Linux, `sun_path` without its NUL: unix(7)).
const SOCKET_PATH_MAX: usize = 107;
/// What the path of a second socket has in addition.
const SECOND_SOCKET: usize = ".control".len();

/// The path of a Unix socket.
fn socket(node: &Inner<'_, '_>, text: &str) -> Result<PathBuf, &'static str> {
    let path = node.resolve(text);
    match path.as_os_str().len() {
        _ if text.contains('\0') => Err("must be a path without NUL"),
        length if length > SOCKET_PATH_MAX - SECOND_SOCKET => Err("must be a path of at most 99 bytes"),
        _ => Ok(path),
    }
}

/// The kernel counts whole seconds, up to 32767 (tcp(7), `TCP_KEEPIDLE`).
fn keepalive(node: &Inner<'_, '_>) -> Option<Duration> {
    let duration = node.duration()?;
    let is_good = duration.subsec_nanos() == 0 && (1..=9 * 3600).contains(&duration.as_secs());
    if is_good { Some(duration) } else { node.error("must be whole seconds, 1s to 9h") }
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(256))
}

/// `YYYY-MM-DD` or `YYYY-MM-DD-preview`, as Azure names the versions of the classic API.
fn api_version(node: &Inner<'_, '_>) -> Option<String> {
    node.parsed(|text| {
        let date = text.strip_suffix("-preview").unwrap_or(text);
        let is_digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        let parts: Vec<&str> = date.split('-').collect();
        let is_date = match parts[..] {
            [year, month, day] => {
                parts.iter().all(|part| is_digits(part))
                    && (year.len(), month.len(), day.len()) == (4, 2, 2)
                    && ("01"..="12").contains(&month)
                    && ("01"..="31").contains(&day)
            }
            _ => false,
        };
        is_date.then(|| text.to_owned()).ok_or("must be a version such as 2024-10-21 or 2025-03-01-preview")
    })
}

/// A name of a backend or client: it becomes a label of metrics and a path of the admin API.
fn entry_name(node: &Inner<'_, '_>) -> Option<String> {
    node.parsed(|text| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let is_good = text.len() <= 64 && text.bytes().all(allowed) && !matches!(text, "." | "..");
        is_good.then(|| text.to_owned()).ok_or("must be 1 to 64 of the characters A-Z a-z 0-9 . _ -")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::UsageMode;
    use crate::config::tests::{assert_problems, good, problems_in};

    #[test]
    fn defaults() {
        let config = good("").config;
        let seconds = Duration::from_secs;
        let retry = &config.retry;
        assert_eq!(
            (retry.attempts, retry.deadline, retry.wait),
            (12, seconds(120), Duration::from_millis(250))
        );
        assert_eq!(retry.statuses, Statuses::usual());
        assert_eq!(config.cooldown, Cooldown { default: seconds(10), maximum: seconds(60) });
        let timeouts = Timeouts {
            connect: seconds(5),
            first_byte: seconds(600),
            first_byte_stream: seconds(60),
            idle: seconds(300),
            request_header: seconds(15),
            request_body: seconds(60),
            pool_idle: seconds(90),
        };
        assert_eq!(config.timeouts, timeouts);
        assert!(config.record.is_none() && config.admin.is_none());
        let server = Server {
            threads: processors(),
            grace_period: seconds(600),
            drain_delay: seconds(10),
            tcp_keepalive: seconds(60),
            upgrade_socket: "/run/aoai-lb/upgrade.sock".into(),
        };
        assert_eq!(config.server, server);
        let record = good("record: { jsonl: { path: x.jsonl } }").config.record.unwrap();
        assert_eq!(
            (record.content, record.content_limit, record.usage),
            (Content::Full, 65_536, UsageMode::Ask)
        );
    }

    #[test]
    fn what_is_written_is_read() {
        let yaml = "retry: { attempts: 0, statuses: [400-499, '503'], deadline: 0s, wait: 1s }\nserver: { threads: '${FOUR}' }\n\
                    record: { content: none, content_limit: 1MB, usage: observe, jsonl: { path: x } }";
        let config = good(yaml).config;
        assert_eq!(
            (config.retry.attempts, config.retry.deadline, config.server.threads),
            (0, Duration::ZERO, 4)
        );
        let statuses = [399, 400, 499, 500, 503, 504].map(|status| config.retry.statuses.contains(status));
        assert_eq!(statuses, [false, true, true, false, true, false]);
        let record = config.record.unwrap();
        assert_eq!(
            (record.content, record.content_limit, record.usage),
            (Content::None, 1_000_000, UsageMode::Observe)
        );
        let config = good("retry: { statuses: [] }").config;
        assert_eq!(config.retry.statuses, Statuses::NONE);
    }

    #[test]
    fn problems() {
        const STATUS: &str = "must be a status such as 429 or a range such as 500-599, within 400 to 599";
        const DURATION: &str = "be a duration with its unit, such as 250ms, 5s, 10m or 1h";
        assert_problems(&[
            (
                "retry: { attempts: 101, statuses: [200, 500-600, x], deadline: 5, wait: soon }",
                &[
                    "retry.attempts: must be 0 to 100, not 101",
                    "retry.statuses[0]: must be 400 to 599, not 200",
                    &format!("retry.statuses[1]: {STATUS}, not \"500-600\""),
                    &format!("retry.statuses[2]: {STATUS}, not \"x\""),
                    "retry.deadline: has no unit; write 5s or 5ms",
                    &format!("retry.wait: must {DURATION}, not \"soon\""),
                ],
            ),
            (
                "retry: { wait: '0', deadline: '${FOUR}' }",
                &[
                    "retry.deadline: has no unit in the value from ${FOUR}; give it one, such as s or ms",
                    "retry.wait: has no unit; write 0s or 0ms",
                ],
            ),
            (
                "retry: { budget: 20, hold: { time: 1 } }\nbreaker: { ratio: 120%, open: 10m }",
                &[
                    "retry.budget: has no unit; write 20% or 20 %",
                    "retry.hold.time: has no unit; write 1s or 1ms",
                    "breaker.ratio: must be a whole number of percent from 0% to 100%, not \"120%\"",
                    "breaker.maximum: must be at least breaker.open",
                ],
            ),
            (
                "retry: 12",
                &[
                    "retry: must be a mapping with attempts, statuses, deadline, wait, budget or hold, not a number",
                ],
            ),
            ("retry:", &["retry: is empty; remove it or give it a value"]),
            ("retry: { attempts: 1.5 }", &["retry.attempts: must be 0 to 100, not 1.5"]),
            ("braker: {}", &["braker: unknown key; did you mean `breaker`?"]),
            ("timeout: {}", &["timeout: unknown key; did you mean `timeouts`?"]),
            ("cooldown: { default: 2m }", &["cooldown.maximum: must be at least cooldown.default"]),
            (
                "cooldown: { default: 2x, maximum: 1s }",
                &[&format!("cooldown.default: must {DURATION}, not \"2x\"")],
            ),
            (
                "timeouts: { connect: 0s, idle: 2 days, first_bytes: 1s }",
                &[
                    "timeouts.first_bytes: unknown key; did you mean `first_byte`?",
                    "timeouts.connect: must be longer than 0s",
                    "timeouts.idle: must be at most 24h (m is minutes, M months), not \"2 days\"",
                ],
            ),
            ("record: {}", &["record: must have jsonl: { path: FILE }, or log_analytics, or both"]),
            ("record: { jsonl: {} }", &["record.jsonl.path: is missing; write the file that records go to"]),
            (
                "record: { jsonl: { path: /no/such/x } }",
                &[
                    "record.jsonl.path: the directory of \"/no/such/x\" does not exist; create it, writable for the service",
                ],
            ),
            (
                "record: { jsonl: { path: / } }",
                &["record.jsonl.path: must be a file, and \"/\" is a directory"],
            ),
            (
                "server: { threads: 0, tcp_keepalive: 100ms }",
                &[
                    "server.threads: must be 1 to 256, not 0",
                    "server.tcp_keepalive: must be whole seconds, 1s to 9h",
                ],
            ),
        ]);
    }

    #[test]
    fn versions_are_dates() {
        for (version, is_good) in [
            ("2024-10-21", true),
            ("2025-03-01-preview", true),
            ("2024-10-21-preview-preview", false),
            ("2024-00-21", false),
            ("2024-1-1", false),
            ("20241021", false),
            ("preview", false),
        ] {
            assert_eq!(
                problems_in(&format!("requests: {{ api_version: '{version}' }}")).is_empty(),
                is_good,
                "{version}"
            );
        }
    }
}
