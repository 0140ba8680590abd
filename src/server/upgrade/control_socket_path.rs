//! Where the control socket is.

use std::path::{Path, PathBuf};

/// The path of the control socket.
pub(super) fn control_socket_path(upgrade_socket_path: &Path) -> PathBuf {
    let mut path = upgrade_socket_path.as_os_str().to_owned();
    path.push(".control");
    PathBuf::from(path)
}
