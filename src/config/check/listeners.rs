//! `listeners`: where clients connect, and whose word about a client's address is believed.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::config::Listener;
use crate::config::node::{Inner, Map};

/// Reads all listeners; no two may want the same port of the same address.
pub(super) fn read(root: &Map<'_, '_>) -> Option<Vec<Listener>> {
    let node = root.need("listeners", "write at least one, such as - address: 127.0.0.1:8080")?;
    let mut taken: Vec<(SocketAddr, String)> = Vec::new();
    node.some_of_each("must have at least one listener", |node| listener(node, &mut taken))
}

fn listener(node: &Inner<'_, '_>, taken: &mut Vec<(SocketAddr, String)>) -> Option<Listener> {
    let map = node.map(&["address", "trusted_proxies"])?;
    let address =
        map.need("address", "write an IP address with a port, such as 127.0.0.1:8080").and_then(|node| {
            let address = node.parsed(|text| {
                text.parse::<SocketAddr>()
                    .map_err(|_| "must be an IP address with a port, such as 127.0.0.1:8080 or \"[::]:8080\"")
            })?;
            if let Some((_, other)) = taken.iter().find(|(other, _)| overlap(*other, address)) {
                return node.error(format!("is taken by {other}; use another port or remove one of them"));
            }
            if !address.ip().to_canonical().is_loopback() {
                node.warn(
                    "is not a loopback address: keys and prompts travel in clear between clients and here",
                );
            }
            taken.push((address, node.path.clone()));
            Some(address)
        });
    let trusted_proxies = map.or("trusted_proxies", Vec::new(), |node| node.each(network));
    Some(Listener { address: address?, trusted_proxies: trusted_proxies? })
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
    use super::*;
    use crate::config::tests::{assert_problems, assert_warnings, good};

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
