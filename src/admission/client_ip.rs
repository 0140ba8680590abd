//! The address of the client when proxies stand between it and the balancer.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use ipnet::IpNet;

/// The client's address. If the connection comes from a trusted proxy, this is the right-most entry of
/// `x-forwarded-for` that is not a trusted proxy itself; otherwise it is the connection's address.
///
/// Each proxy appends the address that it saw, so entries are read from the right and only as long as
/// the proxy that wrote them is trusted. An entry may have a port and IPv6 brackets. An entry that is
/// not an address ends the search, because nothing to its left can be trusted.
pub fn client_ip(peer: IpAddr, headers: &HeaderMap, trusted_proxies: &[IpNet]) -> IpAddr {
    let mut client = peer;
    let lines: Vec<_> = headers.get_all("x-forwarded-for").iter().collect();
    // As bytes: a proxy may have appended its entry to a line of the client that is no text.
    let entries = lines.iter().rev().flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    for entry in entries {
        if !is_trusted_proxy(client, trusted_proxies) {
            break;
        }
        match parse_forwarded_entry(entry.trim_ascii()) {
            Some(ip) => client = ip,
            None => break,
        }
    }
    client
}

/// Whether this is the address of a trusted proxy. An IPv4 address in IPv6 form counts as IPv4.
pub fn is_trusted_proxy(ip: IpAddr, trusted_proxies: &[IpNet]) -> bool {
    let ip = ip.to_canonical();
    trusted_proxies.iter().any(|net| net.contains(&ip))
}

fn parse_forwarded_entry(entry: &[u8]) -> Option<IpAddr> {
    let entry = std::str::from_utf8(entry).ok()?;
    let without_brackets = entry.strip_prefix('[').and_then(|entry| entry.strip_suffix(']')).unwrap_or(entry);
    without_brackets.parse().ok().or_else(|| entry.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_right_most_untrusted_entry_is_the_client() {
        let trusted: Vec<IpNet> = ["10.0.0.0/8", "fd00::/8"].iter().map(|net| net.parse().unwrap()).collect();
        let table: [(&str, &[&str], &str); 11] = [
            ("203.0.113.9", &["198.51.100.1"], "203.0.113.9"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["1.1.1.1, 198.51.100.1, 10.0.0.7"], "198.51.100.1"),
            ("10.0.0.1", &["1.1.1.1", "198.51.100.1:4711, 10.0.0.7:80"], "198.51.100.1"),
            ("10.0.0.1", &["[2001:db8::1]:443"], "2001:db8::1"),
            ("fd00::1", &["2001:db8::2"], "2001:db8::2"),
            ("::ffff:10.0.0.1", &["[2001:db8::3]"], "2001:db8::3"),
            ("10.0.0.1", &["198.51.100.1, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1", "\u{e9}, 198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["1.1.1.1", "\u{e9}"], "10.0.0.1"),
        ];
        for (peer, lines, expected) in table {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append("x-forwarded-for", HeaderValue::from_bytes(line.as_bytes()).unwrap());
            }
            let client = client_ip(peer.parse().unwrap(), &headers, &trusted);
            assert_eq!(client.to_canonical().to_string(), expected, "{peer} {lines:?}");
        }
    }
}
