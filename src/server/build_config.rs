//! Makes a configuration ready to serve requests: looks up host names, fetches secrets, and builds
//! the gateway.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::gateway::{Gateway, ProcessState};
use crate::proxy::ActiveConfig;
use crate::proxy::upstream::dns::{AddressBook, Resolve, SystemResolver};
use crate::proxy::upstream::peer::{CaError, Peers};

/// How long a new configuration waits for names to resolve; a backend whose name has not is left
/// out until it has.
const INITIAL_DNS_TIMEOUT: Duration = Duration::from_secs(3);
/// How long it waits for tokens and secrets; a backend whose has not come is left out until it has.
const INITIAL_SECRETS_TIMEOUT: Duration = Duration::from_secs(5);

/// A configuration ready to serve, with names looked up and secrets fetched as far as that goes
/// quickly.
///
/// # Errors
/// When a file of a backend's TLS cannot be read.
pub async fn build_active_config(
    config: &Config,
    previous_addresses: &AddressBook,
    process: &Arc<ProcessState>,
) -> Result<(Arc<ActiveConfig>, AddressBook), CaError> {
    let resolver: Arc<dyn Resolve> = Arc::new(SystemResolver);
    let address_book = previous_addresses.for_next_config(config);
    address_book.spawn_refresh_tasks(&resolver);
    let peers = Peers::new(config, address_book.by_backend())?;
    let gateway = Gateway::new(config, Arc::clone(process), Instant::now());
    let token = config.admin.as_ref().and_then(|admin| admin.token.as_ref());
    let admin_token = token.map(|token| process.keyring.secret(token, &config.key_vault));
    tokio::join!(
        address_book.wait_until_resolved(INITIAL_DNS_TIMEOUT),
        process.keyring.wait_for_pending_fetches(INITIAL_SECRETS_TIMEOUT)
    );
    let active_config =
        ActiveConfig { gateway: Arc::new(gateway), peers, listeners: config.listeners.clone(), admin_token };
    Ok((Arc::new(active_config), address_book))
}
