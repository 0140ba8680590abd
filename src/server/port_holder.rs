//! Finds the processes that listen on a port, from `/proc`.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

/// The state of a listening socket in `/proc/net/tcp` (proc(5), and `TCP_LISTEN` of the kernel).
const LISTEN_STATE: &str = "0A";
/// The most processes that are shown.
const MAX_SHOWN_PROCESSES: usize = 3;

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    /// The name of its executable, cut by the kernel at 15 bytes.
    pub(super) name: String,
}

/// Who listens on an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PortHolder {
    /// These processes share the socket.
    Processes(Vec<Process>),
    /// A process of this user, which this process may not look into.
    ProcessOfUser(u32),
    /// Nothing is known.
    Unknown,
}

/// A listening socket.
#[derive(Debug, PartialEq, Eq)]
struct ListeningSocket {
    address: SocketAddr,
    user_id: u32,
    inode: u64,
}

impl PortHolder {
    /// Who listens on this address, or on one that includes it.
    pub(super) fn find(address: SocketAddr) -> Self {
        Self::find_in(Path::new("/proc"), address)
    }

    fn find_in(proc: &Path, address: SocketAddr) -> Self {
        // Those of the own network namespace.
        let tables = ["self/net/tcp", "self/net/tcp6"].map(|table| fs::read_to_string(proc.join(table)));
        let sockets = tables.iter().flatten().flat_map(|table| table.lines().filter_map(parse_socket));
        let sockets: Vec<_> = sockets.filter(|socket| excludes_listening(socket.address, address)).collect();
        let processes = processes_with_sockets(proc, &sockets);
        match sockets.first() {
            _ if !processes.is_empty() => Self::Processes(processes),
            Some(socket) => Self::ProcessOfUser(socket.user_id),
            None => Self::Unknown,
        }
    }

    /// Whether one of the processes has this id.
    pub(super) fn has_pid(&self, pid: u32) -> bool {
        matches!(self, Self::Processes(processes) if processes.iter().any(|process| process.pid == pid))
    }

    /// Whether the processes are called like this.
    pub(super) fn is_named(&self, name: &str) -> bool {
        matches!(self, Self::Processes(processes) if processes.iter().all(|process| process.name == name))
    }
}

impl fmt::Display for PortHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Processes(processes) => {
                let mut names: Vec<&str> = processes.iter().map(|process| process.name.as_str()).collect();
                names.dedup();
                let mut pids: Vec<String> = processes
                    .iter()
                    .take(MAX_SHOWN_PROCESSES)
                    .map(|process| process.pid.to_string())
                    .collect();
                if processes.len() > MAX_SHOWN_PROCESSES {
                    pids.push("…".to_owned());
                }
                let word = if processes.len() == 1 { "process" } else { "processes" };
                write!(f, "{} ({word} {})", names.join(", "), pids.join(", "))
            }
            Self::ProcessOfUser(user_id) => {
                write!(f, "a process of the user with id {user_id}, which only root can see")
            }
            Self::Unknown => f.write_str("another process"),
        }
    }
}

/// Whether a socket that listens on `taken` excludes another one on `wanted`. `[::]` includes IPv4.
fn excludes_listening(taken: SocketAddr, wanted: SocketAddr) -> bool {
    let (taken_ip, wanted_ip) = (taken.ip().to_canonical(), wanted.ip().to_canonical());
    let includes = |wide: IpAddr, other: IpAddr| wide.is_unspecified() && (wide.is_ipv6() || other.is_ipv4());
    let overlap = taken_ip == wanted_ip || includes(taken_ip, wanted_ip) || includes(wanted_ip, taken_ip);
    taken.port() == wanted.port() && overlap
}

/// A line of `/proc/net/tcp` or `tcp6`; `None` if its socket does not listen.
fn parse_socket(line: &str) -> Option<ListeningSocket> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (address, state) = (fields.get(1)?, fields.get(3)?);
    (*state == LISTEN_STATE).then_some(())?;
    Some(ListeningSocket {
        address: parse_address(address)?,
        user_id: fields.get(7)?.parse().ok()?,
        inode: fields.get(9)?.parse().ok()?,
    })
}

/// An address as four-byte words in the byte order of the machine, in hexadecimal, and a port.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let words = ip.as_bytes().chunks(8).map(|word| {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        Some(word.to_ne_bytes())
    });
    let bytes = words.collect::<Option<Vec<_>>>()?.concat();
    let ip = match bytes.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// The processes that have one of these sockets open, by their id. Those of other users are seen by root only.
fn processes_with_sockets(proc: &Path, sockets: &[ListeningSocket]) -> Vec<Process> {
    let links: HashSet<String> = sockets.iter().map(|socket| format!("socket:[{}]", socket.inode)).collect();
    if links.is_empty() {
        return Vec::new();
    }
    let mut processes = Vec::new();
    for entry in fs::read_dir(proc).into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let mut files = fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
        let has_socket = files.any(|file| {
            let target = fs::read_link(file.path()).ok();
            target.is_some_and(|target| target.to_str().is_some_and(|target| links.contains(target)))
        });
        if has_socket {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            // Any program may choose its name.
            let name: String = name.trim().chars().filter(char::is_ascii_graphic).collect();
            processes.push(Process { pid, name });
        }
    }
    processes.sort_by_key(|process| process.pid);
    processes
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn lines_of_the_kernel_are_read() {
        // As on a little-endian machine, which all that the kernel's examples are from are.
        let v4 = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  998        0 41234 1 0000 100 0";
        let v6 = "   1: 00000000000000000000000001000000:01BB 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7 1";
        let connected = v4.replace(" 0A ", " 01 ");
        if cfg!(target_endian = "little") {
            let socket = |address: &str, user_id, inode| {
                Some(ListeningSocket { address: address.parse().unwrap(), user_id, inode })
            };
            assert_eq!(parse_socket(v4), socket("127.0.0.1:8080", 998, 41234));
            assert_eq!(parse_socket(v6), socket("[::1]:443", 0, 7));
        }
        for line in
            [&connected, "", "  sl  local_address rem_address   st tx_queue", "0: x:y z 0A a b c d e f"]
        {
            assert_eq!(parse_socket(line), None, "{line}");
        }
    }

    #[test]
    fn an_address_that_includes_another_excludes_it() {
        for (taken, wanted, expected) in [
            ("127.0.0.1:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "127.0.0.1:2", false),
            ("0.0.0.0:1", "127.0.0.1:1", true),
            ("[::]:1", "127.0.0.1:1", true),
            ("[::ffff:127.0.0.1]:1", "127.0.0.1:1", true),
            ("127.0.0.2:1", "127.0.0.1:1", false),
            ("127.0.0.1:1", "[::]:1", true),
            ("[::1]:1", "0.0.0.0:1", false),
        ] {
            let overlap = excludes_listening(taken.parse().unwrap(), wanted.parse().unwrap());
            assert_eq!(overlap, expected, "{taken} {wanted}");
        }
    }

    #[test]
    fn the_holder_of_a_port_is_found_by_its_socket() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let taken = listener.local_addr().unwrap();
            let holder = PortHolder::find(taken);
            assert!(holder.has_pid(std::process::id()), "{holder:?}");
            assert!(holder.to_string().contains(&format!("(process {})", std::process::id())), "{holder}");
            drop(listener);
            assert_eq!(PortHolder::find(taken), PortHolder::Unknown);
        }
    }

    #[test]
    fn holders_are_shown_by_name_and_id() {
        let process = |pid, name: &str| Process { pid, name: name.to_owned() };
        let workers = (1..=5).map(|pid| process(pid, "nginx")).collect();
        for (holder, expected) in [
            (PortHolder::Processes(vec![process(7, "nginx")]), "nginx (process 7)"),
            (PortHolder::Processes(workers), "nginx (processes 1, 2, 3, …)"),
            (PortHolder::ProcessOfUser(33), "a process of the user with id 33, which only root can see"),
            (PortHolder::Unknown, "another process"),
        ] {
            assert_eq!(holder.to_string(), expected);
        }
    }
}
