//! A connection to the server, with or without TLS.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use openssl::ssl::{SslConnector, SslMethod};
use openssl::x509::X509;
use openssl::x509::store::{X509Store, X509StoreBuilder};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_openssl::SslStream;

use super::node_address::NodeAddress;
use super::problem::Problem;
use crate::config::RedisConfig;
use crate::files::{MAX_CA_FILE_BYTES, read_file};

/// How long the lookup of the name, the connection and the TLS handshake may take, each.
const STEP_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes in both directions.
pub(super) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for S {}

/// Connects to a server.
pub(super) async fn open_stream(
    config: &RedisConfig,
    address: &NodeAddress,
) -> Result<Box<dyn ByteStream>, Problem> {
    let stream = connect(address).await?;
    if config.endpoint.uses_tls {
        let name = address.certificate_name(&config.endpoint.host);
        Ok(Box::new(handshake(config, name, stream).await?))
    } else {
        Ok(Box::new(stream))
    }
}

/// Connects to the first address of the name that accepts.
async fn connect(address: &NodeAddress) -> Result<TcpStream, Problem> {
    let lookup = timeout(STEP_TIMEOUT, lookup_host((address.host.as_str(), address.port))).await;
    let addresses =
        lookup.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(Problem::Lookup)?;
    let connecting = async {
        let mut problem = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => problem = error,
            }
        }
        Err(problem)
    };
    let stream = timeout(STEP_TIMEOUT, connecting).await;
    let stream = stream.map_err(|_| Problem::ConnectTimeout(STEP_TIMEOUT))?.map_err(Problem::Connect)?;
    // Commands are small, and each is waited for.
    stream.set_nodelay(true).map_err(Problem::Connect)?;
    Ok(stream)
}

/// `name` is the name that the certificate has to be for.
async fn handshake(
    config: &RedisConfig,
    name: &str,
    stream: TcpStream,
) -> Result<SslStream<TcpStream>, Problem> {
    let has_own_ca = config.ca_file.is_some();
    let problem = |text: String| Problem::Tls { text, has_own_ca };
    let mut connector =
        SslConnector::builder(SslMethod::tls_client()).map_err(|error| problem(error.to_string()))?;
    if let Some(path) = &config.ca_file {
        // In place of the system's, which the connector has read.
        connector.set_cert_store(read_authorities(path).map_err(Problem::Authorities)?);
    }
    let ssl = connector.build().configure().and_then(|configuration| configuration.into_ssl(name));
    let ssl = ssl.map_err(|error| problem(error.to_string()))?;
    let mut stream = SslStream::new(ssl, stream).map_err(|error| problem(error.to_string()))?;
    match timeout(STEP_TIMEOUT, Pin::new(&mut stream).connect()).await {
        Ok(Ok(())) => Ok(stream),
        Ok(Err(error)) => Err(problem(error.to_string())),
        Err(_) => Err(Problem::Silent(STEP_TIMEOUT)),
    }
}

fn read_authorities(path: &Path) -> Result<X509Store, String> {
    let bytes = read_file(path, MAX_CA_FILE_BYTES).map_err(|error| error.to_string())?;
    let certificates = X509::stack_from_pem(&bytes).map_err(|_| "it is not a PEM file".to_owned())?;
    let mut store = X509StoreBuilder::new().map_err(|error| error.to_string())?;
    for certificate in certificates {
        store.add_cert(certificate).map_err(|error| error.to_string())?;
    }
    Ok(store.build())
}
