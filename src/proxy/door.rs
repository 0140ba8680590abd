//! TLS towards clients: versions and ciphers as configured, and a certificate that is read again
//! when its files change.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use log::{error, info, warn};
use openssl::error::ErrorStack;
use openssl::ssl::{SslRef, SslVersion};
use pingora::listeners::TlsAccept;
use pingora::listeners::tls::TlsSettings;
use pingora::protocols::Digest;
use pingora::tls::ext;

use crate::config::{BadPair, KeyPair, Listener, ListenerTls, TlsVersion};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Why a listener cannot speak TLS.
#[derive(Debug, thiserror::Error)]
pub enum BadDoor {
    /// Its certificate or key.
    #[error(transparent)]
    Pair(#[from] BadPair),
    /// Its versions or ciphers.
    #[error("tls: {0}")]
    Settings(String),
}

impl From<ErrorStack> for BadDoor {
    fn from(problem: ErrorStack) -> Self {
        Self::Settings(problem.to_string())
    }
}

/// What a listener shows to those who connect.
pub struct Door {
    listener: Arc<Listener>,
    tls: ListenerTls,
    pair: ArcSwap<KeyPair>,
}

impl Door {
    /// A door with the certificate as it is in its files now.
    ///
    /// # Errors
    /// [`BadDoor`] when the files make no pair.
    pub fn new(listener: &Listener, tls: &ListenerTls) -> Result<Arc<Self>, BadDoor> {
        let pair = KeyPair::read(tls)?;
        let listener = Arc::new(listener.clone());
        Ok(Arc::new(Self { listener, tls: tls.clone(), pair: ArcSwap::from_pointee(pair) }))
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
        if self.listener.http2 {
            settings.enable_h2();
        }
        Ok(settings)
    }

    /// Reads the files again whenever they change, for as long as the runtime lives.
    pub fn watch(self: &Arc<Self>) {
        let door = Arc::clone(self);
        tokio::spawn(async move {
            let mut seen = door.stamp().await;
            loop {
                tokio::time::sleep(LOOK).await;
                let now = door.stamp().await;
                if now != seen {
                    seen = now;
                    door.read_again();
                }
            }
        });
    }

    /// What changes when the files do.
    async fn stamp(&self) -> [Option<(std::time::SystemTime, u64)>; 2] {
        let stamp = async |path| {
            let file = tokio::fs::metadata(path).await.ok()?;
            Some((file.modified().ok()?, file.len()))
        };
        [stamp(&self.tls.certificate).await, stamp(&self.tls.private_key).await]
    }

    fn read_again(&self) {
        let address = self.listener.address;
        match KeyPair::read(&self.tls) {
            Ok(pair) => {
                if let Some(end) = pair.ends_within(0) {
                    warn!("listener {address}: its new certificate ended on {end}");
                }
                self.pair.store(Arc::new(pair));
                info!("listener {address}: shows its new certificate");
            }
            // Between two files that are replaced one after the other this is no more than a
            // moment: the next look finds the second.
            Err(problem) => warn!("listener {address}: keeps its certificate: {problem}"),
        }
    }
}

struct Callbacks(Arc<Door>);

#[async_trait]
impl TlsAccept for Callbacks {
    async fn certificate_callback(&self, ssl: &mut SslRef) {
        let pair = self.0.pair.load();
        if let Err(problem) = show(ssl, &pair) {
            error!("listener {}: cannot show its certificate: {problem}", self.0.listener.address);
        }
    }

    async fn handshake_complete_callback(&self, _ssl: &SslRef) -> Option<Arc<dyn Any + Send + Sync>> {
        Some(Arc::new(Arc::clone(&self.0.listener)))
    }
}

fn show(ssl: &mut SslRef, pair: &KeyPair) -> Result<(), ErrorStack> {
    ext::ssl_use_certificate(ssl, &pair.leaf)?;
    ext::ssl_use_private_key(ssl, &pair.key)?;
    pair.chain.iter().try_for_each(|certificate| ext::ssl_add_chain_cert(ssl, certificate))
}

/// The listener that a connection with TLS came through.
pub(super) fn of(digest: Option<&Digest>) -> Option<Arc<Listener>> {
    let tls = digest?.ssl_digest.as_ref()?;
    tls.extension.get::<Arc<Listener>>().cloned()
}
