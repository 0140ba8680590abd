//! Reads and checks `server`: threads, shutdown, keepalive, the upgrade socket and the state directory.

use std::path::PathBuf;
use std::time::Duration;

use super::shared::is_writable;
use crate::config::schema::ServerConfig;
use crate::config::yaml::{YamlMapping, YamlNode};

pub(super) const SERVER_KEYS: [&str; 6] =
    ["threads", "grace_period", "drain_delay", "tcp_keepalive", "upgrade_socket", "state_directory"];

/// The directory of the upgrade socket if neither the file nor systemd names one.
const DEFAULT_RUNTIME_DIRECTORY: &str = "/run/aoai-lb";
/// The state directory if neither the file nor systemd names one.
const DEFAULT_STATE_DIRECTORY: &str = "/var/lib/aoai-lb";
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
    let state_directory = read_state_directory(&map);
    Some(ServerConfig {
        worker_threads: worker_threads?,
        grace_period: grace_period?,
        drain_delay: drain_delay?,
        tcp_keepalive_idle: tcp_keepalive?,
        upgrade_socket_path: upgrade_socket_path?,
        state_directory: Some(state_directory?),
    })
}

/// Reads `server.state_directory`. One that is missing is created at a start.
fn read_state_directory(server: &YamlMapping<'_, '_>) -> Option<PathBuf> {
    // systemd sets the variable for `StateDirectory=`; several are separated by colons (systemd.exec(5)).
    let directories = server.problems.environment_variable("STATE_DIRECTORY").unwrap_or_default();
    let first = directories.split(':').next().filter(|first| !first.is_empty());
    let default_path = PathBuf::from(first.unwrap_or(DEFAULT_STATE_DIRECTORY));
    server.read_or("state_directory", default_path, |node| {
        let path = node.read_file_path()?;
        if path.exists() && !path.is_dir() {
            node.report_unusable_path("must be a directory, and is a file");
        } else if path.is_dir() && !is_writable(&path) {
            node.report_warning("cannot be written to by this user");
        }
        Some(path)
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::{CheckedConfig, parse_and_check_yaml};

    fn check(server: &str, directory: &Path, state_directory: Option<&str>) -> CheckedConfig {
        let text = format!(
            "listeners: [ {{ address: '127.0.0.1:1' }} ]\nclients: open\n\
             backends: [ {{ name: a, endpoint: 'https://a.b', credential: {{ api_key: k }} }} ]\n{server}"
        );
        let env =
            |name: &str| (name == "STATE_DIRECTORY").then(|| state_directory.map(str::to_owned)).flatten();
        parse_and_check_yaml(&text, directory, &env).unwrap()
    }

    #[test]
    fn the_state_directory_is_the_files_or_the_first_of_systemd_or_the_usual_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = |server, variable| check(server, directory.path(), variable).config.server.state_directory;
        let own = directory.path().join("own");
        for (server, variable, expected) in [
            ("", None, Path::new("/var/lib/aoai-lb")),
            ("", Some(""), Path::new("/var/lib/aoai-lb")),
            ("", Some("/var/lib/x"), Path::new("/var/lib/x")),
            ("", Some("/var/lib/x:/var/lib/y"), Path::new("/var/lib/x")),
            ("server: { state_directory: own }", Some("/var/lib/x"), &own),
        ] {
            assert_eq!(path(server, variable).as_deref(), Some(expected), "{server} {variable:?}");
        }
    }

    #[test]
    fn a_state_directory_that_is_a_file_is_an_unusable_path_and_one_that_is_missing_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let unusable = |server| {
            let checked = check(server, directory.path(), None);
            assert_eq!(checked.warnings, []);
            checked.unusable_paths.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(unusable("server: { state_directory: x }"), Vec::<String>::new());
        std::fs::write(directory.path().join("x"), "").unwrap();
        assert_eq!(
            unusable("server: { state_directory: x }"),
            ["server.state_directory: must be a directory, and is a file"]
        );
    }
}
