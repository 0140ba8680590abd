//! TLS to backends: verified, by name, with the system's or a private authority.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and its output is read then"
)]

mod support;

use support::tls::{authority, certificate, key, terminate};
use support::{Balancer, answerer, azure};

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
