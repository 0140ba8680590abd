//! Log lines of the engine (Pingora) in the words of this program. Lines that nobody can use are dropped.

use crate::system_error::without_error_number;

/// Messages that are dropped, by target and beginning: Pingora logs them as errors although the client caused them,
/// or nothing is wrong. They occur per connection, and records, refusals or log lines of our own report the cause.
const DROPPED: [(&str, &str); 4] = [
    ("pingora_core::services::listening", "Downstream handshake"),
    ("pingora_core::apps", "H2 handshake error"),
    ("pingora_core::connectors", "failed to acquire reusable stream"),
    ("pingora_core::server::transfer_fd", "No incoming socket transfer"),
];

/// Messages in plain words, by target and beginning. What follows the beginning is appended if the text ends with
/// a colon.
const REWORDED: [(&str, &str, &str); 11] = [
    (
        "pingora_core::services::listening",
        "Accept() failed ",
        "a listener cannot accept a connection; if there are too many open files, raise LimitNOFILE:",
    ),
    (
        "pingora_core::connectors",
        "Unexpected data read in idle",
        "a backend sent data on an idle connection, which is closed",
    ),
    (
        "pingora_core::protocols::http::v1::body",
        "Peer sent more data",
        "more data followed a body than its length said; the connection is closed",
    ),
    (
        "pingora_core::protocols::http::v2::client",
        "invalid h2 response header",
        "a backend sent a response header that HTTP/2 does not allow",
    ),
    (
        "pingora_core::protocols::http::v2::client",
        "H2 connection Ping",
        "a backend does not answer on an HTTP/2 connection, which is closed",
    ),
    (
        "pingora_core::protocols::http::v2::client",
        "H2 fd",
        "a backend does not answer on an HTTP/2 connection, which is closed",
    ),
    (
        "pingora_core::server::transfer_fd",
        "Giving up reading socket",
        "no listening sockets came from the running process; this process ends",
    ),
    (
        "pingora_core::server::transfer_fd",
        "Connect() not ready",
        "the new process does not take the listening sockets yet; this is tried again",
    ),
    (
        "pingora_core::server::transfer_fd",
        "server not ready",
        "the new process does not take the listening sockets yet; this is tried again",
    ),
    (
        "pingora_core::server::transfer_fd",
        "Error sending socket",
        "the listening sockets cannot be sent to the new process",
    ),
    (
        "pingora_core::server",
        "Unable to send listener sockets to new process",
        "the listening sockets cannot be sent to the new process:",
    ),
];

/// A line of a library as it is written; `None` if it is dropped. Lines that are not known lose only the number of an
/// error of the system.
pub(super) fn in_plain_words(target: &str, text: &str) -> Option<String> {
    if DROPPED.iter().any(|(module, beginning)| target.starts_with(module) && text.starts_with(beginning)) {
        return None;
    }
    let known = REWORDED.iter().find_map(|(module, beginning, words)| {
        Some((words, text.strip_prefix(beginning).filter(|_| target.starts_with(module))?))
    });
    let details = |text| without_error_number(text).to_owned();
    Some(match known {
        Some((words, rest)) if words.ends_with(':') => {
            format!("{words} {}", details(rest.trim_start_matches([':', ' '])))
        }
        Some((words, _)) => (*words).to_owned(),
        None => details(text),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_engine_are_dropped_reworded_or_kept() {
        for (target, text, expected) in [
            ("pingora_core::services::listening", "Downstream handshake error: x", None),
            ("pingora_core::server::transfer_fd", "No incoming socket transfer, sleep 1s", None),
            (
                "pingora_core::services::listening",
                "Accept() failed Too many open files (os error 24)",
                Some(
                    "a listener cannot accept a connection; if there are too many open files, raise LimitNOFILE: Too many open files",
                ),
            ),
            (
                "pingora_core::protocols::http::v2::client",
                "H2 fd: 17 ping timeout",
                Some("a backend does not answer on an HTTP/2 connection, which is closed"),
            ),
            // The same words from somewhere else.
            ("hyper", "H2 fd: 17 ping timeout", Some("H2 fd: 17 ping timeout")),
            (
                "pingora_core::listeners::l4",
                "127.0.0.1:80 is in use, will try again",
                Some("127.0.0.1:80 is in use, will try again"),
            ),
            ("some_crate", "it broke (os error 5)", Some("it broke")),
        ] {
            assert_eq!(in_plain_words(target, text).as_deref(), expected, "{target}: {text}");
        }
    }
}
