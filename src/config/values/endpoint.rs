//! An endpoint: scheme, host and port, parsed from a URL as the Azure portal shows it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::Uri;

/// The paths after the host in URLs that the Azure portal and SDKs use. They are accepted and dropped.
const ACCEPTED_PATHS: [&str; 3] = ["", "/openai", "/openai/v1"];

/// A server that is called over HTTP: an Azure resource, or another service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Whether the scheme is `https`.
    pub uses_tls: bool,
    /// A host name in lower case, or an IP address without brackets.
    pub host: String,
    /// Never 0.
    pub port: u16,
}

impl Endpoint {
    /// The host and port as in a URL and the `Host` header: without the default port of the scheme, IPv6 in
    /// brackets.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let default_port = if self.uses_tls { 443 } else { 80 };
        if self.port == default_port { host } else { format!("{host}:{}", self.port) }
    }

    /// Whether it is a loopback address, or a name that always means one (RFC 6761 section 6.3).
    pub(crate) fn is_loopback(&self) -> bool {
        match self.host.parse::<IpAddr>() {
            Ok(ip) => ip.to_canonical().is_loopback(),
            Err(_) => self.host == "localhost" || self.host.ends_with(".localhost"),
        }
    }

    /// Parses `https://host[:port]`, optionally followed by `/`, `/openai` or `/openai/v1`.
    ///
    /// # Errors
    /// What is wrong, without repeating the text: whether that may be shown is for the caller to decide.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "must be a URL such as https://NAME.openai.azure.com";
        if text.contains('#') {
            return Err("must not have a fragment (`#`)");
        }
        let uri: Uri = text.parse().map_err(|_| EXPECTED)?;
        let uses_tls = match uri.scheme_str() {
            Some(scheme) if scheme.eq_ignore_ascii_case("https") => true,
            Some(scheme) if scheme.eq_ignore_ascii_case("http") => false,
            Some(_) => return Err("must begin with https:// or http://"),
            None => return Err("must begin with https://, such as https://NAME.openai.azure.com"),
        };
        let authority = uri.authority().ok_or(EXPECTED)?;
        if authority.as_str().contains('@') {
            return Err("must not have a user or password; the key belongs under credential.api_key");
        }
        if uri.query().is_some() {
            return Err("must not have a query; api_version is a key of its own");
        }
        let path = uri.path().strip_suffix('/').unwrap_or(uri.path());
        if !ACCEPTED_PATHS.iter().any(|known| known.eq_ignore_ascii_case(path)) {
            return Err("must end after the host, or with /openai or /openai/v1");
        }
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") if uses_tls => 443,
            Some("") => 80,
            Some(port) => port
                .strip_prefix(':')
                .and_then(|port| port.parse().ok())
                .filter(|port| *port != 0)
                .ok_or("must have a port between 1 and 65535 after its `:`")?,
            None => return Err(EXPECTED),
        };
        let host = parse_host(authority.host()).ok_or("must have a valid host name or IP address")?;
        Ok(Self { uses_tls, host, port })
    }
}

/// The host of a URL, in lower case and without brackets.
pub(crate) fn parse_host(text: &str) -> Option<String> {
    if let Some(inside) = text.strip_prefix('[') {
        let ip: Ipv6Addr = inside.strip_suffix(']')?.parse().ok()?;
        return Some(ip.to_string());
    }
    if let Ok(ip) = text.parse::<Ipv4Addr>() {
        return Some(ip.to_string());
    }
    parse_host_name(text)
}

/// A DNS name, in lower case (RFC 1123, and the underscore that some private zones use). Text whose last
/// label is a number is not one: it would be a malformed IPv4 address.
pub(crate) fn parse_host_name(text: &str) -> Option<String> {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = text.rsplit('.').next()?;
    let is_valid =
        text.len() <= 253 && text.split('.').all(is_label) && !last.bytes().all(|b| b.is_ascii_digit());
    is_valid.then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_copied_from_the_azure_portal_are_accepted() {
        for (text, tls, host, port, authority) in [
            (
                "https://Contoso.openai.azure.com",
                true,
                "contoso.openai.azure.com",
                443,
                "contoso.openai.azure.com",
            ),
            ("https://a.b/", true, "a.b", 443, "a.b"),
            ("https://a.b/openai", true, "a.b", 443, "a.b"),
            ("https://a.b/openai/", true, "a.b", 443, "a.b"),
            ("https://a.b/openai/v1", true, "a.b", 443, "a.b"),
            ("HTTPS://a.b/OpenAI/v1/", true, "a.b", 443, "a.b"),
            ("https://a.b:443", true, "a.b", 443, "a.b"),
            ("https://a.b:80", true, "a.b", 80, "a.b:80"),
            ("http://127.0.0.1:8080", false, "127.0.0.1", 8080, "127.0.0.1:8080"),
            ("http://localhost", false, "localhost", 80, "localhost"),
            ("http://[::1]:8080", false, "::1", 8080, "[::1]:8080"),
            ("https://[2001:DB8:0::1]", true, "2001:db8::1", 443, "[2001:db8::1]"),
        ] {
            let endpoint = Endpoint::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(
                (endpoint.uses_tls, endpoint.host.as_str(), endpoint.port),
                (tls, host, port),
                "{text}"
            );
            assert_eq!(endpoint.authority(), authority, "{text}");
        }
    }

    #[test]
    fn an_invalid_endpoint_url_is_refused_with_the_reason() {
        for (text, problem) in [
            ("", "must be a URL"),
            ("a.b", "must begin with https://,"),
            ("/openai", "must begin with https://,"),
            ("ftp://a.b", "must begin with https:// or"),
            ("https://", "must be a URL"),
            ("https://a.b/openai/deployments/x", "must end after the host"),
            ("https://a.b//openai", "must end after the host"),
            ("https://a.b/openai?api-version=v1", "must not have a query"),
            ("https://a.b/?", "must not have a query"),
            ("https://a.b#x", "fragment"),
            ("https://u:p@a.b", "user or password"),
            ("https://a.b:", "a port between"),
            ("https://a.b:0", "a port between"),
            ("https://a.b:99999", "a port between"),
            ("https://a_b-.c", "a valid host"),
            ("https://10.0.0.256", "a valid host"),
            ("https://[::g]", "a valid host"),
            ("https://a..b", "a valid host"),
            ("https://a.b.", "a valid host"),
            ("https://contoso ", "must be a URL"),
        ] {
            let message = Endpoint::parse(text).unwrap_err();
            assert!(message.contains(problem), "{text}: {message}");
        }
    }

    #[test]
    fn loopback_is_recognised_by_address_and_by_name() {
        for (text, expected) in [
            ("http://127.9.9.9", true),
            ("http://[::1]", true),
            ("http://[::ffff:127.0.0.1]", true),
            ("http://LOCALHOST", true),
            ("http://x.localhost", true),
            ("http://10.0.0.1", false),
            ("http://localhost.example", false),
        ] {
            assert_eq!(Endpoint::parse(text).unwrap().is_loopback(), expected, "{text}");
        }
    }
}
