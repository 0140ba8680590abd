//! Turns a checked configuration into one that can serve requests: builds the gateway, resolves host
//! names and fetches secrets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;

use crate::config::Config;
use crate::gateway::{Gateway, ProcessState};
use crate::proxy::ActiveConfig;
use crate::proxy::upstream::dns::{AddressBook, Resolve, SystemResolver};
use crate::proxy::upstream::peer::{CertificateFileError, Peers};

/// How long a new configuration waits for host names to resolve. A backend whose name is not resolved
/// by then stays unavailable until it is.
const INITIAL_DNS_TIMEOUT: Duration = Duration::from_secs(3);
/// How long it waits for tokens and secrets. A backend whose credential is not there by then stays
/// unavailable until it is.
const INITIAL_SECRETS_TIMEOUT: Duration = Duration::from_secs(5);

/// Builds the active configuration and the addresses of its backends. Waits for host names and
/// secrets, but not for long. Addresses that `previous_addresses` has are kept.
///
/// # Errors
/// If a TLS file of a backend cannot be read.
pub async fn build_active_config(
    config: &Config,
    previous_addresses: &AddressBook,
    process: &Arc<ProcessState>,
) -> Result<(Arc<ActiveConfig>, AddressBook), CertificateFileError> {
    let resolver: Arc<dyn Resolve> = Arc::new(SystemResolver);
    let address_book = previous_addresses.for_next_config(config);
    address_book.spawn_refresh_tasks(&resolver);
    // Reads certificates.
    let (config_of_peers, addresses) = (config.clone(), address_book.by_backend().to_vec());
    let peers = spawn_blocking(move || Peers::new(&config_of_peers, &addresses)).await;
    let peers = match peers {
        Ok(peers) => peers?,
        // The runtime shuts down.
        Err(_) => Peers::new(config, address_book.by_backend())?,
    };
    process.certificate_expiries.set_backend_certificates(peers.client_certificates(config));
    let gateway = Gateway::new(config, Arc::clone(process), Instant::now());
    let token = config.admin.as_ref().and_then(|admin| admin.token.as_ref());
    let admin_token = token.map(|token| process.keyring.find_or_start_secret(token, &config.key_vault));
    tokio::join!(
        address_book.wait_until_resolved(INITIAL_DNS_TIMEOUT),
        process.keyring.wait_for_pending_fetches(INITIAL_SECRETS_TIMEOUT)
    );
    let active_config = ActiveConfig {
        gateway: Arc::new(gateway),
        peers,
        reloadable_listener_settings: config.listeners.clone(),
        admin_token,
    };
    Ok((Arc::new(active_config), address_book))
}
