//! One process takes over from another: new binary, new file, the same sockets, no request lost.
//!
//! The running process listens at a control socket beside `server.upgrade_socket`. Whoever wants an
//! upgrade asks there (`ask.rs`); the running process starts its successor (`running.rs`), which
//! says there when it is ready for what is remembered and for the listening sockets
//! (`successor.rs`). The engine hands those over.

mod channel;
mod control_socket;
mod predecessor;
mod process_set;
mod protocol;
mod request;
mod successor;

pub use self::channel::ControlChannel;
pub use self::control_socket::{ControlCommand, ControlSocket};
pub use self::predecessor::{HandoverError, Predecessor, Program, report_outcome};
pub use self::process_set::ProcessSet;
pub use self::request::{UpgradeRequestError, request_upgrade};
pub use self::successor::{Successor, TakeoverError};
