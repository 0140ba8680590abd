//! Where a server, or a node of a cluster, is reached.

use std::fmt;
use std::net::IpAddr;

/// A host, by name or address, and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct NodeAddress {
    pub(super) host: String,
    pub(super) port: u16,
}

impl NodeAddress {
    /// Reads `HOST:PORT`, as a server writes it: IPv6 addresses without brackets. Without a host, it is that of the server
    /// that answers.
    pub(super) fn parse(text: &str, answering_host: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = if host.is_empty() { answering_host } else { host };
        Some(Self { host: host.to_owned(), port: port.parse().ok()? })
    }

    /// The name that the certificate of this server has to be for. Nodes of a cluster are usually announced by their
    /// addresses, which their certificates do not have (as on Azure): those are compared with the host of the configuration.
    pub(super) fn certificate_name<'n>(&'n self, configured_host: &'n str) -> &'n str {
        let is_address = |host: &str| host.parse::<IpAddr>().is_ok();
        if is_address(&self.host) && !is_address(configured_host) { configured_host } else { &self.host }
    }
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_servers_write_them() {
        for (text, expected) in [
            ("10.0.0.4:6379", Some("10.0.0.4:6379")),
            ("node-1.example:7000", Some("node-1.example:7000")),
            ("fd00::4:6379", Some("[fd00::4]:6379")),
            (":7001", Some("redis.example:7001")),
            ("10.0.0.4:70000", None),
            ("10.0.0.4", None),
            ("", None),
        ] {
            let address = NodeAddress::parse(text, "redis.example").map(|address| address.to_string());
            assert_eq!(address.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_node_with_an_address_has_the_certificate_of_the_configured_host() {
        for (node, configured, expected) in [
            ("10.0.0.4", "redis.example", "redis.example"),
            ("fd00::4", "redis.example", "redis.example"),
            ("10.0.0.4", "10.0.0.5", "10.0.0.4"),
            ("node-1.example", "redis.example", "node-1.example"),
            ("redis.example", "redis.example", "redis.example"),
        ] {
            let address = NodeAddress { host: node.to_owned(), port: 1 };
            assert_eq!(address.certificate_name(configured), expected, "{node} {configured}");
        }
    }
}
