//! The messages between two processes, and how long each side waits for the other.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::routing::health_snapshot::HealthSnapshot;

/// The most that a successor may take to be ready: names, tokens and secrets are waited for.
pub(super) const PREPARATION_TIMEOUT: Duration = Duration::from_secs(60);
/// The most that anything else may take.
pub(super) const REPLY_TIMEOUT: Duration = Duration::from_secs(15);

/// What is said at the control socket, one line of JSON each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ControlMessage {
    /// To the running process: replace yourself.
    Upgrade,
    /// To the running process: here is your successor.
    #[serde(rename = "succeed")]
    Introduction { pid: u32 },
    /// To the successor: these addresses are listened on, and these processes came before.
    Welcome { addresses: Vec<String>, predecessors: Vec<u32> },
    /// From the successor: everything that can fail has been done.
    Prepared,
    /// To the successor: this is remembered.
    #[serde(rename = "inheritance")]
    State {
        #[serde(rename = "remembered")]
        health: HealthSnapshot,
        #[serde(rename = "learned")]
        deployments: Vec<String>,
    },
    /// From the successor: it waits for the sockets.
    #[serde(rename = "ready")]
    ReadyForSockets,
    /// From the successor: it serves.
    Serving { pid: u32 },
    /// To whoever asked for an upgrade.
    Progress {
        #[serde(rename = "what")]
        step: String,
    },
    /// To whoever asked for an upgrade: this process serves.
    Done { pid: u32 },
    /// It will not be, and why.
    Failed {
        #[serde(rename = "why")]
        reason: String,
    },
}
