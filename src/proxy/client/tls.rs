//! TLS towards clients: versions and ciphers as configured, the certificate for the server name that a
//! client sends, reloaded when its files change, and client certificates.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use log::{error, info, warn};
use openssl::error::ErrorStack;
use openssl::ssl::{NameType, SslOptions, SslRef, SslSessionCacheMode, SslVerifyMode, SslVersion};
use openssl::x509::X509;
use openssl::x509::store::X509StoreBuilder;
use pingora::listeners::TlsAccept;
use pingora::listeners::tls::TlsSettings;
use pingora::protocols::Digest;
use pingora::tls::ext;

use crate::admission::certificate_subject::certificate_subject;
use crate::config::{CertifiedKey, CertifiedKeyError, ListenerConfig, ListenerTlsConfig, TlsVersion};
use crate::names::CertificateSubject;
use crate::proxy::upstream::peer::{CaError, load_ca_certificates};

/// How often the files are checked for changes.
const FILE_POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Why TLS cannot be set up on a listener.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Its certificate or private key.
    #[error("{0}")]
    KeyPair(#[from] CertifiedKeyError),
    /// The certificate authorities of its clients.
    #[error("client_ca: {0}")]
    Authority(#[from] CaError),
    /// Its versions or ciphers.
    #[error("{0}")]
    Settings(String),
}

impl From<ErrorStack> for TlsError {
    fn from(problem: ErrorStack) -> Self {
        Self::Settings(problem.to_string())
    }
}

/// What is known of a TLS connection since its handshake.
#[derive(Clone, Debug, Default)]
pub struct TlsClientInfo {
    /// The listener; `None` for the admin API.
    pub listener: Option<Arc<ListenerConfig>>,
    /// The subject of the client certificate, which was verified.
    pub subject: Option<CertificateSubject>,
}

/// The TLS of one listener, or of the admin API.
pub struct ServerTls {
    /// Its name in the log.
    name: String,
    tls: ListenerTlsConfig,
    http2: bool,
    listener: Option<Arc<ListenerConfig>>,
    certificates: ArcSwap<CertificateSet>,
}

/// The certificates of the files as they were last valid.
struct CertificateSet {
    /// Each with its DNS names. The first is for clients that send no server name, or an unknown one.
    pairs: Vec<(CertifiedKey, Vec<String>)>,
    /// The authorities of client certificates; empty where clients need none.
    client_authorities: Vec<X509>,
}

impl CertificateSet {
    fn read(tls: &ListenerTlsConfig) -> Result<Self, TlsError> {
        let read = |files| {
            let pair = CertifiedKey::from_files(files)?;
            let names = pair.dns_names();
            Ok((pair, names))
        };
        let pairs = tls.certified_keys.iter().map(read).collect::<Result<_, CertifiedKeyError>>()?;
        let client_authorities = match &tls.client_ca_file {
            Some(path) => load_ca_certificates(path)?.into_vec(),
            None => Vec::new(),
        };
        Ok(Self { pairs, client_authorities })
    }

    /// The certificate for a server name. An exact name wins over a wildcard.
    fn pair_for_host(&self, host: Option<&str>) -> Option<&CertifiedKey> {
        let by_host = host.and_then(|host| {
            let host = host.to_ascii_lowercase();
            let wildcard = host.split_once('.').map(|(_, domain)| format!("*.{domain}"));
            let find =
                |name: &str| self.pairs.iter().find(|(_, names)| names.iter().any(|known| known == name));
            find(&host).or_else(|| find(&wildcard?))
        });
        by_host.or(self.pairs.first()).map(|(pair, _)| pair)
    }
}

impl ServerTls {
    /// The TLS of a listener, with its files as they are now.
    ///
    /// # Errors
    /// [`TlsError`] when a file is missing or a key does not belong to its certificate.
    pub fn for_listener(listener: &ListenerConfig, tls: &ListenerTlsConfig) -> Result<Arc<Self>, TlsError> {
        let name = format!("listener {}", listener.address);
        Self::new(name, tls, listener.http2_enabled, Some(Arc::new(listener.clone())))
    }

    /// The TLS of the admin API.
    ///
    /// # Errors
    /// As [`ServerTls::for_listener`].
    pub fn for_admin(tls: &ListenerTlsConfig) -> Result<Arc<Self>, TlsError> {
        Self::new("admin".to_owned(), tls, false, None)
    }

    fn new(
        name: String,
        tls: &ListenerTlsConfig,
        http2: bool,
        listener: Option<Arc<ListenerConfig>>,
    ) -> Result<Arc<Self>, TlsError> {
        let certificates = ArcSwap::from_pointee(CertificateSet::read(tls)?);
        Ok(Arc::new(Self { name, tls: tls.clone(), http2, listener, certificates }))
    }

    /// The settings for the engine.
    ///
    /// # Errors
    /// [`TlsError`] when OpenSSL does not know the ciphers.
    pub fn to_settings(self: &Arc<Self>) -> Result<TlsSettings, TlsError> {
        let callbacks = Box::new(Callbacks(Arc::clone(self)));
        let settings = TlsSettings::with_callbacks(callbacks);
        let mut settings = settings.map_err(|problem| TlsError::Settings(problem.to_string()))?;
        settings.set_min_proto_version(Some(match self.tls.minimum_version {
            TlsVersion::Tls12 => SslVersion::TLS1_2,
            TlsVersion::Tls13 => SslVersion::TLS1_3,
        }))?;
        if let Some(ciphers) = &self.tls.tls12_ciphers {
            settings.set_cipher_list(ciphers)?;
        }
        if let Some(ciphersuites) = &self.tls.tls13_ciphersuites {
            settings.set_ciphersuites(ciphersuites)?;
        }
        if self.http2 {
            settings.enable_h2();
        }
        if self.tls.client_ca_file.is_some() {
            settings.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
            // No session resumption: it would skip the check of a certificate that has expired or whose
            // authority was removed.
            settings.set_options(SslOptions::NO_TICKET);
            settings.set_session_cache_mode(SslSessionCacheMode::OFF);
        }
        Ok(settings)
    }

    /// Starts a task that reloads the files whenever they change.
    pub fn watch_files(self: &Arc<Self>) {
        let server_tls = Arc::clone(self);
        tokio::spawn(async move {
            let mut last_seen = server_tls.file_stamps().await;
            loop {
                tokio::time::sleep(FILE_POLL_INTERVAL).await;
                let now = server_tls.file_stamps().await;
                if now != last_seen {
                    last_seen = now;
                    server_tls.reload_files();
                }
            }
        });
    }

    /// Time and size of each file, by which a change is seen.
    async fn file_stamps(&self) -> Vec<Option<(SystemTime, u64)>> {
        let files = self.tls.certified_keys.iter().flat_map(|pair| [&pair.certificate, &pair.private_key]);
        let mut stamps = Vec::new();
        for path in files.chain(&self.tls.client_ca_file) {
            let file = tokio::fs::metadata(path).await.ok();
            stamps.push(file.and_then(|file| Some((file.modified().ok()?, file.len()))));
        }
        stamps
    }

    fn reload_files(&self) {
        let name = &self.name;
        match CertificateSet::read(&self.tls) {
            Ok(certificates) => {
                for end in certificates.pairs.iter().filter_map(|(pair, _)| pair.expiry_if_within_days(0)) {
                    warn!("{name}: its new certificate expired on {end}");
                }
                self.certificates.store(Arc::new(certificates));
                info!("{name}: new certificates are in use");
            }
            // Certificate and key are often replaced one after the other: the next check finds both.
            Err(problem) => warn!("{name}: the old certificates stay in use: tls.{problem}"),
        }
    }
}

struct Callbacks(Arc<ServerTls>);

#[async_trait]
impl TlsAccept for Callbacks {
    async fn certificate_callback(&self, ssl: &mut SslRef) {
        let certificates = self.0.certificates.load();
        if let Err(problem) = present_certificate(ssl, &certificates) {
            error!("{}: cannot present its certificate: {problem}", self.0.name);
        }
    }

    async fn handshake_complete_callback(&self, ssl: &SslRef) -> Option<Arc<dyn Any + Send + Sync>> {
        let subject = self.0.tls.client_ca_file.as_ref().and_then(|_| ssl.peer_certificate());
        let subject = subject.map(|certificate| certificate_subject(certificate.subject_name()));
        Some(Arc::new(TlsClientInfo { listener: self.0.listener.clone(), subject }))
    }
}

fn present_certificate(ssl: &mut SslRef, certificates: &CertificateSet) -> Result<(), ErrorStack> {
    let host = ssl.servername(NameType::HOST_NAME).map(str::to_owned);
    let Some(pair) = certificates.pair_for_host(host.as_deref()) else { return Ok(()) };
    ext::ssl_use_certificate(ssl, &pair.leaf)?;
    ext::ssl_use_private_key(ssl, &pair.private_key)?;
    pair.intermediates.iter().try_for_each(|certificate| ext::ssl_add_chain_cert(ssl, certificate))?;
    if !certificates.client_authorities.is_empty() {
        let mut store = X509StoreBuilder::new()?;
        for authority in &certificates.client_authorities {
            store.add_cert(authority.clone())?;
            ssl.add_client_ca(authority)?;
        }
        ssl.set_verify_cert_store(store.build())?;
    }
    Ok(())
}

/// What is known of the TLS connection that a request came on.
pub(in crate::proxy) fn client_info(digest: Option<&Digest>) -> Option<&TlsClientInfo> {
    digest?.ssl_digest.as_ref()?.extension.get::<TlsClientInfo>()
}
