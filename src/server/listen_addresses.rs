//! The addresses that the process listens on: checks that they are free before Pingora binds them, waits until it
//! has, and says who holds one that is taken.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::TcpSocket;
use tokio::time::sleep;

use super::port_holder::PortHolder;
use super::start_error::StartError;
use super::upgrade::running_process_id;
use crate::config::{AdminAddress, Config};
use crate::proxy::upstream::live_check::CheckFinding;
use crate::system_error::describe;

/// The name of a process of this program.
const OWN_NAME: &str = "aoai-lb";
/// How long the listeners may take to listen.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How often [`wait_until_listening`] looks.
const LISTEN_POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Checks that every address can be bound, except for `inherited` ones, whose sockets come from the
/// predecessor. Pingora panics if it cannot bind an address; this reports the key of the file.
///
/// # Errors
/// [`StartError::Listen`] for the first address that cannot be bound.
pub fn check_addresses_are_free(config: &Config, inherited: &[String]) -> Result<(), StartError> {
    for (key, address) in tcp_addresses_by_config_key(config) {
        if inherited.contains(&address.to_string()) {
            continue;
        }
        bind_and_release(address).map_err(|error| StartError::Listen {
            key,
            address: address.to_string(),
            reason: describe_bind_error(address, &error),
        })?;
    }
    Ok(())
}

/// Waits until Pingora listens on every TCP address.
///
/// # Errors
/// [`StartError::Listen`] if it takes too long.
pub(super) async fn wait_until_listening(config: &Config) -> Result<(), StartError> {
    let deadline = Instant::now() + LISTEN_TIMEOUT;
    for (key, address) in tcp_addresses_by_config_key(config) {
        // An address in use cannot be bound again. Port 0 always can, so it is not waited for.
        while address.port() != 0 && bind_and_release(address).is_ok() {
            if Instant::now() >= deadline {
                let reason = format!("it did not begin to listen within {LISTEN_TIMEOUT:?}");
                return Err(StartError::Listen { key, address: address.to_string(), reason });
            }
            sleep(LISTEN_POLL_INTERVAL).await;
        }
    }
    Ok(())
}

/// Checks whether this process could listen on each address. One that the running process of the same configuration
/// holds is no problem.
pub async fn check_addresses(config: &Config) -> Vec<CheckFinding> {
    let running_process = running_process_id(&config.server.upgrade_socket_path).await;
    let tcp = tcp_addresses_by_config_key(config).map(|(key, address)| {
        let result = match bind_and_release(address) {
            Ok(()) => Ok(format!("{address} is free")),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let holder = PortHolder::find(address);
                if is_running_process(&holder, &running_process) {
                    Ok(format!("{address} is in use by the running aoai-lb, {holder}"))
                } else {
                    Err(format!("cannot listen on {address}: {}", describe_taken_address(&holder)))
                }
            }
            Err(error) => {
                Err(format!("cannot listen on {address}: {}", describe_bind_error(address, &error)))
            }
        };
        let subject = key.strip_suffix(".address").unwrap_or(&key).to_owned();
        CheckFinding { subject, checked_item: "address".to_owned(), result }
    });
    tcp.collect()
}

/// Whether the holder is the process that runs with this configuration. If this user may not ask that process, its
/// name decides.
fn is_running_process(holder: &PortHolder, running_process: &io::Result<u32>) -> bool {
    match running_process {
        // As the same user, this process sees the owner of the socket, but not into the other process.
        Ok(pid) => holder.has_pid(*pid) || matches!(holder, PortHolder::ProcessOfUser(_)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => holder.is_named(OWN_NAME),
        Err(_) => false,
    }
}

/// Why an address cannot be bound, and who holds it if it is taken.
fn describe_bind_error(address: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => describe_taken_address(&PortHolder::find(address)),
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 are for root and for processes with the capability \
                                            CAP_NET_BIND_SERVICE, which the unit of the package has"
                .to_owned()
        }
        _ => describe(error),
    }
}

fn describe_taken_address(holder: &PortHolder) -> String {
    let hint = if holder.is_named(OWN_NAME) {
        "; `aoai-lb upgrade` replaces a running process, another one needs other addresses"
    } else {
        "; stop it, or use another address"
    };
    format!("it is taken by {holder}{hint}")
}

/// All addresses in the spelling of Pingora, which matches inherited sockets by it.
pub(super) fn listen_addresses(config: &Config) -> Vec<String> {
    let admin = config.admin.as_ref().map(|admin| match &admin.address {
        AdminAddress::Tcp(address) => address.to_string(),
        AdminAddress::Unix(path) => path.display().to_string(),
    });
    config.listeners.iter().map(|listener| listener.address.to_string()).chain(admin).collect()
}

/// The TCP addresses and their keys in the file.
fn tcp_addresses_by_config_key(config: &Config) -> impl Iterator<Item = (String, SocketAddr)> {
    let listeners = config.listeners.iter().enumerate();
    let listeners = listeners.map(|(n, listener)| (format!("listeners[{n}].address"), listener.address));
    let admin = match config.admin.as_ref().map(|admin| &admin.address) {
        Some(AdminAddress::Tcp(address)) => Some(("admin.address".to_owned(), *address)),
        _ => None,
    };
    listeners.chain(admin)
}

/// Binds an address with the socket options of Pingora, and releases it. It does not listen, since a
/// client that connected in between would be dropped.
fn bind_and_release(address: SocketAddr) -> io::Result<()> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)
}
