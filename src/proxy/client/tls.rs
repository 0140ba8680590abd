//! TLS towards clients: versions and ciphers as configured, certificates by the host that a client
//! names, read again when their files change, and certificates of clients.

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

use crate::admission::subject::subject_of;
use crate::config::{BadPair, KeyPair, Listener, ListenerTls, TlsVersion};
use crate::names::Subject;
use crate::proxy::upstream::peer::{BadAuthority, authorities};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Why a listener cannot speak TLS.
#[derive(Debug, thiserror::Error)]
pub enum BadDoor {
    /// Its certificate or key.
    #[error("{0}")]
    Pair(#[from] BadPair),
    /// The authorities of its clients.
    #[error("client_ca: {0}")]
    Authority(#[from] BadAuthority),
    /// Its versions or ciphers.
    #[error("{0}")]
    Settings(String),
}

impl From<ErrorStack> for BadDoor {
    fn from(problem: ErrorStack) -> Self {
        Self::Settings(problem.to_string())
    }
}

/// What somebody who connected over TLS brought along.
#[derive(Clone, Debug, Default)]
pub struct Arrival {
    /// The listener; none for the admin API.
    pub listener: Option<Arc<Listener>>,
    /// The subject of the certificate that was shown, and verified.
    pub subject: Option<Subject>,
}

/// What a door shows to those who connect, and wants to be shown.
pub struct Door {
    /// What the log calls it.
    name: String,
    tls: ListenerTls,
    http2: bool,
    listener: Option<Arc<Listener>>,
    shown: ArcSwap<Shown>,
}

/// The files as they were last good.
struct Shown {
    /// The first is for whoever names no host of the others.
    pairs: Vec<(KeyPair, Vec<String>)>,
    /// Whose clients are let in; empty where none have to show anything.
    authorities: Vec<X509>,
}

impl Shown {
    fn read(tls: &ListenerTls) -> Result<Self, BadDoor> {
        let read = |files| {
            let pair = KeyPair::read(files)?;
            let names = pair.names();
            Ok((pair, names))
        };
        let pairs = tls.pairs.iter().map(read).collect::<Result<_, BadPair>>()?;
        let authorities = match &tls.client_ca {
            Some(path) => authorities(path)?.into_vec(),
            None => Vec::new(),
        };
        Ok(Self { pairs, authorities })
    }

    /// The certificate for a host that a client named. A name that is written out wins over a
    /// wildcard.
    fn pair(&self, host: Option<&str>) -> Option<&KeyPair> {
        let by_host = host.and_then(|host| {
            let host = host.to_ascii_lowercase();
            let wildcard = host.split_once('.').map(|(_, domain)| format!("*.{domain}"));
            let has =
                |name: &str| self.pairs.iter().find(|(_, names)| names.iter().any(|known| known == name));
            has(&host).or_else(|| has(&wildcard?))
        });
        by_host.or(self.pairs.first()).map(|(pair, _)| pair)
    }
}

impl Door {
    /// The door of a listener with its files as they are now.
    ///
    /// # Errors
    /// [`BadDoor`] when the files make no pair.
    pub fn of_listener(listener: &Listener, tls: &ListenerTls) -> Result<Arc<Self>, BadDoor> {
        let name = format!("listener {}", listener.address);
        Self::new(name, tls, listener.http2, Some(Arc::new(listener.clone())))
    }

    /// The door of the admin API.
    ///
    /// # Errors
    /// As [`Door::of_listener`].
    pub fn of_admin(tls: &ListenerTls) -> Result<Arc<Self>, BadDoor> {
        Self::new("admin".to_owned(), tls, false, None)
    }

    fn new(
        name: String,
        tls: &ListenerTls,
        http2: bool,
        listener: Option<Arc<Listener>>,
    ) -> Result<Arc<Self>, BadDoor> {
        let shown = ArcSwap::from_pointee(Shown::read(tls)?);
        Ok(Arc::new(Self { name, tls: tls.clone(), http2, listener, shown }))
    }

    /// The engine's settings for it.
    ///
    /// # Errors
    /// [`BadDoor`] when OpenSSL knows no such ciphers.
    pub fn settings(self: &Arc<Self>) -> Result<TlsSettings, BadDoor> {
        let callbacks = Box::new(Callbacks(Arc::clone(self)));
        let settings = TlsSettings::with_callbacks(callbacks);
        let mut settings = settings.map_err(|problem| BadDoor::Settings(problem.to_string()))?;
        settings.set_min_proto_version(Some(match self.tls.minimum_version {
            TlsVersion::V12 => SslVersion::TLS1_2,
            TlsVersion::V13 => SslVersion::TLS1_3,
        }))?;
        if let Some(ciphers) = &self.tls.ciphers {
            settings.set_cipher_list(ciphers)?;
        }
        if let Some(ciphersuites) = &self.tls.ciphersuites {
            settings.set_ciphersuites(ciphersuites)?;
        }
        if self.http2 {
            settings.enable_h2();
        }
        if self.tls.client_ca.is_some() {
            settings.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
            // Every connection is verified: one that was let in once may have lost its right.
            settings.set_options(SslOptions::NO_TICKET);
            settings.set_session_cache_mode(SslSessionCacheMode::OFF);
        }
        Ok(settings)
    }

    /// Reads the files again whenever they change, for as long as the runtime lives.
    pub fn watch(self: &Arc<Self>) {
        let door = Arc::clone(self);
        tokio::spawn(async move {
            let mut seen = door.stamps().await;
            loop {
                tokio::time::sleep(LOOK).await;
                let now = door.stamps().await;
                if now != seen {
                    seen = now;
                    door.read_again();
                }
            }
        });
    }

    /// What changes when the files do.
    async fn stamps(&self) -> Vec<Option<(SystemTime, u64)>> {
        let files = self.tls.pairs.iter().flat_map(|pair| [&pair.certificate, &pair.private_key]);
        let mut stamps = Vec::new();
        for path in files.chain(&self.tls.client_ca) {
            let file = tokio::fs::metadata(path).await.ok();
            stamps.push(file.and_then(|file| Some((file.modified().ok()?, file.len()))));
        }
        stamps
    }

    fn read_again(&self) {
        let name = &self.name;
        match Shown::read(&self.tls) {
            Ok(shown) => {
                for end in shown.pairs.iter().filter_map(|(pair, _)| pair.ends_within(0)) {
                    warn!("{name}: its new certificate ended on {end}");
                }
                self.shown.store(Arc::new(shown));
                info!("{name}: its new certificates are in use");
            }
            // Between two files that are replaced one after the other this is no more than a
            // moment: the next look finds the second.
            Err(problem) => warn!("{name}: keeps its certificates: tls.{problem}"),
        }
    }
}

struct Callbacks(Arc<Door>);

#[async_trait]
impl TlsAccept for Callbacks {
    async fn certificate_callback(&self, ssl: &mut SslRef) {
        let shown = self.0.shown.load();
        if let Err(problem) = show(ssl, &shown) {
            error!("{}: cannot show its certificate: {problem}", self.0.name);
        }
    }

    async fn handshake_complete_callback(&self, ssl: &SslRef) -> Option<Arc<dyn Any + Send + Sync>> {
        let subject = self.0.tls.client_ca.as_ref().and_then(|_| ssl.peer_certificate());
        let subject = subject.map(|certificate| subject_of(certificate.subject_name()));
        Some(Arc::new(Arrival { listener: self.0.listener.clone(), subject }))
    }
}

fn show(ssl: &mut SslRef, shown: &Shown) -> Result<(), ErrorStack> {
    let host = ssl.servername(NameType::HOST_NAME).map(str::to_owned);
    let Some(pair) = shown.pair(host.as_deref()) else { return Ok(()) };
    ext::ssl_use_certificate(ssl, &pair.leaf)?;
    ext::ssl_use_private_key(ssl, &pair.key)?;
    pair.chain.iter().try_for_each(|certificate| ext::ssl_add_chain_cert(ssl, certificate))?;
    if !shown.authorities.is_empty() {
        let mut store = X509StoreBuilder::new()?;
        for authority in &shown.authorities {
            store.add_cert(authority.clone())?;
            ssl.add_client_ca(authority)?;
        }
        ssl.set_verify_cert_store(store.build())?;
    }
    Ok(())
}

/// What a connection with TLS brought along.
pub(in crate::proxy) fn of(digest: Option<&Digest>) -> Option<&Arrival> {
    digest?.ssl_digest.as_ref()?.extension.get::<Arrival>()
}
