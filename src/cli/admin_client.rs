//! Requests of the commands to the admin API of the running process, and where that is found: `--admin`, or
//! the block `admin` of the configuration.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use http::Method;
use serde_json::Value;

use super::config_file::{ConfigArguments, DEFAULT_CONFIG_FILE};
use crate::config::{
    self, AdminAddress, AdminConfig, CertifiedKey, ConfigError, Endpoint, Environment, SecretSource,
};
use crate::outbound::{OutboundClient, OutboundError, OutboundRequest, OutboundResponse};
use crate::system_error::describe;

/// Where the admin API is asked for if neither `--admin` nor a configuration tells.
const DEFAULT_ADMIN_URL: &str = "http://127.0.0.1:9901";
/// How long a process that is being replaced is asked again, and the pause in between.
const REPLACEMENT_TIMEOUT: Duration = Duration::from_secs(15);
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// The largest file of an admin token.
const MAX_TOKEN_FILE_BYTES: u64 = 64 * 1024;
/// The maximum size of a response: enough for hundreds of backends and clients.
const MAX_RESPONSE_BYTES: usize = 64 * 1024 * 1024;

/// Where the admin API is, and what opens it.
#[derive(Args)]
pub(super) struct AdminArguments {
    /// The configuration file of the running process, whose block `admin` tells where to ask. [default:
    /// /etc/aoai-lb/aoai-lb.yaml, and without that http://127.0.0.1:9901]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A file of variables for `${NAME}` in it, in the syntax of systemd's EnvironmentFile=. [default: the file
    /// `environment` beside the configuration, if it may be read]
    #[arg(long, value_name = "FILE")]
    environment: Option<PathBuf>,
    /// The address of the admin API, in place of that in the configuration: http://…, https://…, or unix:/path.
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
    /// A file with the token of the admin API, in place of that in the configuration.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Why the admin API gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AdminError {
    /// The address is invalid.
    #[error("--admin: {0}")]
    InvalidAddress(String),
    /// The file of the token cannot be read.
    #[error("--token-file: {}: {}", path.display(), describe(problem))]
    TokenFile { path: PathBuf, problem: io::Error },
    /// The configuration cannot be read, or its block is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The configuration has no admin API.
    #[error("{} has no block `admin`, so its process cannot be asked; add one, or name another with --admin", .0.display())]
    NoAdminBlock(PathBuf),
    /// The token is where this command does not read it.
    #[error("admin.token is in a key vault: write it into a file, and name that with --token-file")]
    TokenInKeyVault,
    /// The request failed.
    #[error("cannot reach the admin API at {address}: {reason}. Is aoai-lb running with an admin block?")]
    Unreachable { address: String, reason: String },
    /// The token is missing or wrong.
    #[error("the admin API at {0} requires another token: name a file that has it with --token-file")]
    Unauthorized(String),
    /// The response is another error.
    #[error("{message}")]
    Refused { message: String },
}

/// Sends requests to the admin API.
pub(super) struct AdminClient {
    outbound_client: OutboundClient,
    target: AdminTarget,
    /// The address as a person would write it.
    address: String,
    authorization: Option<String>,
}

/// Where the admin API listens.
enum AdminTarget {
    /// By name.
    Endpoint(Endpoint),
    /// At an address, under a name that its certificate has.
    Address(Endpoint, SocketAddr),
    UnixSocket(String),
}

impl AdminArguments {
    /// Those for the process that runs with this configuration.
    pub(super) fn of_config(config: &ConfigArguments) -> Self {
        Self {
            config: Some(config.file().to_owned()),
            environment: config.environment_file().map(Path::to_owned),
            admin: None,
            token_file: None,
        }
    }
}

impl AdminClient {
    /// A client for the admin API that these arguments mean. Each of its requests may take this long.
    ///
    /// # Errors
    /// [`AdminError`].
    pub(super) fn new(arguments: &AdminArguments, timeout: Duration) -> Result<Self, AdminError> {
        let token = arguments.token_file.as_deref().map(read_token_file).transpose()?;
        let (target, address, token) = match &arguments.admin {
            // A token of the configuration is not sent to another address.
            Some(url) => (parse_target(url)?, url.clone(), token),
            None => match find_admin_config(arguments, token.is_none())? {
                None => (parse_target(DEFAULT_ADMIN_URL)?, DEFAULT_ADMIN_URL.to_owned(), token),
                Some(admin) => {
                    let (target, address) = target_of(&admin)?;
                    (target, address, token.map_or_else(|| literal_token(&admin), |token| Ok(Some(token)))?)
                }
            },
        };
        let outbound_client = OutboundClient::new(timeout).with_read_limit_bytes(MAX_RESPONSE_BYTES);
        Ok(Self {
            outbound_client,
            target,
            address,
            authorization: token.map(|token| format!("Bearer {token}")),
        })
    }

    /// Gets a path.
    ///
    /// # Errors
    /// [`AdminError`], also for a response that is not 200.
    pub(super) async fn get(&self, path: &str) -> Result<OutboundResponse, AdminError> {
        let response = self.send(Method::GET, path).await?;
        if response.status == 200 { Ok(response) } else { Err(self.refusal(&response)) }
    }

    /// Posts to a path. A process that is being replaced refuses that; its successor is asked then.
    ///
    /// # Errors
    /// As [`AdminClient::get`].
    pub(super) async fn post(&self, path: &str) -> Result<Value, AdminError> {
        let deadline = Instant::now() + REPLACEMENT_TIMEOUT;
        loop {
            let response = self.send(Method::POST, path).await?;
            match response.status {
                200 => return Ok(serde_json::from_slice(&response.body).unwrap_or_default()),
                503 if Instant::now() < deadline => tokio::time::sleep(RETRY_INTERVAL).await,
                _ => return Err(self.refusal(&response)),
            }
        }
    }

    async fn send(&self, method: Method, path: &str) -> Result<OutboundResponse, AdminError> {
        let mut headers = Vec::new();
        headers.extend(self.authorization.iter().map(|value| ("authorization", value.as_str())));
        if method == Method::POST {
            headers.push(("x-aoai-lb-admin", "1"));
        }
        let request = OutboundRequest { method, path_and_query: path, headers: &headers, body: Bytes::new() };
        let client = &self.outbound_client;
        let result = match &self.target {
            AdminTarget::Endpoint(endpoint) => client.send(endpoint, request).await,
            AdminTarget::Address(endpoint, address) => {
                client.send_to_address(endpoint, *address, request).await
            }
            AdminTarget::UnixSocket(path) => client.send_to_unix_socket(path, request).await,
        };
        result.map_err(|error| {
            let reason = match error {
                // Without its destination, which `address` names already.
                OutboundError::Transport { reason, .. } => reason,
                error => error.to_string(),
            };
            AdminError::Unreachable { address: self.address.clone(), reason }
        })
    }

    fn refusal(&self, response: &OutboundResponse) -> AdminError {
        if response.status == 401 {
            return AdminError::Unauthorized(self.address.clone());
        }
        let value: Value = serde_json::from_slice(&response.body).unwrap_or_default();
        let message = match value["error"]["message"].as_str() {
            Some(message) => message.to_owned(),
            None => format!("{} responded with {} and no message", self.address, response.status),
        };
        AdminError::Refused { message }
    }
}

fn parse_target(url: &str) -> Result<AdminTarget, AdminError> {
    match url.strip_prefix("unix:") {
        Some(path) => Ok(AdminTarget::UnixSocket(path.to_owned())),
        None => Endpoint::parse(url)
            .map(AdminTarget::Endpoint)
            .map_err(|reason| AdminError::InvalidAddress(reason.to_owned())),
    }
}

fn read_token_file(path: &Path) -> Result<String, AdminError> {
    // A FIFO is welcome here, such as that of a shell's `<(command)`.
    let mut contents = String::new();
    let file = File::open(path).map(|file| file.take(MAX_TOKEN_FILE_BYTES));
    match file.and_then(|mut file| file.read_to_string(&mut contents)) {
        Ok(_) => Ok(contents.trim().to_owned()),
        Err(problem) => Err(AdminError::TokenFile { path: path.to_owned(), problem }),
    }
}

/// The block `admin` of the file, if there is a file. The rest of it may be invalid.
fn find_admin_config(
    arguments: &AdminArguments,
    needs_token: bool,
) -> Result<Option<AdminConfig>, AdminError> {
    let load = |path: &Path| {
        // Warnings about it are for those commands that check the file.
        let (environment, _) = Environment::load(arguments.environment.as_deref(), path)?;
        config::load_admin(path, needs_token, &|name| environment.variable(name))
    };
    let default_file = Path::new(DEFAULT_CONFIG_FILE);
    match arguments.config.as_deref() {
        Some(path) => load(path)?.map(Some).ok_or_else(|| AdminError::NoAdminBlock(path.to_owned())),
        // There is none, or this user may not read it.
        None if File::open(default_file).is_err() => Ok(None),
        None => match load(default_file) {
            Ok(Some(admin)) => Ok(Some(admin)),
            Ok(None) => Err(AdminError::NoAdminBlock(default_file.to_owned())),
            Err(problems) => {
                // It may be in the middle of a change; the process goes on with what it has.
                let _ = writeln!(io::stderr(), "{problems}\nwarning: trying {DEFAULT_ADMIN_URL}");
                Ok(None)
            }
        },
    }
}

/// Where the process of this configuration listens, from the same machine.
fn target_of(admin: &AdminConfig) -> Result<(AdminTarget, String), AdminError> {
    let socket = match &admin.address {
        AdminAddress::Unix(path) => {
            let path = path.display().to_string();
            let address = format!("unix:{path}");
            return Ok((AdminTarget::UnixSocket(path), address));
        }
        AdminAddress::Tcp(address) => SocketAddr::new(reachable_ip(address.ip()), address.port()),
    };
    let Some(tls) = &admin.tls else {
        let url = format!("http://{socket}");
        return Ok((parse_target(&url)?, url));
    };
    // The certificate is verified for one of its names.
    let names = tls.certified_key_files.first().and_then(|files| CertifiedKey::from_files(files).ok());
    let name = names.and_then(|pair| pair.dns_names().into_iter().find(|name| !name.starts_with("*.")));
    let url = match name {
        Some(name) => format!("https://{name}:{}", socket.port()),
        None => format!("https://{socket}"),
    };
    let endpoint = Endpoint::parse(&url).map_err(|reason| AdminError::InvalidAddress(reason.to_owned()))?;
    Ok((AdminTarget::Address(endpoint, socket), format!("{url} ({socket})")))
}

/// An address on which all addresses listen is reached by loopback.
fn reachable_ip(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

fn literal_token(admin: &AdminConfig) -> Result<Option<String>, AdminError> {
    match &admin.token {
        None => Ok(None),
        Some(SecretSource::Literal(secret)) => Ok(Some(secret.expose_secret().to_owned())),
        Some(SecretSource::KeyVault(_)) => Err(AdminError::TokenInKeyVault),
    }
}
