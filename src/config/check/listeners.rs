//! `listeners`: where clients connect, and whose word about a client's address is believed.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use openssl::ssl::{SslContext, SslMethod};

use super::backends::authorities;
use super::credentials::pair;
use crate::config::node::{Inner, Map};
use crate::config::{KeyPair, Listener, ListenerTls, PairFiles, TlsVersion};

const VERSIONS: [(&str, TlsVersion); 2] = [("1.2", TlsVersion::V12), ("1.3", TlsVersion::V13)];

/// More than a large office behind one address needs, less than exhausts the descriptors of a
/// process.
const CONNECTIONS_PER_CLIENT: usize = 4096;
/// As many sockets as an upgrade can hand over, one of them the admin API's.
const LISTENERS_MAX: usize = 31;

/// Reads all listeners; no two may want the same port of the same address.
pub(super) fn read(root: &Map<'_, '_>) -> Option<Vec<Listener>> {
    let node = root.need("listeners", "write at least one, such as - address: 127.0.0.1:8080")?;
    let mut taken: Vec<(SocketAddr, String)> = Vec::new();
    let listeners =
        node.some_of_each("must have at least one listener", |node| listener(node, &mut taken))?;
    if listeners.len() > LISTENERS_MAX {
        return node.error("must have at most 31 listeners: an upgrade hands over no more sockets");
    }
    Some(listeners)
}

fn listener(node: &Inner<'_, '_>, taken: &mut Vec<(SocketAddr, String)>) -> Option<Listener> {
    let map = node.map(&["address", "tls", "http2", "trusted_proxies", "connections_per_client"])?;
    let speaks_tls = map.find("tls").is_some();
    let address =
        map.need("address", "write an IP address with a port, such as 127.0.0.1:8080").and_then(|node| {
            let address = node.parsed(|text| {
                text.parse::<SocketAddr>()
                    .map_err(|_| "must be an IP address with a port, such as 127.0.0.1:8080 or \"[::]:8080\"")
            })?;
            if let Some((_, other)) = taken.iter().find(|(other, _)| overlap(*other, address)) {
                return node.error(format!("is taken by {other}; use another port or remove one of them"));
            }
            if !address.ip().to_canonical().is_loopback() && !speaks_tls {
                node.warn(
                    "is not a loopback address: keys and prompts travel in clear between clients and here",
                );
            }
            taken.push((address, node.path.clone()));
            Some(address)
        });
    let trusted_proxies = map.or("trusted_proxies", Vec::new(), |node| node.each(network));
    let tls = map.maybe("tls", tls);
    let http2 = map.or("http2", false, |node| {
        let http2 = node.flag()?;
        if http2 && !speaks_tls {
            return node.error("needs `tls`: clients agree on HTTP/2 in the TLS handshake");
        }
        Some(http2)
    });
    let connections_per_client = map.or("connections_per_client", CONNECTIONS_PER_CLIENT, |node| {
        usize::try_from(node.number(1..=1_000_000)?).ok()
    });
    Some(Listener {
        address: address?,
        tls: tls?,
        http2: http2?,
        trusted_proxies: trusted_proxies?,
        connections_per_client: connections_per_client?,
    })
}

/// The TLS of a listener, or of the admin API.
pub(super) fn tls(node: &Inner<'_, '_>) -> Option<ListenerTls> {
    let keys = [
        "certificate",
        "private_key",
        "additional_certificates",
        "minimum_version",
        "ciphers",
        "ciphersuites",
        "client_ca",
    ];
    let map = node.map(&keys)?;
    let first = pair(&map);
    let more = map.or("additional_certificates", Vec::new(), |node| {
        node.each(|node| pair(&node.map(&["certificate", "private_key"])?))
    });
    let minimum_version = map.or("minimum_version", TlsVersion::V12, |node| node.word(&VERSIONS));
    let list = |key, is_good: fn(&str) -> bool| {
        map.maybe(key, |node| {
            let must = "must be a list of names that OpenSSL knows, joined by colons";
            node.parsed(|text| is_good(text).then(|| text.to_owned()).ok_or(must))
        })
    };
    let ciphers = list("ciphers", |list| {
        SslContext::builder(SslMethod::tls()).is_ok_and(|mut context| context.set_cipher_list(list).is_ok())
    });
    let ciphersuites = list("ciphersuites", |list| {
        SslContext::builder(SslMethod::tls()).is_ok_and(|mut context| context.set_ciphersuites(list).is_ok())
    });
    let client_ca = map.maybe("client_ca", authorities);
    let pairs: Vec<PairFiles> = std::iter::once(first?).chain(more?).collect();
    warn_of_names(&map, &pairs);
    Some(ListenerTls {
        pairs,
        minimum_version: minimum_version?,
        ciphers: ciphers?,
        ciphersuites: ciphersuites?,
        client_ca: client_ca?,
    })
}

/// A certificate that no name leads to is never shown; one without names is refused by clients.
fn warn_of_names(map: &Map<'_, '_>, pairs: &[PairFiles]) {
    let mut known: HashMap<String, usize> = HashMap::new();
    for (i, files) in pairs.iter().enumerate() {
        let Ok(pair) = KeyPair::read(files) else { continue };
        let at = match i {
            0 => map.at("certificate"),
            _ => format!("{}[{}].certificate", map.at("additional_certificates"), i - 1),
        };
        let names = pair.names();
        if names.is_empty() && i > 0 {
            map.report.warn(&at, "has no DNS name (subject alternative name), so nobody is ever shown it");
        }
        for name in names {
            if let Some(other) = known.get(&name).filter(|other| **other != i) {
                let other = if *other == 0 {
                    "certificate".to_owned()
                } else {
                    format!("additional_certificates[{}]", other - 1)
                };
                map.report.warn(&at, format!("is also for {name}, for which {other} is shown"));
            } else {
                known.insert(name, i);
            }
        }
    }
}

/// Whether both cannot be listened on: the same port of the same address, or of all addresses.
/// `[::]` is all of them, IPv4 included; port 0 is a different one each time.
pub(super) fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let (x, y) = (a.ip().to_canonical(), b.ip().to_canonical());
    let covers = |all: IpAddr, one: IpAddr| all.is_unspecified() && (all.is_ipv6() || one.is_ipv4());
    a.port() == b.port() && a.port() != 0 && (x == y || covers(x, y) || covers(y, x))
}

fn network(node: &Inner<'_, '_>) -> Option<IpNet> {
    let network = node.parsed(|text| {
        text.parse::<IpNet>()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
            .map_err(|_| "must be an IP address or a network such as 10.0.0.0/8")
    })?;
    if network.prefix_len() == 0 {
        node.warn("is every address: any client can then claim to be any other");
    }
    Some(network.trunc())
}

#[cfg(test)]
mod tests {
    use openssl::pkey::PKey;

    use super::*;
    use crate::config::tests::{assert_problems, assert_warnings, good, pair};

    #[test]
    fn networks_are_plain_addresses_too() {
        let yaml = "listeners: [ { address: '127.0.0.1:1', trusted_proxies: [10.1.2.3/8, 192.0.2.1, '2001:db8::/32'] } ]";
        let networks: Vec<String> =
            good(yaml).config.listeners[0].trusted_proxies.iter().map(IpNet::to_string).collect();
        assert_eq!(networks, ["10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32"]);
        assert!(good("").config.listeners[0].trusted_proxies.is_empty());
    }

    #[test]
    fn addresses_overlap_by_port() {
        for (a, b, expected) in [
            ("127.0.0.1:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "127.0.0.1:2", false),
            ("127.0.0.1:1", "127.0.0.2:1", false),
            ("0.0.0.0:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "[::]:1", true),
            ("[::]:1", "0.0.0.0:1", true),
            ("[::1]:1", "0.0.0.0:1", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
        ] {
            assert_eq!(overlap(a.parse().unwrap(), b.parse().unwrap()), expected, "{a} {b}");
        }
    }

    #[test]
    fn a_pair_is_read_and_belongs_together() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        pair(directory.path(), "good", 90, &["a.test", "*.b.test"]);
        pair(directory.path(), "soon", 3, &["A.TEST"]);
        pair(directory.path(), "nameless", 90, &[]);
        let own = PKey::private_key_from_pem(&std::fs::read(path("good.key")).unwrap()).unwrap();
        let cipher = openssl::symm::Cipher::aes_256_cbc();
        let locked = own.private_key_to_pem_pkcs8_passphrase(cipher, b"secret").unwrap();
        std::fs::write(path("locked"), locked).unwrap();
        let listener = |certificate: &str, key: &str, more: &str| {
            let (certificate, key) = (path(certificate), path(key));
            format!(
                "listeners: [ {{ address: '[::]:443', tls: {{ certificate: '{certificate}', private_key: '{key}'{more} }}, http2: true }} ]"
            )
        };
        let all = ", minimum_version: '1.3', ciphers: 'ECDHE+AESGCM:ECDHE+CHACHA20', ciphersuites: TLS_AES_256_GCM_SHA384";
        let open = "clients: is open and a listener is not on loopback: whoever can connect uses your keys";
        assert_warnings(&[(&listener("good.pem", "good.key", all), &[open])]);
        let warnings = &good(&listener("soon.pem", "soon.key", "")).warnings;
        assert!(warnings[0].to_string().starts_with("listeners[0].tls.certificate: ends or ended on "));
        for (certificate, key, more, expected) in [
            ("good.pem", "soon.key", "", "tls.private_key: must be the key of the certificate"),
            (
                "good.pem",
                "locked",
                "",
                "tls.private_key: must be a PEM file with one private key without a passphrase",
            ),
            ("good.pem", "good.pem", "", "tls.private_key: must be a PEM file with one private key"),
            ("good.key", "good.key", "", "tls.certificate: must be a PEM file; there is no certificate in"),
            ("none", "good.key", "", "tls.certificate: cannot read"),
            ("good.pem", "none", "", "tls.private_key: cannot read"),
            ("good.pem", "good.key", ", minimum_version: '1.1'", "tls.minimum_version: must be 1.2 or 1.3"),
            (
                "good.pem",
                "good.key",
                ", ciphers: nonsense",
                "tls.ciphers: must be a list of names that OpenSSL knows",
            ),
            ("good.pem", "good.key", ", ciphersuites: nonsense", "tls.ciphersuites: must be a list of names"),
            ("good.pem", "good.key", ", client_ca: none", "tls.client_ca: cannot read"),
            (
                "good.pem",
                "good.key",
                ", additional_certificates: [ { certificate: none, private_key: none } ]",
                "tls.additional_certificates[0].certificate: cannot read",
            ),
        ] {
            let said = crate::config::tests::problems_in(&listener(certificate, key, more));
            assert!(said.len() == 1 && said[0].contains(expected), "{expected}: {said:?}");
            assert!(!said[0].contains("secret"));
        }
        let more = |name: &str| {
            let (certificate, key) = (path(&format!("{name}.pem")), path(&format!("{name}.key")));
            format!(", additional_certificates: [ {{ certificate: '{certificate}', private_key: '{key}' }} ]")
        };
        let warnings = good(&listener("good.pem", "good.key", &more("soon"))).warnings;
        assert_eq!(
            warnings[1].to_string(),
            "listeners[0].tls.additional_certificates[0].certificate: is also for a.test, for which certificate is shown"
        );
        let warnings = good(&listener("good.pem", "good.key", &more("nameless"))).warnings;
        assert!(warnings[0].message.starts_with("has no DNS name"), "{warnings:?}");
        let plain = "listeners: [ { address: '127.0.0.1:1', http2: true } ]";
        assert_problems(&[(
            plain,
            &["listeners[0].http2: needs `tls`: clients agree on HTTP/2 in the TLS handshake"],
        )]);
    }

    #[test]
    fn problems() {
        assert_problems(&[
            ("listeners: []", &["listeners: must have at least one listener"]),
            ("listeners:", &["listeners: is empty; write at least one, such as - address: 127.0.0.1:8080"]),
            ("listeners: 127.0.0.1:8080", &["listeners: must be a list, not a string"]),
            (
                "listeners: [ {} ]",
                &[
                    "listeners[0].address: is missing; write an IP address with a port, such as 127.0.0.1:8080",
                ],
            ),
            (
                "listeners: [ { address: 'localhost:80' }, { address: 8080 }, { adress: '127.0.0.1:1' } ]",
                &[
                    "listeners[0].address: must be an IP address with a port, such as 127.0.0.1:8080 or \"[::]:8080\", not \"localhost:80\"",
                    "listeners[1].address: must be a string, not a number; write it in quotes",
                    "listeners[2].adress: unknown key; did you mean `address`?",
                    "listeners[2].address: is missing; write an IP address with a port, such as 127.0.0.1:8080",
                ],
            ),
            (
                "listeners: [ { address: '127.0.0.1:1' }, { address: '127.0.0.1:1' } ]",
                &[
                    "listeners[1].address: is taken by listeners[0].address; use another port or remove one of them",
                ],
            ),
            (
                "listeners: [ { address: '127.0.0.1:1', trusted_proxies: [10.0.0.0/33, x] } ]",
                &[
                    "listeners[0].trusted_proxies[0]: must be an IP address or a network such as 10.0.0.0/8, not \"10.0.0.0/33\"",
                    "listeners[0].trusted_proxies[1]: must be an IP address or a network such as 10.0.0.0/8, not \"x\"",
                ],
            ),
        ]);
    }

    #[test]
    fn warnings() {
        assert_warnings(&[
            (
                "listeners: [ { address: '[::]:8080', trusted_proxies: [0.0.0.0/0] } ]",
                &[
                    "listeners[0].address: is not a loopback address: keys and prompts travel in clear between clients and here",
                    "listeners[0].trusted_proxies[0]: is every address: any client can then claim to be any other",
                    "clients: is open and a listener is not on loopback: whoever can connect uses your keys",
                ],
            ),
            ("listeners: [ { address: '[::1]:8080' }, { address: '[::ffff:127.0.0.1]:1' } ]", &[]),
        ]);
    }
}
