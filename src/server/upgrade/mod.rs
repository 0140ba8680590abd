//! Upgrades without downtime: a new process with the installed binary and file takes over the
//! listening sockets, and the old one finishes its requests.
//!
//! The running process listens on a control socket next to `server.upgrade_socket`
//! (`control_socket.rs`). `aoai-lb upgrade` connects to it (`request.rs`); the running process then
//! starts its successor (`predecessor.rs`), which connects to it as well, receives the health of the
//! backends and reports when it is ready for the sockets (`successor.rs`). Pingora sends the sockets.
//! The homes of objects go over a second connection (`homes.rs`). What clients use of their budgets in requests
//! that the old process finishes is reported to the new one (`budgets.rs`, `unfinished_objects.rs`), which keeps the limits of clients for both
//! processes (`limits.rs`).

mod budgets;
mod channel;
mod control_socket;
mod control_socket_path;
mod homes;
mod limits;
mod predecessor;
mod process_set;
mod protocol;
mod report;
mod request;
mod stop;
mod successor;
mod unfinished_objects;

pub use self::budgets::{report_budgets, report_costs};
pub use self::channel::ControlChannel;
pub use self::control_socket::{ControlCommand, ControlSocket};
pub use self::homes::report_homes;
pub use self::predecessor::{HandoverError, PredecessorRole, Program, wait_for_serving_and_report};
pub use self::process_set::ProcessSet;
pub use self::request::{UpgradeRequestError, request_upgrade};
pub use self::stop::{accept_stop, tell_successor_to_stop};
pub use self::successor::{SuccessorRole, TakeoverError};
pub use self::unfinished_objects::report_objects;

pub(super) use self::request::running_process_id;
