//! TLS to backends: certificate verification and client certificates. TLS listeners: selection of the
//! certificate by server name, and authentication of clients by certificate.

use crate::support;

use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;

use openssl::pkey::{PKey, Private};
use openssl::ssl::{Ssl, SslAcceptor, SslConnector, SslMethod, SslVerifyMode, SslVersion};
use openssl::x509::X509;
use support::tls::{
    CertificateAuthority, generate_authority, generate_key, issue_certificate, start_tls_proxy,
};
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, all_backends_yaml, answering_backend, sha256_hex,
    start_simulator, wait_until_async,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_openssl::SslStream;

#[tokio::test]
async fn a_backend_certificate_is_verified_by_name_date_and_authority() {
    let azure = start_simulator(&["plain"]).await;
    let plain = azure.address("plain");
    let trusted = generate_authority();
    let other_authority = generate_authority();
    let key = generate_key();
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, trusted.certificate.to_pem().unwrap()).unwrap();
    let table = [
        ("contoso.test", (-1, 1), &trusted, true),
        ("fabrikam.test", (-1, 1), &trusted, false),
        ("contoso.test", (-3, -2), &trusted, false),
        ("contoso.test", (-1, 1), &other_authority, false),
    ];
    for (name, days, issuer, expected) in table {
        let certificate = issue_certificate(name, days, &key, Some(issuer));
        let (address, names) = start_tls_proxy(plain, &certificate, &key).await;
        let entry = format!(
            "  - name: secure\n    endpoint: https://{address}\n    credential: {{ api_key: plain-key }}\n    tls: {{ ca: {}, server_name: contoso.test }}\n",
            ca.display()
        );
        let balancer = Balancer::start(&entry, "retry: { attempts: 0 }").await;
        let hits = azure.request_count("plain");
        let response = balancer.post_chat().await;
        let record = &balancer.wait_for_records(1).await[0];
        if expected {
            assert_eq!(
                (response.status, answering_backend(&response).as_str()),
                (200, "secure"),
                "{}",
                response.text()
            );
            assert_eq!(*names.lock().unwrap(), ["contoso.test"]);
            let request = azure.received_requests("plain").pop().unwrap();
            assert_eq!(request.header("host"), Some("contoso.test"));
        } else {
            assert_eq!(
                (response.status, response.error_code().as_str()),
                (502, "upstream_failed"),
                "{name} {days:?}"
            );
            assert_eq!(record["attempts"][0]["error"], "tls", "{record:#}");
            assert_eq!(azure.request_count("plain"), hits);
            balancer
                .wait_for_log("backend secure: TLS handshake failed; expected an unexpired certificate for contoso.test from an authority in tls.ca: ")
                .await;
        }
    }
}

#[tokio::test]
async fn without_tls_ca_the_system_authorities_are_used() {
    let azure = start_simulator(&["plain"]).await;
    let (trusted, key) = (generate_authority(), generate_key());
    let certificate = issue_certificate("localhost", (-1, 1), &key, Some(&trusted));
    let (address, _) = start_tls_proxy(azure.address("plain"), &certificate, &key).await;
    let port = address.port();
    let entry = format!(
        "  - name: secure\n    endpoint: https://127.0.0.1:{port}\n    tls: {{ server_name: localhost }}\n    credential: {{ api_key: plain-key }}\n"
    );
    let balancer = Balancer::start(&entry, "retry: { attempts: 0 }").await;
    assert_eq!(
        balancer.post_chat().await.status,
        502,
        "expected a certificate of an unknown authority to be rejected"
    );
    assert_eq!(balancer.wait_for_records(1).await[0]["attempts"][0]["error"], "tls");
}

#[tokio::test]
async fn resources_on_one_address_do_not_share_connections() {
    let azure = start_simulator(&["plain"]).await;
    let (trusted, key) = (generate_authority(), generate_key());
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, trusted.certificate.to_pem().unwrap()).unwrap();
    let certificate = issue_certificate("*.contoso.test", (-1, 1), &key, Some(&trusted));
    let (address, names) = start_tls_proxy(azure.address("plain"), &certificate, &key).await;
    let entries = ["one", "two"].map(|name| {
        format!(
            "  - name: {name}\n    endpoint: https://{address}\n    credential: {{ api_key: plain-key }}\n    tls: {{ ca: {}, server_name: {name}.contoso.test }}\n",
            ca.display()
        )
    });
    let balancer = Balancer::start(&entries.concat(), "").await;
    for turn in 0..6 {
        let response = balancer.post_chat().await;
        let name = ["one", "two"][turn % 2];
        assert_eq!(
            (response.status, answering_backend(&response).as_str()),
            (200, name),
            "{}",
            response.text()
        );
        let host = format!("{name}.contoso.test");
        assert_eq!(azure.received_requests("plain").pop().unwrap().header("host"), Some(host.as_str()));
    }
    let mut requested_names = names.lock().unwrap().clone();
    requested_names.sort();
    requested_names.dedup();
    assert_eq!(requested_names, ["one.contoso.test", "two.contoso.test"]);
}

/// A client of a TLS listener.
struct TlsClient<'a> {
    trusted_authority: &'a CertificateAuthority,
    server_name: &'a str,
    client_certificate: Option<(&'a X509, &'a PKey<Private>)>,
    max_version: Option<SslVersion>,
}

impl TlsClient<'_> {
    /// Sends one chat request on a new connection; returns the certificate of the listener and the status.
    async fn post_chat(&self, address: SocketAddr, key: &str) -> Result<(X509, u16), String> {
        let mut connector = SslConnector::builder(SslMethod::tls()).unwrap();
        connector.cert_store_mut().add_cert(self.trusted_authority.certificate.clone()).unwrap();
        connector.set_max_proto_version(self.max_version).unwrap();
        if let Some((certificate, key)) = self.client_certificate {
            connector.set_certificate(certificate).unwrap();
            connector.set_private_key(key).unwrap();
        }
        let mut configuration = connector.build().configure().unwrap();
        configuration.set_verify_hostname(false);
        let ssl = configuration.into_ssl(self.server_name).unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        let mut stream = SslStream::new(ssl, stream).unwrap();
        Pin::new(&mut stream).connect().await.map_err(|error| error.to_string())?;
        let host = stream.ssl().peer_certificate().unwrap();
        let key = if key.is_empty() { String::new() } else { format!("api-key: {key}\r\n") };
        let length = CHAT_BODY.len();
        let request = format!(
            "POST {CHAT_TARGET} HTTP/1.1\r\nHost: x\r\n{key}Connection: close\r\nContent-Length: {length}\r\n\r\n{CHAT_BODY}"
        );
        stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
        let mut response = Vec::new();
        let _ = stream.read_to_end(&mut response).await;
        let response = String::from_utf8_lossy(&response);
        let status = response.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((host, status.ok_or("no response")?))
    }
}

fn write_pair_as(directory: &Path, name: &str, certificate: &X509, key: &PKey<Private>) {
    std::fs::write(directory.join(format!("{name}.key")), key.private_key_to_pem_pkcs8().unwrap()).unwrap();
    std::fs::write(directory.join(format!("{name}.pem")), certificate.to_pem().unwrap()).unwrap();
}

fn dns_name_of(certificate: &X509) -> String {
    let names = certificate.subject_alt_names().unwrap();
    names.iter().find_map(|name| name.dnsname()).unwrap().to_owned()
}

/// Starts a balancer whose listener has these further keys in its `tls` block.
async fn start_with_tls_block(
    directory: tempfile::TempDir,
    tls: &str,
    backends: &str,
    clients: &str,
) -> Balancer {
    let [address, admin] = [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], support::free_port())));
    let text = format!(
        "listeners:\n  - address: {address}\n    tls: {{ certificate: first.pem, private_key: first.key{tls} }}\n\
         server: {{ drain_delay: 0s }}\nrecord: {{ jsonl: {{ path: records.jsonl }} }}\n\
         admin: {{ address: {admin} }}\nbackends:\n{backends}{clients}"
    );
    Balancer::start_from_file(directory, address, admin, &text).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_selects_its_certificate_by_server_name() {
    let (azure, trusted, key) = (start_simulator(&["a"]).await, generate_authority(), generate_key());
    let directory = tempfile::tempdir().unwrap();
    for (file, host) in [
        ("first", "first.test"),
        ("second", "second.test"),
        ("wild", "*.wild.test"),
        ("exact", "exact.wild.test"),
    ] {
        write_pair_as(directory.path(), file, &issue_certificate(host, (-1, 1), &key, Some(&trusted)), &key);
    }
    let pair = |file: &str| format!("{{ certificate: {file}.pem, private_key: {file}.key }}");
    let tls =
        format!(", additional_certificates: [ {}, {}, {} ]", pair("second"), pair("wild"), pair("exact"));
    let balancer =
        start_with_tls_block(directory, &tls, &all_backends_yaml(&azure), &support::clients_yaml()).await;
    let certificate_for = async |host: &str| {
        let client = TlsClient {
            trusted_authority: &trusted,
            server_name: host,
            client_certificate: None,
            max_version: None,
        };
        let (certificate, status) = client.post_chat(balancer.address, CLIENT_KEY).await.unwrap();
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
        assert_eq!(dns_name_of(&certificate_for(host).await), expected, "{host}");
    }
    // One pair is replaced. A new certificate without its key changes nothing; with its key it is used. The
    // other pairs stay.
    let new_key = support::tls::generate_key();
    let new = issue_certificate("second.test", (-1, 2), &new_key, Some(&trusted));
    let old = certificate_for("second.test").await;
    std::fs::write(balancer.path("second.pem"), new.to_pem().unwrap()).unwrap();
    balancer.wait_for_log("the old certificates stay in use: tls.private_key").await;
    assert_eq!(certificate_for("second.test").await.not_after(), old.not_after());
    write_pair_as(balancer.path("").as_path(), "second", &new, &new_key);
    wait_until_async("the new certificate is in use", async || {
        certificate_for("second.test").await.not_after() != old.not_after()
    })
    .await;
    assert_eq!(dns_name_of(&certificate_for("first.test").await), "first.test");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_authenticated_by_certificate() {
    let (azure, server_authority, client_authority, other_authority) =
        (start_simulator(&["a"]).await, generate_authority(), generate_authority(), generate_authority());
    let directory = tempfile::tempdir().unwrap();
    let own_key = generate_key();
    write_pair_as(
        directory.path(),
        "first",
        &issue_certificate("first.test", (-1, 1), &own_key, Some(&server_authority)),
        &own_key,
    );
    std::fs::write(directory.path().join("clients.pem"), client_authority.certificate.to_pem().unwrap())
        .unwrap();
    let hash = sha256_hex(CLIENT_KEY);
    let clients = format!(
        "clients:\n  - {{ name: team-a, keys: [ {{ sha256: {hash} }} ] }}\n  - {{ name: team-b, certificates: ['CN=team-b'] }}\n"
    );
    let balancer =
        start_with_tls_block(directory, ", client_ca: clients.pem", &all_backends_yaml(&azure), &clients)
            .await;
    let key = generate_key();
    let certificate_of =
        |name: &str, days, issuer: &CertificateAuthority| issue_certificate(name, days, &key, Some(issuer));
    let (team_b_certificate, unlisted_certificate) = (
        certificate_of("team-b", (-1, 1), &client_authority),
        certificate_of("stranger", (-1, 1), &client_authority),
    );
    let (expired_certificate, forged_certificate) = (
        certificate_of("team-b", (-3, -2), &client_authority),
        certificate_of("team-b", (-1, 1), &other_authority),
    );
    let mut expected = Vec::new();
    for max_version in [Some(SslVersion::TLS1_2), None] {
        let chat_status = async |client_certificate: Option<&X509>, with: &str| {
            let client_certificate = client_certificate.map(|certificate| (certificate, &key));
            let client = TlsClient {
                trusted_authority: &server_authority,
                server_name: "first.test",
                client_certificate,
                max_version,
            };
            client.post_chat(balancer.address, with).await.ok().map(|(_, status)| status)
        };
        assert_eq!(chat_status(Some(&team_b_certificate), "").await, Some(200), "{}", balancer.log());
        assert_eq!(chat_status(Some(&unlisted_certificate), CLIENT_KEY).await, Some(200));
        assert_eq!(chat_status(Some(&unlisted_certificate), "").await, Some(401));
        assert_eq!(
            chat_status(Some(&team_b_certificate), CLIENT_KEY).await,
            Some(401),
            "expected a certificate and a key of different clients to be refused"
        );
        for invalid_certificate in [None, Some(&expired_certificate), Some(&forged_certificate)] {
            assert_eq!(chat_status(invalid_certificate, CLIENT_KEY).await, None, "{max_version:?}");
        }
        expected.extend([Some("team-b"), Some("team-a"), None, None]);
    }
    let records = balancer.wait_for_records(expected.len()).await;
    let clients: Vec<_> = records.iter().map(|record| record["client"].as_str()).collect();
    assert_eq!(clients, expected);
    // After the authority is replaced, certificates of the old one are rejected.
    std::fs::write(balancer.path("clients.pem"), other_authority.certificate.to_pem().unwrap()).unwrap();
    balancer.wait_for_log("new certificates are in use").await;
    let chat_status = async |client_certificate: &X509| {
        let client = TlsClient {
            trusted_authority: &server_authority,
            server_name: "first.test",
            client_certificate: Some((client_certificate, &key)),
            max_version: None,
        };
        client.post_chat(balancer.address, "").await.ok().map(|(_, status)| status)
    };
    assert_eq!(
        (chat_status(&team_b_certificate).await, chat_status(&forged_certificate).await),
        (None, Some(200))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_sent_to_a_backend_that_requires_one() {
    let (azure, trusted, key) = (start_simulator(&["plain"]).await, generate_authority(), generate_key());
    let plain = azure.address("plain");
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
    acceptor.set_certificate(&issue_certificate("localhost", (-1, 1), &key, Some(&trusted))).unwrap();
    acceptor.set_private_key(&key).unwrap();
    acceptor.cert_store_mut().add_cert(trusted.certificate.clone()).unwrap();
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
    write_pair_as(directory.path(), "ca", &trusted.certificate, &trusted.key);
    write_pair_as(
        directory.path(),
        "own",
        &issue_certificate("balancer", (-1, 1), &key, Some(&trusted)),
        &key,
    );
    let path = |name: &str| directory.path().join(name).display().to_string();
    let entry = |name: &str, extra_yaml: &str| {
        let ca = path("ca.pem");
        format!(
            "  - name: {name}\n    endpoint: https://localhost:{port}\n    credential: {{ api_key: plain-key }}\n    tls: {{ ca: {ca}{extra_yaml} }}\n"
        )
    };
    let own_pair = format!(", certificate: {}, private_key: {}", path("own.pem"), path("own.key"));
    // Both backends have the same endpoint; they must not share connections.
    let balancer = Balancer::start(&[entry("shows", &own_pair), entry("hides", "")].concat(), "").await;
    for _ in 0..6 {
        let response = balancer.post_chat().await;
        assert_eq!(
            (response.status, answering_backend(&response).as_str()),
            (200, "shows"),
            "{}",
            balancer.log()
        );
    }
    let certificates = balancer.status().await["certificates"].clone();
    assert_eq!(certificates[0]["certificate"], path("own.pem"), "{certificates}");
    assert_eq!(certificates[0]["used_by"], serde_json::json!(["backend shows"]), "{certificates}");
    let attempts = balancer.wait_for_records(6).await;
    let attempts = attempts.iter().flat_map(|record| record["attempts"].as_array().unwrap());
    assert!(
        attempts.into_iter().any(|attempt| attempt["backend"] == "hides" && attempt["error"].is_string())
    );
}
