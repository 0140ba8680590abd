//! The addresses that the process listens on: checks that they are free before Pingora binds them, and
//! waits until it has.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::TcpSocket;
use tokio::time::sleep;

use super::start_error::StartError;
use crate::config::{AdminAddress, Config};

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
        let listen_error = |problem| StartError::Listen { key, address: address.to_string(), problem };
        bind_and_release(address).map_err(listen_error)?;
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
                let problem = io::Error::from(io::ErrorKind::TimedOut);
                return Err(StartError::Listen { key, address: address.to_string(), problem });
            }
            sleep(LISTEN_POLL_INTERVAL).await;
        }
    }
    Ok(())
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
