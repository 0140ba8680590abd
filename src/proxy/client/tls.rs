//! TLS towards clients: versions and ciphers as configured, the certificate for the server name (SNI),
//! reloading of certificates when their files change, and client certificates.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use log::{debug, error, info, warn};
use openssl::error::ErrorStack;
use openssl::ssl::{
    AlpnError, NameType, SslAcceptor, SslMethod, SslOptions, SslRef, SslSessionCacheMode, SslVerifyMode,
    SslVersion, select_next_proto,
};
use openssl::x509::X509;
use openssl::x509::store::X509StoreBuilder;
use pingora::listeners::TlsAccept;
use pingora::protocols::tls::server::handshake_with_callback;
use pingora::protocols::{Digest, Peek, Stream, l4};
use pingora::tls::ext;
use tokio::time::timeout_at;

use crate::admission::certificate_subject::certificate_subject;
use crate::config::{
    CertifiedKey, CertifiedKeyError, ListenerConfig, ServerTlsConfig, TlsVersion, certificate_expires_at,
};
use crate::gateway::CertificateExpiries;
use crate::names::CertificateSubject;
use crate::proxy::upstream::peer::{CertificateFileError, load_ca_certificates};
use crate::refusal::Refusal;

/// The protocols of a listener with HTTP/2, in its order of preference: each with its length (RFC 7301, section
/// 3.1).
const H2_OR_HTTP11: &[u8] = b"\x02h2\x08http/1.1";
/// How often the files are checked for changes.
const FILE_POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Why TLS cannot be set up for a listener.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate or private key cannot be used.
    #[error("{0}")]
    KeyPair(#[from] CertifiedKeyError),
    /// The authorities of client certificates cannot be used.
    #[error("client_ca: {0}")]
    Authority(#[from] CertificateFileError),
    /// OpenSSL refuses the versions or ciphers.
    #[error("{0}")]
    Settings(String),
}

/// Why there is no TLS connection with a client.
pub(crate) enum AcceptError {
    /// The client sends HTTP without TLS. Nothing has been read of it yet.
    PlainHttp(Stream),
    /// The handshake failed, or was not complete in time.
    Failed,
}

/// What a client is told that sends HTTP without TLS.
pub(crate) fn plain_http_refusal() -> Refusal {
    Refusal::bad_request("this port speaks HTTPS, and the request came without TLS: use https:// in the URL")
}

impl From<ErrorStack> for TlsError {
    fn from(error: ErrorStack) -> Self {
        Self::Settings(error.to_string())
    }
}

/// What the TLS handshake of a connection has shown. Pingora keeps it in the connection's digest.
#[derive(Clone, Debug, Default)]
pub struct TlsConnectionInfo {
    /// The listener; `None` for the admin API.
    pub listener: Option<Arc<ListenerConfig>>,
    /// The subject of the verified client certificate; `None` if none is required.
    pub certificate_subject: Option<CertificateSubject>,
}

/// The TLS of one listener, or of the admin API.
pub struct ServerTls {
    /// What this is called in the log.
    log_name: String,
    tls_config: ServerTlsConfig,
    /// `None` for the admin API.
    listener: Option<Arc<ListenerConfig>>,
    /// Replaced when the files change.
    certificates: ArcSwap<CertificateSet>,
    certificate_expiries: Arc<CertificateExpiries>,
    acceptor: SslAcceptor,
}

/// The certificates in the files when these were last valid.
struct CertificateSet {
    /// Each with its DNS names. The first is for clients that send no server name or an unknown one.
    certified_keys: Vec<(CertifiedKey, Vec<String>)>,
    /// The authorities of client certificates; empty if clients need none.
    client_ca_certificates: Vec<X509>,
}

impl CertificateSet {
    fn read(tls: &ServerTlsConfig) -> Result<Self, TlsError> {
        let read_key_pair = |files| {
            let pair = CertifiedKey::from_files(files)?;
            if let Some(problem) = pair.validity_problem(SystemTime::now()) {
                return Err(CertifiedKeyError::Certificate(problem));
            }
            let names = pair.dns_names();
            Ok((pair, names))
        };
        let certified_keys =
            tls.certified_key_files.iter().map(read_key_pair).collect::<Result<_, CertifiedKeyError>>()?;
        let client_ca_certificates = match &tls.client_ca_file {
            Some(path) => load_ca_certificates(path)?.into_vec(),
            None => Vec::new(),
        };
        Ok(Self { certified_keys, client_ca_certificates })
    }

    /// The certificate for a server name: one with exactly this name, else one with a wildcard for it, else
    /// the first.
    fn certified_key_for_host(&self, host: Option<&str>) -> Option<&CertifiedKey> {
        let by_host = host.and_then(|host| {
            let host = host.to_ascii_lowercase();
            let wildcard = host.split_once('.').map(|(_, domain)| format!("*.{domain}"));
            let find = |name: &str| {
                self.certified_keys.iter().find(|(_, names)| names.iter().any(|own| own == name))
            };
            find(&host).or_else(|| find(&wildcard?))
        });
        by_host.or(self.certified_keys.first()).map(|(pair, _)| pair)
    }
}

impl ServerTls {
    /// The TLS of a listener. Reads its files, and tells `certificate_expiries` when they expire.
    ///
    /// # Errors
    /// [`TlsError`] if a file is missing or a key does not belong to its certificate.
    pub fn for_listener(
        listener: &ListenerConfig,
        tls: &ServerTlsConfig,
        certificate_expiries: Arc<CertificateExpiries>,
    ) -> Result<Arc<Self>, TlsError> {
        let name = format!("listener {}", listener.address);
        Self::new(name, tls, listener.http2_enabled, Some(Arc::new(listener.clone())), certificate_expiries)
    }

    /// The TLS of the admin API.
    ///
    /// # Errors
    /// As [`ServerTls::for_listener`].
    pub fn for_admin(
        tls: &ServerTlsConfig,
        certificate_expiries: Arc<CertificateExpiries>,
    ) -> Result<Arc<Self>, TlsError> {
        Self::new("admin".to_owned(), tls, false, None, certificate_expiries)
    }

    fn new(
        name: String,
        tls: &ServerTlsConfig,
        http2: bool,
        listener: Option<Arc<ListenerConfig>>,
        certificate_expiries: Arc<CertificateExpiries>,
    ) -> Result<Arc<Self>, TlsError> {
        let certificates = CertificateSet::read(tls)?;
        let acceptor = build_acceptor(tls, http2)?;
        let server_tls = Self {
            log_name: name,
            tls_config: tls.clone(),
            listener,
            certificates: ArcSwap::from_pointee(certificates),
            certificate_expiries,
            acceptor,
        };
        server_tls.report_expiries();
        Ok(Arc::new(server_tls))
    }

    /// Reports when the certificates in use expire.
    fn report_expiries(&self) {
        let certificates = self.certificates.load();
        for (files, (pair, _)) in self.tls_config.certified_key_files.iter().zip(&certificates.certified_keys)
        {
            if let Some(expires_at) = certificate_expires_at(&pair.leaf) {
                self.certificate_expiries.on_listener_loaded(
                    &files.certificate_path,
                    &self.log_name,
                    expires_at,
                );
            }
        }
    }

    /// Makes the TLS handshake on a connection that has just been accepted.
    ///
    /// # Errors
    /// [`AcceptError`], also if it is not complete at the deadline.
    pub(crate) async fn accept(
        self: &Arc<Self>,
        stream: Stream,
        deadline: Instant,
    ) -> Result<Stream, AcceptError> {
        let address = stream.get_socket_digest().and_then(|digest| digest.peer_addr().cloned());
        let address = address.map_or_else(|| "a client".to_owned(), |address| address.to_string());
        // Pingora's listeners without TLS pass their sockets as this type.
        let mut socket =
            stream.into_any().downcast::<l4::stream::Stream>().map_err(|_| AcceptError::Failed)?;
        let callbacks = HandshakeCallbacks(Arc::clone(self));
        let handshake = async {
            let mut first_byte = [0];
            let is_http =
                socket.try_peek(&mut first_byte).await.is_ok() && first_byte[0].is_ascii_alphabetic();
            if is_http {
                Ok(Err(socket))
            } else {
                handshake_with_callback(&self.acceptor, *socket, &callbacks).await.map(Ok)
            }
        };
        match timeout_at(deadline.into(), handshake).await {
            Ok(Ok(Ok(stream))) => return Ok(Box::new(stream)),
            Ok(Ok(Err(socket))) => return Err(AcceptError::PlainHttp(socket)),
            Ok(Err(error)) => debug!("{}: TLS handshake with {address} failed: {error}", self.log_name),
            Err(_) => debug!("{}: TLS handshake with {address} was not complete in time", self.log_name),
        }
        Err(AcceptError::Failed)
    }

    /// Starts a task that reloads the files when they change. As long as they are invalid, it tries again: a
    /// certificate may become valid later.
    pub fn watch_files(self: &Arc<Self>) {
        let server_tls = Arc::clone(self);
        tokio::spawn(async move {
            let mut last_stamps = server_tls.file_stamps().await;
            let mut are_invalid = false;
            loop {
                tokio::time::sleep(FILE_POLL_INTERVAL).await;
                let stamps = server_tls.file_stamps().await;
                let have_changed = stamps != last_stamps;
                if have_changed || are_invalid {
                    last_stamps = stamps;
                    let server_tls = Arc::clone(&server_tls);
                    // Reads files; a panic in it has been logged.
                    let reload = move || server_tls.reload_files(have_changed);
                    are_invalid = !tokio::task::spawn_blocking(reload).await.unwrap_or(false);
                }
            }
        });
    }

    /// Modification time and size of each file, which show that it has changed; `None` for a missing file.
    async fn file_stamps(&self) -> Vec<Option<(SystemTime, u64)>> {
        let files = self
            .tls_config
            .certified_key_files
            .iter()
            .flat_map(|pair| [&pair.certificate_path, &pair.private_key_path]);
        let mut stamps = Vec::new();
        for path in files.chain(&self.tls_config.client_ca_file) {
            let file = tokio::fs::metadata(path).await.ok();
            stamps.push(file.and_then(|file| Some((file.modified().ok()?, file.len()))));
        }
        stamps
    }

    /// Puts the files into use if they are valid. Returns whether they are.
    fn reload_files(&self, logs_problem: bool) -> bool {
        let name = &self.log_name;
        match CertificateSet::read(&self.tls_config) {
            Ok(certificates) => {
                self.certificates.store(Arc::new(certificates));
                self.report_expiries();
                info!("{name}: new certificates are in use");
                true
            }
            // Certificate and key are often replaced one after the other. The second change leads here again.
            Err(error) => {
                if logs_problem {
                    warn!("{name}: the old certificates stay in use: tls.{error}");
                }
                false
            }
        }
    }
}

/// The versions, ciphers and protocols of a listener. Certificates are chosen in [`HandshakeCallbacks`] during
/// each handshake, so that a reload of the files takes effect at once.
fn build_acceptor(tls: &ServerTlsConfig, http2: bool) -> Result<SslAcceptor, TlsError> {
    let mut settings = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls())?;
    settings.set_min_proto_version(Some(match tls.minimum_version {
        TlsVersion::Tls12 => SslVersion::TLS1_2,
        TlsVersion::Tls13 => SslVersion::TLS1_3,
    }))?;
    if let Some(ciphers) = &tls.tls12_ciphers {
        settings.set_cipher_list(ciphers)?;
    }
    if let Some(ciphersuites) = &tls.tls13_ciphersuites {
        settings.set_ciphersuites(ciphersuites)?;
    }
    if http2 {
        settings.set_alpn_select_callback(|_, offered| {
            select_next_proto(H2_OR_HTTP11, offered).ok_or(AlpnError::NOACK)
        });
    }
    if tls.client_ca_file.is_some() {
        settings.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
        // No session resumption, because a resumed session does not verify the client certificate again: it may
        // have expired meanwhile, or its authority may have been removed. Tickets and the session cache are two
        // ways of resumption, so both are switched off.
        settings.set_options(SslOptions::NO_TICKET);
        settings.set_session_cache_mode(SslSessionCacheMode::OFF);
    }
    Ok(settings.build())
}

/// Called by Pingora during each TLS handshake.
struct HandshakeCallbacks(Arc<ServerTls>);

#[async_trait]
impl TlsAccept for HandshakeCallbacks {
    async fn certificate_callback(&self, ssl: &mut SslRef) {
        let certificates = self.0.certificates.load();
        if let Err(error) = set_certificate_and_client_ca(ssl, &certificates) {
            error!("{}: cannot present its certificate: {error}", self.0.log_name);
        }
    }

    async fn handshake_complete_callback(&self, ssl: &SslRef) -> Option<Arc<dyn Any + Send + Sync>> {
        let certificate = self.0.tls_config.client_ca_file.as_ref().and_then(|_| ssl.peer_certificate());
        let certificate_subject =
            certificate.map(|certificate| certificate_subject(certificate.subject_name()));
        Some(Arc::new(TlsConnectionInfo { listener: self.0.listener.clone(), certificate_subject }))
    }
}

/// Sets the certificate for the client's server name, and the authorities of client certificates.
fn set_certificate_and_client_ca(ssl: &mut SslRef, certificates: &CertificateSet) -> Result<(), ErrorStack> {
    let host = ssl.servername(NameType::HOST_NAME).map(str::to_owned);
    let Some(pair) = certificates.certified_key_for_host(host.as_deref()) else { return Ok(()) };
    ext::ssl_use_certificate(ssl, &pair.leaf)?;
    ext::ssl_use_private_key(ssl, &pair.private_key)?;
    pair.intermediates.iter().try_for_each(|certificate| ext::ssl_add_chain_cert(ssl, certificate))?;
    if !certificates.client_ca_certificates.is_empty() {
        let mut store = X509StoreBuilder::new()?;
        for authority in &certificates.client_ca_certificates {
            store.add_cert(authority.clone())?;
            ssl.add_client_ca(authority)?;
        }
        ssl.set_verify_cert_store(store.build())?;
    }
    Ok(())
}

/// What the TLS handshake of the connection with this digest has shown; `None` without TLS.
pub(in crate::proxy) fn tls_connection_info(digest: Option<&Digest>) -> Option<&TlsConnectionInfo> {
    digest?.ssl_digest.as_ref()?.extension.get::<TlsConnectionInfo>()
}
