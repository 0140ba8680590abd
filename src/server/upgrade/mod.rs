//! One process takes over from another: new binary, new file, the same sockets, no request lost.
//!
//! The running process listens at a control socket beside `server.upgrade_socket`. Whoever wants an
//! upgrade asks there (`ask.rs`); the running process starts its successor (`running.rs`), which
//! says there when it is ready for what is remembered and for the listening sockets
//! (`successor.rs`). The engine hands those over.

mod channel;
mod client;
mod control;
mod predecessor;
mod successor;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::routing::handover::Remembered;

pub use self::channel::Channel;
pub use self::client::{NotAsked, ask};
pub use self::control::{Control, Wish};
pub use self::predecessor::{NotUpgraded, Program, Running, report};
pub use self::successor::{Heir, NoPredecessor, Predecessors};

/// The most that a successor may take to be ready: names, tokens and secrets are waited for.
const PREPARING: Duration = Duration::from_secs(60);
/// The most that anything else may take.
const STEP: Duration = Duration::from_secs(15);

/// What is said at the control socket, one line of JSON each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    /// To the running process: replace yourself.
    Upgrade,
    /// To the running process: here is your successor.
    Succeed { pid: u32 },
    /// To the successor: these addresses are listened on, and these processes came before.
    Welcome { addresses: Vec<String>, predecessors: Vec<u32> },
    /// From the successor: everything that can fail has been done.
    Prepared,
    /// To the successor: this is remembered.
    Inheritance { remembered: Remembered, learned: Vec<String> },
    /// From the successor: it waits for the sockets.
    Ready,
    /// From the successor: it serves.
    Serving { pid: u32 },
    /// To whoever asked for an upgrade.
    Progress { what: String },
    /// To whoever asked for an upgrade: this process serves.
    Done { pid: u32 },
    /// It will not be, and why.
    Failed { why: String },
}

/// Where the running process listens.
pub fn control_path(upgrade_socket: &Path) -> PathBuf {
    let mut path = upgrade_socket.as_os_str().to_owned();
    path.push(".control");
    PathBuf::from(path)
}
