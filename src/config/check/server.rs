//! Reads and checks `server`: threads, shutdown, keepalive and the upgrade socket.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::schema::ServerConfig;
use crate::config::yaml::{YamlMapping, YamlNode};

pub(super) const SERVER_KEYS: [&str; 5] =
    ["threads", "grace_period", "drain_delay", "tcp_keepalive", "upgrade_socket"];

/// The directory of the upgrade socket if neither the file nor systemd names one.
const DEFAULT_RUNTIME_DIRECTORY: &str = "/run/aoai-lb";
/// The longest path of a Unix socket, in bytes (Linux, `sun_path` without its NUL: unix(7)).
pub(super) const MAX_SOCKET_PATH_BYTES: usize = 107;
/// The control socket has the path of the upgrade socket with this suffix.
const CONTROL_SUFFIX_LEN: usize = ".control".len();

/// Reads the block.
pub(super) fn read_server(root: &YamlMapping<'_, '_>) -> Option<ServerConfig> {
    let map = root.read_block("server", &SERVER_KEYS)?;
    let worker_threads =
        map.read_or("threads", default_worker_threads(), |node| Some(node.read_integer(1..=256)? as usize));
    let grace_period = map.read_or("grace_period", Duration::from_secs(600), YamlNode::read_duration);
    let drain_delay = map.read_or("drain_delay", Duration::from_secs(10), YamlNode::read_duration);
    let tcp_keepalive = map.read_or("tcp_keepalive", Duration::from_secs(60), read_tcp_keepalive);
    let upgrade_socket_path = read_upgrade_socket_path(&map);
    Some(ServerConfig {
        worker_threads: worker_threads?,
        grace_period: grace_period?,
        drain_delay: drain_delay?,
        tcp_keepalive_idle: tcp_keepalive?,
        upgrade_socket_path: upgrade_socket_path?,
    })
}

/// Reads `server.upgrade_socket` alone.
pub(super) fn read_upgrade_socket_path(server: &YamlMapping<'_, '_>) -> Option<PathBuf> {
    // systemd sets the variable for `RuntimeDirectory=`.
    let directory = server.problems.environment_variable("RUNTIME_DIRECTORY");
    let directory = directory.unwrap_or_else(|| DEFAULT_RUNTIME_DIRECTORY.to_owned());
    let default_path = PathBuf::from(directory).join("upgrade.sock");
    server.read_or("upgrade_socket", default_path, |node| {
        node.read_parsed(|text| parse_socket_path(node, text))
    })
}

/// Checks that both socket paths are short enough for the kernel.
fn parse_socket_path(node: &YamlNode<'_, '_>, text: &str) -> Result<PathBuf, &'static str> {
    let path = node.resolve_path(text);
    match path.as_os_str().len() {
        _ if text.contains('\0') => Err("must be a path without NUL"),
        length if length > MAX_SOCKET_PATH_BYTES - CONTROL_SUFFIX_LEN => {
            Err("must be a path of at most 99 bytes")
        }
        _ => Ok(path),
    }
}

/// Reads the keepalive time. The kernel counts whole seconds, up to 32767 (tcp(7), `TCP_KEEPIDLE`).
fn read_tcp_keepalive(node: &YamlNode<'_, '_>) -> Option<Duration> {
    let duration = node.read_duration()?;
    let is_valid = duration.subsec_nanos() == 0 && (1..=9 * 3600).contains(&duration.as_secs());
    if is_valid { Some(duration) } else { node.report_error("must be whole seconds, 1s to 9h") }
}

/// The default of `threads`.
pub(super) fn default_worker_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(256))
}
