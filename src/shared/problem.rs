//! Why the server cannot be used, in words for an operator. No message has a password.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use redis::{ErrorKind, RedisError};

use super::error::code_of;
use crate::system_error::{describe, describe_lookup, describe_tls};

/// The longest text of the server that is shown, in characters.
const MAX_SERVER_TEXT: usize = 200;

/// In the answer of a node that works, about a slot that no node has.
pub(super) const SLOT_NOT_SERVED: &str = "Hash slot not served";

/// Why the server cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error("{}", describe_lookup(.0))]
    Lookup(io::Error),
    #[error("{}", describe(.0))]
    Connect(io::Error),
    #[error("no connection within {0:?}: is the address right, and does a firewall let it through?")]
    ConnectTimeout(Duration),
    #[error("the certificate authorities of shared.redis.ca cannot be used: {0}")]
    Authorities(String),
    #[error("TLS: {}{}", describe_tls(.text), ca_hint(.text, *.has_own_ca))]
    Tls { text: String, has_own_ca: bool },
    #[error("its password or token is not known: {0}")]
    NoPassword(String),
    #[error(
        "it accepts connections but does not answer (for {0:?}): is it stopped, overloaded, or something else than Redis?"
    )]
    Silent(Duration),
    #[error("it closed the connection")]
    Closed,
    #[error("it closed the connection during the greeting; does it expect TLS (rediss://)?")]
    ClosedInGreeting,
    #[error("{}", explain_reply(.code, .text))]
    Refused { code: String, text: String },
    #[error("it does not speak the protocol of Redis 6.0: {0}")]
    Protocol(String),
    #[error("node {address} of the cluster: {problem}")]
    Node { address: String, problem: Arc<Problem> },
}

impl Problem {
    /// The problem behind an error of the protocol layer. `in_greeting` if there was no answer yet.
    pub(super) fn from_redis(error: &RedisError, in_greeting: bool, uses_tls: bool) -> Self {
        match (error.kind(), code_of(error)) {
            (ErrorKind::RESP3NotSupported, _) => Self::Protocol("the command HELLO is unknown".to_owned()),
            (ErrorKind::Parse, _) => Self::Protocol(shorten(&error.to_string())),
            (_, Some(code)) => {
                Self::Refused { code: code.to_owned(), text: shorten(error.detail().unwrap_or_default()) }
            }
            (ErrorKind::AuthenticationFailed, None) => {
                Self::Refused { code: "WRONGPASS".to_owned(), text: String::new() }
            }
            _ if in_greeting && !uses_tls => Self::ClosedInGreeting,
            _ => Self::Closed,
        }
    }

    /// What the answer to any command says about the connection as a whole; `None` if it is about that command only.
    pub(super) fn of_connection(code: &str, detail: Option<&str>) -> Option<Self> {
        let is_about_server =
            matches!(code, "READONLY" | "NOAUTH" | "MASTERDOWN" | "MOVED" | "CLUSTERDOWN" | "LOADING");
        is_about_server
            .then(|| Self::Refused { code: code.to_owned(), text: shorten(detail.unwrap_or_default()) })
    }

    /// A cluster refuses all commands, because a part of its slots has no server.
    pub(super) fn cluster_down() -> Self {
        Self::Refused { code: "CLUSTERDOWN".to_owned(), text: String::new() }
    }

    /// Whether the cluster refuses all commands.
    pub(super) fn is_cluster_down(&self) -> bool {
        matches!(self, Self::Refused { code, text } if code == "CLUSTERDOWN" && !text.contains(SLOT_NOT_SERVED))
    }

    /// Whether the server does not accept the password.
    pub(super) fn is_about_password(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if code == "WRONGPASS")
    }
}

fn ca_hint(text: &str, has_own_ca: bool) -> &'static str {
    match text.contains("certificate verify failed") {
        true if has_own_ca => "; it has to come from an authority in shared.redis.ca",
        true => "; shared.redis.ca names the authority of a private one",
        false => "",
    }
}

/// What an error of the server means here.
fn explain_reply(code: &str, text: &str) -> String {
    let meaning = match code {
        "WRONGPASS" => "it does not accept the user name or the password (or token) of shared.redis",
        "NOAUTH" => "it asks for a password; write it in shared.redis.password",
        "NOPERM" => {
            "the user of shared.redis may not run what is needed; give it all commands on its keys and channels"
        }
        "MOVED" | "ASK" => {
            "it is a node of a cluster and does not say which node has which keys; allow its user the command CLUSTER SLOTS"
        }
        "CLUSTERDOWN" => "a part of the cluster has no server",
        "READONLY" => "it is a replica, to which nothing can be written; write the address of the primary",
        "LOADING" => "it is still loading its data",
        "MASTERDOWN" => "it is a replica that has lost its primary",
        "OOM" => "its memory is full",
        "MISCONF" => "it refuses writes because it cannot save its data",
        _ => "it answered with an error",
    };
    match text {
        "" => format!("{meaning} ({code})"),
        text => format!("{meaning} ({code}: {text})"),
    }
}

/// Text of the server, without control characters and not too long.
fn shorten(text: &str) -> String {
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    clean.take(MAX_SERVER_TEXT).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server_error(line: &str) -> RedisError {
        let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
        value.extract_error().unwrap_err()
    }

    #[test]
    fn an_error_of_the_server_says_what_to_do() {
        for (line, expected) in [
            (
                "WRONGPASS invalid username-password pair or user is disabled.",
                "it does not accept the user name or the password (or token) of shared.redis (WRONGPASS: invalid username-password pair \
                 or user is disabled.)",
            ),
            (
                "NOAUTH HELLO must be called with the client",
                "it asks for a password; write it in shared.redis.password",
            ),
            (
                "NOPERM this user has no permissions to run the 'eval' command",
                "the user of shared.redis may not run",
            ),
            (
                "MOVED 3999 127.0.0.1:6381",
                "it is a node of a cluster and does not say which node has which keys; allow its user the command CLUSTER \
                 SLOTS (MOVED: 3999 127.0.0.1:6381)",
            ),
            ("CLUSTERDOWN The cluster is down", "a part of the cluster has no server (CLUSTERDOWN: The"),
            ("READONLY You can't write against a read only replica.", "it is a replica"),
            (
                "ERR Error running script (call to f_1): @user_script:1: @user_script: 1: -READONLY You can't write against",
                "it is a replica",
            ),
            (
                "LOADING Redis is loading the dataset in memory",
                "it is still loading its data (LOADING: Redis is",
            ),
            ("OOM command not allowed when used memory > 'maxmemory'.", "its memory is full"),
            (
                "ERR max number of clients reached",
                "it answered with an error (ERR: max number of clients reached)",
            ),
            ("ERR", "it answered with an error (ERR)"),
        ] {
            let problem = Problem::from_redis(&server_error(line), true, false);
            assert!(problem.to_string().starts_with(expected), "{line}: {problem}");
            assert_eq!(problem.is_about_password(), line.starts_with("WRONGPASS"), "{line}");
        }
    }

    #[test]
    fn a_cluster_is_down_if_it_is_not_one_slot_only() {
        for (line, expected) in [
            ("CLUSTERDOWN The cluster is down", true),
            ("CLUSTERDOWN The cluster is down and only accepts read commands", true),
            ("CLUSTERDOWN Hash slot not served", false),
            ("LOADING Redis is loading the dataset in memory", false),
        ] {
            let problem = Problem::from_redis(&server_error(line), false, false);
            assert_eq!(problem.is_cluster_down(), expected, "{line}");
        }
        assert!(Problem::cluster_down().is_cluster_down());
    }

    #[test]
    fn a_lost_connection_is_told_with_its_likely_reason() {
        let lost = || RedisError::from(io::Error::from(io::ErrorKind::UnexpectedEof));
        for (in_greeting, uses_tls, expected) in [
            (true, false, "it closed the connection during the greeting; does it expect TLS (rediss://)?"),
            (true, true, "it closed the connection"),
            (false, false, "it closed the connection"),
        ] {
            assert_eq!(Problem::from_redis(&lost(), in_greeting, uses_tls).to_string(), expected);
        }
        let http = redis::parse_redis_value(b"HTTP/1.1 400 Bad Request\r\n").unwrap_err();
        let problem = Problem::from_redis(&http, true, false).to_string();
        assert!(problem.starts_with("it does not speak the protocol of Redis 6.0: "), "{problem}");
    }

    #[test]
    fn an_untrusted_certificate_is_told_with_the_key_that_helps() {
        let tls = |has_own_ca| {
            Problem::Tls {
                text: "error:0A000086:SSL routines::certificate verify failed:x".to_owned(),
                has_own_ca,
            }
            .to_string()
        };
        assert!(
            tls(false).ends_with("; shared.redis.ca names the authority of a private one"),
            "{}",
            tls(false)
        );
        assert!(
            tls(true).ends_with("; it has to come from an authority in shared.redis.ca"),
            "{}",
            tls(true)
        );
    }

    #[test]
    fn text_of_the_server_is_cut_and_has_no_control_characters() {
        let text = shorten(&format!("a\x1b[31m\n{}", "x".repeat(500)));
        assert!(text.starts_with("a [31m x") && text.chars().count() == 200, "{text}");
    }
}
