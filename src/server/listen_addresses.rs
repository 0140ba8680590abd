//! The addresses that the process listens on: whether they are free, and whether they are listened on.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::TcpSocket;
use tokio::time::sleep;

use super::start_error::StartError;
use crate::config::{AdminAddress, Config};

/// The most that the listeners may take to listen.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How often that is looked at.
const LISTEN_POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Whether every address can be listened on that is not `inherited`. The engine panics where it
/// cannot; an operator is told what is wrong instead.
///
/// # Errors
/// [`StartError::Listen`] for the first that cannot.
pub fn check_addresses_are_free(config: &Config, inherited: &[String]) -> Result<(), StartError> {
    for (key, address) in tcp_addresses_by_key(config) {
        if inherited.contains(&address.to_string()) {
            continue;
        }
        let listen_error = |problem| StartError::Listen { key, address: address.to_string(), problem };
        try_bind(address).map_err(listen_error)?;
    }
    Ok(())
}

/// Waits until every listener listens.
pub(super) async fn wait_until_listening(config: &Config) -> Result<(), StartError> {
    let deadline = Instant::now() + LISTEN_TIMEOUT;
    for (key, address) in tcp_addresses_by_key(config) {
        // What is listened on cannot be bound once more.
        while address.port() != 0 && try_bind(address).is_ok() {
            if Instant::now() >= deadline {
                let problem = io::Error::from(io::ErrorKind::TimedOut);
                return Err(StartError::Listen { key, address: address.to_string(), problem });
            }
            sleep(LISTEN_POLL_INTERVAL).await;
        }
    }
    Ok(())
}

/// All addresses as the engine spells them.
pub(super) fn listen_addresses(config: &Config) -> Vec<String> {
    let admin = config.admin.as_ref().map(|admin| match &admin.address {
        AdminAddress::Tcp(address) => address.to_string(),
        AdminAddress::Unix(path) => path.display().to_string(),
    });
    config.listeners.iter().map(|listener| listener.address.to_string()).chain(admin).collect()
}

/// All TCP addresses and their keys.
fn tcp_addresses_by_key(config: &Config) -> impl Iterator<Item = (String, SocketAddr)> {
    let listeners = config.listeners.iter().enumerate();
    let listeners = listeners.map(|(n, listener)| (format!("listeners[{n}].address"), listener.address));
    let admin = match config.admin.as_ref().map(|admin| &admin.address) {
        Some(AdminAddress::Tcp(address)) => Some(("admin.address".to_owned(), *address)),
        _ => None,
    };
    listeners.chain(admin)
}

/// Takes the address as the engine will, without listening: nobody is to be accepted and then
/// dropped.
fn try_bind(address: SocketAddr) -> io::Result<()> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)
}
