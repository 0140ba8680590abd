//! Certificates made for a test, and a proxy that terminates TLS.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::ssl::{AlpnError, NameType, Ssl, SslAcceptor, SslMethod, select_next_proto};
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509Name};
use tokio::net::{TcpListener, TcpStream};

/// A certificate authority that exists only in the test.
pub struct CertificateAuthority {
    pub certificate: X509,
    pub key: PKey<Private>,
}

pub fn generate_key() -> PKey<Private> {
    PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap()
}

/// Issues a certificate for this host name. `validity_days` are its first and last day, counted from
/// now; without an issuer it is self-signed and an authority.
pub fn issue_certificate(
    name: &str,
    (first, last): (i64, i64),
    key: &PKey<Private>,
    issuer: Option<&CertificateAuthority>,
) -> X509 {
    issue_certificate_for_seconds(name, (first * 86_400, last * 86_400), key, issuer)
}

/// Like [`issue_certificate`], with the beginning and the end in seconds from now.
pub fn issue_certificate_for_seconds(
    name: &str,
    validity: (i64, i64),
    key: &PKey<Private>,
    issuer: Option<&CertificateAuthority>,
) -> X509 {
    let mut subject = X509Name::builder().unwrap();
    subject.append_entry_by_text("CN", name).unwrap();
    let subject = subject.build();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    builder.set_serial_number(&BigNum::from_u32(7).unwrap().to_asn1_integer().unwrap()).unwrap();
    builder.set_subject_name(&subject).unwrap();
    builder.set_issuer_name(issuer.map_or(&subject, |issuer| issuer.certificate.subject_name())).unwrap();
    builder.set_pubkey(key).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    builder.set_not_before(&Asn1Time::from_unix(now + validity.0).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::from_unix(now + validity.1).unwrap()).unwrap();
    if issuer.is_none() {
        builder.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap();
    }
    let names = SubjectAlternativeName::new().dns(name).build(&builder.x509v3_context(None, None)).unwrap();
    builder.append_extension(names).unwrap();
    builder.sign(issuer.map_or(key, |issuer| &issuer.key), MessageDigest::sha256()).unwrap();
    builder.build()
}

pub fn generate_authority() -> CertificateAuthority {
    let key = generate_key();
    CertificateAuthority { certificate: issue_certificate("test authority", (-1, 1), &key, None), key }
}

/// Writes a certificate for `balancer.test` and its key to `cert.pem` and `key.pem`.
pub fn write_certificate_and_key(
    directory: &std::path::Path,
    authority: &CertificateAuthority,
    valid_days: i64,
) {
    let key = generate_key();
    let certificate = issue_certificate("balancer.test", (-1, valid_days), &key, Some(authority));
    std::fs::write(directory.join("cert.pem"), certificate.to_pem().unwrap()).unwrap();
    std::fs::write(directory.join("key.pem"), key.private_key_to_pem_pkcs8().unwrap()).unwrap();
}

/// Starts a proxy that terminates TLS in front of a plain address. Returns its address, and the server
/// names that clients have sent (SNI).
pub async fn start_tls_proxy(
    plain_address: SocketAddr,
    certificate: &X509,
    key: &PKey<Private>,
) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    start_tls_proxy_with_protocols(plain_address, certificate, key, b"").await
}

/// Like [`start_tls_proxy`], which chooses one of these protocols (ALPN).
pub async fn start_tls_proxy_with_protocols(
    plain_address: SocketAddr,
    certificate: &X509,
    key: &PKey<Private>,
    protocols: &'static [u8],
) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
    acceptor.set_certificate(certificate).unwrap();
    acceptor.set_private_key(key).unwrap();
    acceptor
        .set_alpn_select_callback(|_, client| select_next_proto(protocols, client).ok_or(AlpnError::NOACK));
    let acceptor = acceptor.build();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let names = Arc::new(Mutex::new(Vec::new()));
    let received_names = names.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let ssl = Ssl::new(acceptor.context()).unwrap();
            let received_names = received_names.clone();
            tokio::spawn(async move {
                let mut stream = tokio_openssl::SslStream::new(ssl, stream).unwrap();
                if Pin::new(&mut stream).accept().await.is_err() {
                    return;
                }
                received_names
                    .lock()
                    .unwrap()
                    .push(stream.ssl().servername(NameType::HOST_NAME).unwrap_or("").to_owned());
                let mut upstream = TcpStream::connect(plain_address).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut upstream).await;
            });
        }
    });
    (address, names)
}
