//! Reads and checks `listeners`: addresses, TLS, and the proxies whose `x-forwarded-for` is trusted.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use openssl::ssl::{SslContext, SslMethod};

use super::credentials::{read_ca_file, read_server_key_files};
use crate::config::schema::{ListenerConfig, ServerTlsConfig, TlsVersion};
use crate::config::values::{CertifiedKey, CertifiedKeyFiles};
use crate::config::yaml::{YamlMapping, YamlNode};

const TLS_VERSION_WORDS: [(&str, TlsVersion); 2] = [("1.2", TlsVersion::Tls12), ("1.3", TlsVersion::Tls13)];

/// More than a large office behind one address needs, and few enough that one address cannot use up the
/// file descriptors of the process.
const DEFAULT_MAX_CONNECTIONS_PER_ADDRESS: usize = 4096;
/// Pingora hands over at most 32 sockets in an upgrade (`MAX_FDS` in its `transfer_fd`), and one of them is
/// the admin API's.
const MAX_LISTENERS: usize = 31;

/// Reads all listeners. No two may use the same address and port.
pub(super) fn read_listeners(root: &YamlMapping<'_, '_>) -> Option<Vec<ListenerConfig>> {
    let node = root.require("listeners", "write at least one, such as - address: 127.0.0.1:8080")?;
    let mut taken_addresses: Vec<(SocketAddr, String)> = Vec::new();
    let listeners = node.read_nonempty_list("must have at least one listener", |node| {
        read_listener(node, &mut taken_addresses)
    })?;
    if listeners.len() > MAX_LISTENERS {
        return node.report_error("must have at most 31 listeners: an upgrade hands over no more sockets");
    }
    Some(listeners)
}

fn read_listener(
    node: &YamlNode<'_, '_>,
    taken_addresses: &mut Vec<(SocketAddr, String)>,
) -> Option<ListenerConfig> {
    let map = node.read_mapping(&["address", "tls", "http2", "trusted_proxies", "connections_per_client"])?;
    let has_tls = map.get("tls").is_some();
    let address =
        map.require("address", "write an IP address with a port, such as 127.0.0.1:8080").and_then(|node| {
            let address = node.read_parsed(|text| {
                text.parse::<SocketAddr>()
                    .map_err(|_| "must be an IP address with a port, such as 127.0.0.1:8080 or \"[::]:8080\"")
            })?;
            if let Some((_, other)) =
                taken_addresses.iter().find(|(other, _)| addresses_overlap(*other, address))
            {
                return node
                    .report_error(format!("is taken by {other}; use another port or remove one of them"));
            }
            if !address.ip().to_canonical().is_loopback() && !has_tls {
                node.report_warning(
                    "is not a loopback address and has no tls: keys and prompts travel unencrypted between clients and aoai-lb",
                );
            }
            taken_addresses.push((address, node.key_path.clone()));
            Some(address)
        });
    let trusted_proxies = map.read_or("trusted_proxies", Vec::new(), |node| node.read_each(read_ip_network));
    let tls = map.read_optional("tls", read_server_tls);
    let http2 = map.read_or("http2", false, |node| {
        let http2 = node.read_bool()?;
        if http2 && !has_tls {
            return node.report_error("needs `tls`: clients agree on HTTP/2 in the TLS handshake");
        }
        Some(http2)
    });
    let max_connections_per_client_address =
        map.read_or("connections_per_client", DEFAULT_MAX_CONNECTIONS_PER_ADDRESS, |node| {
            usize::try_from(node.read_integer(1..=1_000_000)?).ok()
        });
    Some(ListenerConfig {
        address: address?,
        tls: tls?,
        http2_enabled: http2?,
        trusted_proxies: trusted_proxies?,
        max_connections_per_client_address: max_connections_per_client_address?,
    })
}

/// Reads the TLS settings of a listener, or of the admin API.
pub(super) fn read_server_tls(node: &YamlNode<'_, '_>) -> Option<ServerTlsConfig> {
    let keys = [
        "certificate",
        "private_key",
        "additional_certificates",
        "minimum_version",
        "ciphers",
        "ciphersuites",
        "client_ca",
    ];
    let map = node.read_mapping(&keys)?;
    let default_key = read_server_key_files(&map);
    let additional_keys = map.read_or("additional_certificates", Vec::new(), |node| {
        node.read_each(|node| read_server_key_files(&node.read_mapping(&["certificate", "private_key"])?))
    });
    let minimum_version =
        map.read_or("minimum_version", TlsVersion::Tls12, |node| node.read_choice(&TLS_VERSION_WORDS));
    let read_cipher_list = |key, is_known_to_openssl: fn(&str) -> bool| {
        map.read_optional(key, |node| {
            let expected = "must be a list of cipher names that OpenSSL knows, joined by colons";
            node.read_parsed(|text| is_known_to_openssl(text).then(|| text.to_owned()).ok_or(expected))
        })
    };
    // OpenSSL ignores unknown names as long as one is known: SSL_CTX_set_cipher_list(3).
    let tls12_ciphers = read_cipher_list("ciphers", |list| {
        SslContext::builder(SslMethod::tls()).is_ok_and(|mut context| context.set_cipher_list(list).is_ok())
    });
    let tls13_ciphersuites = read_cipher_list("ciphersuites", |list| {
        SslContext::builder(SslMethod::tls()).is_ok_and(|mut context| context.set_ciphersuites(list).is_ok())
    });
    let client_ca_file = map.read_optional("client_ca", read_ca_file);
    let certified_keys: Vec<CertifiedKeyFiles> =
        std::iter::once(default_key?).chain(additional_keys?).collect();
    warn_about_unused_certificates(&map, &certified_keys);
    Some(ServerTlsConfig {
        certified_key_files: certified_keys,
        minimum_version: minimum_version?,
        tls12_ciphers: tls12_ciphers?,
        tls13_ciphersuites: tls13_ciphersuites?,
        client_ca_file: client_ca_file?,
    })
}

/// Warns about certificates that are never used: those without a DNS name, and those whose names an earlier
/// certificate has too.
fn warn_about_unused_certificates(map: &YamlMapping<'_, '_>, certified_keys: &[CertifiedKeyFiles]) {
    let mut index_by_dns_name: HashMap<String, usize> = HashMap::new();
    for (index, files) in certified_keys.iter().enumerate() {
        let Ok(certified_key) = CertifiedKey::from_files(files) else { continue };
        let key_path = match index {
            0 => map.key_path_of("certificate"),
            _ => format!("{}[{}].certificate", map.key_path_of("additional_certificates"), index - 1),
        };
        let dns_names = certified_key.dns_names();
        if dns_names.is_empty() && index > 0 {
            map.problems
                .report_warning(&key_path, "has no DNS name (subject alternative name), so it is never used");
        }
        for name in dns_names {
            if let Some(other) = index_by_dns_name.get(&name).filter(|other| **other != index) {
                let other = if *other == 0 {
                    "certificate".to_owned()
                } else {
                    format!("additional_certificates[{}]", other - 1)
                };
                map.problems.report_warning(
                    &key_path,
                    format!("is also valid for {name}, but {other} is used for that name"),
                );
            } else {
                index_by_dns_name.insert(name, index);
            }
        }
    }
}

/// Whether a process cannot listen on both: they have the same port, and the same IP address or one that
/// includes the other. `[::]` includes IPv4. Port 0 is a free port, different each time.
pub(super) fn addresses_overlap(a: SocketAddr, b: SocketAddr) -> bool {
    // The canonical form of `::ffff:127.0.0.1` is 127.0.0.1, which is the same socket address.
    let (ip_a, ip_b) = (a.ip().to_canonical(), b.ip().to_canonical());
    let covers = |wide: IpAddr, other: IpAddr| wide.is_unspecified() && (wide.is_ipv6() || other.is_ipv4());
    a.port() == b.port() && a.port() != 0 && (ip_a == ip_b || covers(ip_a, ip_b) || covers(ip_b, ip_a))
}

fn read_ip_network(node: &YamlNode<'_, '_>) -> Option<IpNet> {
    let network = node.read_parsed(|text| {
        text.parse::<IpNet>()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
            .map_err(|_| "must be an IP address or a network such as 10.0.0.0/8")
    })?;
    if network.prefix_len() == 0 {
        node.report_warning(
            "includes every address, so any client can claim to be any other; list only your proxies",
        );
    }
    Some(network.trunc())
}

#[cfg(test)]
mod tests {
    use openssl::pkey::PKey;

    use super::*;
    use crate::config::testing::{
        assert_errors, assert_warnings, parse_valid, write_certificate_valid_in, write_test_certificate,
    };

    #[test]
    fn a_trusted_proxy_may_be_a_single_address() {
        let yaml = "listeners: [ { address: '127.0.0.1:1', trusted_proxies: [10.1.2.3/8, 192.0.2.1, '2001:db8::/32'] } ]";
        let networks: Vec<String> =
            parse_valid(yaml).config.listeners[0].trusted_proxies.iter().map(IpNet::to_string).collect();
        assert_eq!(networks, ["10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32"]);
        assert!(parse_valid("").config.listeners[0].trusted_proxies.is_empty());
    }

    #[test]
    fn addresses_overlap_when_they_share_a_port() {
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
            assert_eq!(addresses_overlap(a.parse().unwrap(), b.parse().unwrap()), expected, "{a} {b}");
        }
    }

    #[test]
    fn certificate_and_private_key_must_match() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        write_test_certificate(directory.path(), "good", 90, &["a.test", "*.b.test"]);
        write_test_certificate(directory.path(), "soon", 3, &["A.TEST"]);
        write_test_certificate(directory.path(), "nameless", 90, &[]);
        write_certificate_valid_in(directory.path(), "expired", (-30.0, -2.5), &[]);
        write_certificate_valid_in(directory.path(), "future", (2.5, 30.0), &[]);
        let private_key = PKey::private_key_from_pem(&std::fs::read(path("good.key")).unwrap()).unwrap();
        let cipher = openssl::symm::Cipher::aes_256_cbc();
        let locked = private_key.private_key_to_pem_pkcs8_passphrase(cipher, b"secret").unwrap();
        std::fs::write(path("locked"), locked).unwrap();
        let listener = |certificate: &str, key: &str, more: &str| {
            let (certificate, key) = (path(certificate), path(key));
            format!(
                "listeners: [ {{ address: '[::]:443', tls: {{ certificate: '{certificate}', private_key: '{key}'{more} }}, http2: true }} ]"
            )
        };
        let all = ", minimum_version: '1.3', ciphers: 'ECDHE+AESGCM:ECDHE+CHACHA20', ciphersuites: TLS_AES_256_GCM_SHA384";
        let open =
            "clients: is open and a listener is not on loopback: anyone who can connect uses your keys";
        assert_warnings(&[(&listener("good.pem", "good.key", all), &[open])]);
        let warnings = &parse_valid(&listener("soon.pem", "soon.key", "")).warnings;
        assert!(warnings[0].to_string().starts_with("listeners[0].tls.certificate: expires in "));
        for (certificate, key, more, expected) in [
            ("good.pem", "soon.key", "", "tls.private_key: must be the private key of the certificate"),
            (
                "good.pem",
                "locked",
                "",
                "tls.private_key: must be a PEM file with one private key without a passphrase",
            ),
            ("good.pem", "good.pem", "", "tls.private_key: must be a PEM file with one private key"),
            ("good.key", "good.key", "", "tls.certificate: must be a PEM file with a certificate"),
            ("none", "good.key", "", "tls.certificate: cannot read"),
            ("good.pem", "none", "", "tls.private_key: cannot read"),
            ("good.pem", "good.key", ", minimum_version: '1.1'", "tls.minimum_version: must be 1.2 or 1.3"),
            (
                "good.pem",
                "good.key",
                ", ciphers: nonsense",
                "tls.ciphers: must be a list of cipher names that OpenSSL knows",
            ),
            (
                "good.pem",
                "good.key",
                ", ciphersuites: nonsense",
                "tls.ciphersuites: must be a list of cipher names",
            ),
            ("expired.pem", "expired.key", "", "tls.certificate: expired 2 days ago, on 20"),
            ("future.pem", "future.key", "", "tls.certificate: is not valid before 20"),
            ("good.pem", "good.key", ", client_ca: none", "tls.client_ca: cannot read"),
            (
                "good.pem",
                "good.key",
                ", additional_certificates: [ { certificate: none, private_key: none } ]",
                "tls.additional_certificates[0].certificate: cannot read",
            ),
        ] {
            let errors = crate::config::testing::errors_in(&listener(certificate, key, more));
            assert!(errors.len() == 1 && errors[0].contains(expected), "{expected}: {errors:?}");
            assert!(!errors[0].contains("secret"));
        }
        let more = |name: &str| {
            let (certificate, key) = (path(&format!("{name}.pem")), path(&format!("{name}.key")));
            format!(", additional_certificates: [ {{ certificate: '{certificate}', private_key: '{key}' }} ]")
        };
        let warnings = parse_valid(&listener("good.pem", "good.key", &more("soon"))).warnings;
        assert_eq!(
            warnings[1].to_string(),
            "listeners[0].tls.additional_certificates[0].certificate: is also valid for a.test, but certificate is used for that name"
        );
        let warnings = parse_valid(&listener("good.pem", "good.key", &more("nameless"))).warnings;
        assert!(warnings[0].message.starts_with("has no DNS name"), "{warnings:?}");
        let plain = "listeners: [ { address: '127.0.0.1:1', http2: true } ]";
        assert_errors(&[(
            plain,
            &["listeners[0].http2: needs `tls`: clients agree on HTTP/2 in the TLS handshake"],
        )]);
    }

    #[test]
    fn invalid_listener_settings_are_reported() {
        assert_errors(&[
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
                    "listeners[0].address: must be an IP address with a port, such as 127.0.0.1:8080 or \"[::]:8080\"",
                    "listeners[1].address: must be an IP address with a port, such as 127.0.0.1:8080 or \"[::]:8080\"",
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
                    "listeners[0].trusted_proxies[0]: must be an IP address or a network such as 10.0.0.0/8",
                    "listeners[0].trusted_proxies[1]: must be an IP address or a network such as 10.0.0.0/8",
                ],
            ),
        ]);
    }

    #[test]
    fn public_listeners_and_open_proxy_trust_are_warnings() {
        assert_warnings(&[
            (
                "listeners: [ { address: '[::]:8080', trusted_proxies: [0.0.0.0/0] } ]",
                &[
                    "listeners[0].address: is not a loopback address and has no tls: keys and prompts travel unencrypted between clients and aoai-lb",
                    "listeners[0].trusted_proxies[0]: includes every address, so any client can claim to be any other; list only your proxies",
                    "clients: is open and a listener is not on loopback: anyone who can connect uses your keys",
                ],
            ),
            ("listeners: [ { address: '[::1]:8080' }, { address: '[::ffff:127.0.0.1]:1' } ]", &[]),
        ]);
    }
}
