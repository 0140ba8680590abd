//! TLS to backends: verified, by name, with the system's or a private authority, with a certificate of
//! the balancer's own. TLS to clients: by the host they name, with certificates of theirs.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and its output is read then"
)]

mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::time::{Duration, Instant};

use openssl::pkey::{PKey, Private};
use openssl::ssl::{Ssl, SslAcceptor, SslConnector, SslMethod, SslVerifyMode, SslVersion};
use openssl::x509::X509;
use support::tls::{Authority, authority, certificate, key, terminate};
use support::{Balancer, CHAT, HELLO, KEY, PATIENCE, answerer, azure, backends, sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_openssl::SslStream;

#[tokio::test]
async fn a_backends_certificate_is_checked_against_name_date_and_authority() {
    let azure = azure(&["plain"]).await;
    let plain = azure.address("plain");
    let good = authority();
    let other = authority();
    let key = key();
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, good.certificate.to_pem().unwrap()).unwrap();
    let table = [
        ("contoso.test", (-1, 1), &good, true),
        ("fabrikam.test", (-1, 1), &good, false),
        ("contoso.test", (-3, -2), &good, false),
        ("contoso.test", (-1, 1), &other, false),
    ];
    for (name, days, issuer, expected) in table {
        let certificate = certificate(name, days, &key, Some(issuer));
        let (address, names) = terminate(plain, &certificate, &key).await;
        let entry = format!(
            "  - name: secure\n    endpoint: https://{address}\n    credential: {{ api_key: plain-key }}\n    tls: {{ ca: {}, server_name: contoso.test }}\n",
            ca.display()
        );
        let balancer = Balancer::start(&entry, "retry: { attempts: 0 }").await;
        let hits = azure.hits("plain");
        let reply = balancer.chat().await;
        let record = &balancer.records_of(1).await[0];
        if expected {
            assert_eq!((reply.status, answerer(&reply).as_str()), (200, "secure"), "{}", reply.text());
            assert_eq!(*names.lock().unwrap(), ["contoso.test"]);
            let seen = azure.requests("plain").pop().unwrap();
            assert_eq!(seen.header("host"), Some("contoso.test"));
        } else {
            assert_eq!((reply.status, reply.code().as_str()), (502, "upstream_failed"), "{name} {days:?}");
            assert_eq!(record["attempts"][0]["error"], "tls", "{record:#}");
            assert_eq!(azure.hits("plain"), hits);
            balancer
                .until_said("backend secure: no TLS connection; expected a certificate, not expired, for contoso.test, of an authority in tls.ca: ")
                .await;
        }
    }
}

#[tokio::test]
async fn without_an_authority_of_its_own_the_systems_count() {
    let azure = azure(&["plain"]).await;
    let (good, key) = (authority(), key());
    let certificate = certificate("localhost", (-1, 1), &key, Some(&good));
    let (address, _) = terminate(azure.address("plain"), &certificate, &key).await;
    let port = address.port();
    let entry = format!(
        "  - name: secure\n    endpoint: https://127.0.0.1:{port}\n    tls: {{ server_name: localhost }}\n    credential: {{ api_key: plain-key }}\n"
    );
    let balancer = Balancer::start(&entry, "retry: { attempts: 0 }").await;
    assert_eq!(balancer.chat().await.status, 502, "nobody vouches for it");
    assert_eq!(balancer.records_of(1).await[0]["attempts"][0]["error"], "tls");
}

#[tokio::test]
async fn resources_on_one_address_share_no_connection() {
    let azure = azure(&["plain"]).await;
    let (good, key) = (authority(), key());
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, good.certificate.to_pem().unwrap()).unwrap();
    let certificate = certificate("*.contoso.test", (-1, 1), &key, Some(&good));
    let (address, names) = terminate(azure.address("plain"), &certificate, &key).await;
    let entries = ["one", "two"].map(|name| {
        format!(
            "  - name: {name}\n    endpoint: https://{address}\n    credential: {{ api_key: plain-key }}\n    tls: {{ ca: {}, server_name: {name}.contoso.test }}\n",
            ca.display()
        )
    });
    let balancer = Balancer::start(&entries.concat(), "").await;
    for turn in 0..6 {
        let reply = balancer.chat().await;
        let name = ["one", "two"][turn % 2];
        assert_eq!((reply.status, answerer(&reply).as_str()), (200, name), "{}", reply.text());
        let host = format!("{name}.contoso.test");
        assert_eq!(azure.requests("plain").pop().unwrap().header("host"), Some(host.as_str()));
    }
    let mut asked = names.lock().unwrap().clone();
    asked.sort();
    asked.dedup();
    assert_eq!(asked, ["one.contoso.test", "two.contoso.test"]);
}

/// Somebody who connects to a listener.
struct Caller<'a> {
    trusts: &'a Authority,
    host: &'a str,
    shows: Option<(&'a X509, &'a PKey<Private>)>,
    most: Option<SslVersion>,
}

impl Caller<'_> {
    /// Asks for a chat on a connection of its own; returns the host's certificate and the status.
    async fn chat(&self, address: SocketAddr, key: &str) -> Result<(X509, u16), String> {
        let mut connector = SslConnector::builder(SslMethod::tls()).unwrap();
        connector.cert_store_mut().add_cert(self.trusts.certificate.clone()).unwrap();
        connector.set_max_proto_version(self.most).unwrap();
        if let Some((certificate, key)) = self.shows {
            connector.set_certificate(certificate).unwrap();
            connector.set_private_key(key).unwrap();
        }
        let mut configuration = connector.build().configure().unwrap();
        configuration.set_verify_hostname(false);
        let ssl = configuration.into_ssl(self.host).unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        let mut stream = SslStream::new(ssl, stream).unwrap();
        Pin::new(&mut stream).connect().await.map_err(|problem| problem.to_string())?;
        let host = stream.ssl().peer_certificate().unwrap();
        let key = if key.is_empty() { String::new() } else { format!("api-key: {key}\r\n") };
        let length = HELLO.len();
        let request = format!(
            "POST {CHAT} HTTP/1.1\r\nHost: x\r\n{key}Connection: close\r\nContent-Length: {length}\r\n\r\n{HELLO}"
        );
        stream.write_all(request.as_bytes()).await.map_err(|problem| problem.to_string())?;
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply).await;
        let reply = String::from_utf8_lossy(&reply);
        let status = reply.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((host, status.ok_or("no answer")?))
    }
}

fn write(directory: &Path, name: &str, certificate: &X509, key: &PKey<Private>) {
    std::fs::write(directory.join(format!("{name}.key")), key.private_key_to_pem_pkcs8().unwrap()).unwrap();
    std::fs::write(directory.join(format!("{name}.pem")), certificate.to_pem().unwrap()).unwrap();
}

fn name_of(certificate: &X509) -> String {
    let names = certificate.subject_alt_names().unwrap();
    names.iter().find_map(|name| name.dnsname()).unwrap().to_owned()
}

/// A balancer whose listener has this `tls` block.
async fn listening(directory: tempfile::TempDir, tls: &str, backends: &str, clients: &str) -> Balancer {
    let [address, admin] = [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], support::free_port())));
    let text = format!(
        "listeners:\n  - address: {address}\n    tls: {{ certificate: first.pem, private_key: first.key{tls} }}\n\
         server: {{ drain_delay: 0s }}\nrecord: {{ jsonl: {{ path: records.jsonl }} }}\n\
         admin: {{ address: {admin} }}\nbackends:\n{backends}{clients}"
    );
    Balancer::from_file(directory, address, admin, &text).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_shows_the_certificate_of_the_host_that_is_named() {
    let (azure, good, key) = (azure(&["a"]).await, authority(), key());
    let directory = tempfile::tempdir().unwrap();
    for (file, host) in [
        ("first", "first.test"),
        ("second", "second.test"),
        ("wild", "*.wild.test"),
        ("exact", "exact.wild.test"),
    ] {
        write(directory.path(), file, &certificate(host, (-1, 1), &key, Some(&good)), &key);
    }
    let pair = |file: &str| format!("{{ certificate: {file}.pem, private_key: {file}.key }}");
    let tls =
        format!(", additional_certificates: [ {}, {}, {} ]", pair("second"), pair("wild"), pair("exact"));
    let balancer = listening(directory, &tls, &backends(&azure), &support::clients()).await;
    let shown = async |host: &str| {
        let caller = Caller { trusts: &good, host, shows: None, most: None };
        let (certificate, status) = caller.chat(balancer.address, KEY).await.unwrap();
        assert_eq!(status, 200, "{host}");
        certificate
    };
    for (host, expected) in [
        ("first.test", "first.test"),
        ("second.test", "second.test"),
        ("SECOND.test", "second.test"),
        ("a.wild.test", "*.wild.test"),
        ("exact.wild.test", "exact.wild.test"),
        ("a.b.wild.test", "first.test"),
        ("wild.test", "first.test"),
        ("unknown.test", "first.test"),
        ("127.0.0.1", "first.test"),
    ] {
        assert_eq!(name_of(&shown(host).await), expected, "{host}");
    }
    // One of them is replaced: half a pair changes nothing, the whole is shown, the others stay.
    let new_key = support::tls::key();
    let new = certificate("second.test", (-1, 2), &new_key, Some(&good));
    let old = shown("second.test").await;
    std::fs::write(balancer.path("second.pem"), new.to_pem().unwrap()).unwrap();
    balancer.until_said("keeps its certificates: tls.private_key").await;
    assert_eq!(shown("second.test").await.not_after(), old.not_after());
    write(balancer.path("").as_path(), "second", &new, &new_key);
    let deadline = Instant::now() + PATIENCE;
    while shown("second.test").await.not_after() == old.not_after() {
        assert!(Instant::now() < deadline, "{}", balancer.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(name_of(&shown("first.test").await), "first.test");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_prove_who_they_are_with_certificates() {
    let (azure, hosts, known, other) = (azure(&["a"]).await, authority(), authority(), authority());
    let directory = tempfile::tempdir().unwrap();
    let own_key = key();
    write(directory.path(), "first", &certificate("first.test", (-1, 1), &own_key, Some(&hosts)), &own_key);
    std::fs::write(directory.path().join("clients.pem"), known.certificate.to_pem().unwrap()).unwrap();
    let hash = sha256(KEY);
    let clients = format!(
        "clients:\n  - {{ name: team-a, keys: [ {{ sha256: {hash} }} ] }}\n  - {{ name: team-b, certificates: ['CN=team-b'] }}\n"
    );
    let balancer = listening(directory, ", client_ca: clients.pem", &backends(&azure), &clients).await;
    let key = key();
    let of = |name: &str, days, issuer: &Authority| certificate(name, days, &key, Some(issuer));
    let (b, stranger) = (of("team-b", (-1, 1), &known), of("stranger", (-1, 1), &known));
    let (expired, forged) = (of("team-b", (-3, -2), &known), of("team-b", (-1, 1), &other));
    let mut expected = Vec::new();
    for most in [Some(SslVersion::TLS1_2), None] {
        let ask = async |shows: Option<&X509>, with: &str| {
            let shows = shows.map(|certificate| (certificate, &key));
            let caller = Caller { trusts: &hosts, host: "first.test", shows, most };
            caller.chat(balancer.address, with).await.ok().map(|(_, status)| status)
        };
        assert_eq!(ask(Some(&b), "").await, Some(200), "{}", balancer.log());
        assert_eq!(ask(Some(&stranger), KEY).await, Some(200));
        assert_eq!(ask(Some(&stranger), "").await, Some(401));
        assert_eq!(ask(Some(&b), KEY).await, Some(401), "two clients");
        for nobody in [None, Some(&expired), Some(&forged)] {
            assert_eq!(ask(nobody, KEY).await, None, "{most:?}");
        }
        expected.extend([Some("team-b"), Some("team-a"), None, None]);
    }
    let records = balancer.records_of(expected.len()).await;
    let clients: Vec<_> = records.iter().map(|record| record["client"].as_str()).collect();
    assert_eq!(clients, expected);
    // Another authority takes over: those of the first are no longer let in.
    std::fs::write(balancer.path("clients.pem"), other.certificate.to_pem().unwrap()).unwrap();
    balancer.until_said("its new certificates are in use").await;
    let ask = async |shows: &X509| {
        let caller = Caller { trusts: &hosts, host: "first.test", shows: Some((shows, &key)), most: None };
        caller.chat(balancer.address, "").await.ok().map(|(_, status)| status)
    };
    assert_eq!((ask(&b).await, ask(&forged).await), (None, Some(200)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_may_want_to_see_a_certificate() {
    let (azure, good, key) = (azure(&["plain"]).await, authority(), key());
    let plain = azure.address("plain");
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
    acceptor.set_certificate(&certificate("localhost", (-1, 1), &key, Some(&good))).unwrap();
    acceptor.set_private_key(&key).unwrap();
    acceptor.cert_store_mut().add_cert(good.certificate.clone()).unwrap();
    acceptor.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
    let acceptor = acceptor.build();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = SslStream::new(Ssl::new(acceptor.context()).unwrap(), stream).unwrap();
            tokio::spawn(async move {
                if Pin::new(&mut stream).accept().await.is_ok() {
                    let mut upstream = TcpStream::connect(plain).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut upstream).await;
                }
            });
        }
    });
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), "ca", &good.certificate, &good.key);
    write(directory.path(), "own", &certificate("balancer", (-1, 1), &key, Some(&good)), &key);
    let path = |name: &str| directory.path().join(name).display().to_string();
    let entry = |name: &str, more: &str| {
        let ca = path("ca.pem");
        format!(
            "  - name: {name}\n    endpoint: https://localhost:{port}\n    credential: {{ api_key: plain-key }}\n    tls: {{ ca: {ca}{more} }}\n"
        )
    };
    let own = format!(", certificate: {}, private_key: {}", path("own.pem"), path("own.key"));
    // Both are one resource; a connection of the one must not serve the other.
    let balancer = Balancer::start(&[entry("shows", &own), entry("hides", "")].concat(), "").await;
    for _ in 0..6 {
        let reply = balancer.chat().await;
        assert_eq!((reply.status, answerer(&reply).as_str()), (200, "shows"), "{}", balancer.log());
    }
    let tried = balancer.records_of(6).await;
    let tried = tried.iter().flat_map(|record| record["attempts"].as_array().unwrap());
    assert!(tried.into_iter().any(|attempt| attempt["backend"] == "hides" && attempt["error"].is_string()));
}
