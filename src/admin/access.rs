//! Decides who may use the admin API: by host name, by the page that sends the request, and by token.

use std::net::IpAddr;

use http::{HeaderValue, header};
use pingora::protocols::http::ServerSession;

use crate::config::{self, AdminAddress, CertifiedKey};
use crate::credentials::RefreshedSecret;

/// The hosts under which the admin API may be used. Without this check, a page of another site could
/// read it through a DNS name that resolves to this machine (DNS rebinding).
pub(super) struct AllowedHosts {
    configured_ip: IpAddr,
    certificate_names: Vec<String>,
}

impl AllowedHosts {
    /// The hosts of an admin API on TCP; `None` for one on a Unix socket.
    pub(super) fn from_config(config: &config::AdminConfig) -> Option<Self> {
        let AdminAddress::Tcp(address) = config.address else { return None };
        let files = config.tls.iter().flat_map(|tls| &tls.certified_key_files);
        let pairs = files.filter_map(|files| CertifiedKey::from_files(files).ok());
        let certificate_names = pairs.flat_map(|pair| pair.dns_names()).collect();
        Some(Self { configured_ip: address.ip(), certificate_names })
    }

    /// Whether this value of the `Host` header is one of ours: `localhost`, a loopback address, the
    /// configured address, or a name of the certificate.
    fn allows(&self, host: &str) -> bool {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        let name = name.trim_start_matches('[').trim_end_matches(']');
        match name.parse::<IpAddr>() {
            Ok(ip) => {
                ip == self.configured_ip
                    || ip.to_canonical().is_loopback()
                    || self.configured_ip.is_unspecified()
            }
            Err(_) => {
                let domain = name.split_once('.').map(|(_, domain)| domain);
                let matches = |known: &String| match known.strip_prefix("*.") {
                    Some(known) => domain.is_some_and(|domain| domain.eq_ignore_ascii_case(known)),
                    None => known.eq_ignore_ascii_case(name),
                };
                name.eq_ignore_ascii_case("localhost") || self.certificate_names.iter().any(matches)
            }
        }
    }
}

/// Whether a request was sent to one of the allowed hosts and not by a page of another site.
pub(super) fn is_allowed_host_and_origin(session: &ServerSession, hosts: Option<&AllowedHosts>) -> bool {
    let header = |name| session.get_header(name).and_then(|value| value.to_str().ok());
    if header("sec-fetch-site").is_some_and(|site| site == "cross-site") {
        return false;
    }
    let host = header("host");
    if let Some(origin) = session.get_header("origin") {
        let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
        if origin.is_none_or(|(_, origin)| !host.is_some_and(|host| host.eq_ignore_ascii_case(origin))) {
            return false;
        }
    }
    let Some(hosts) = hosts else { return true };
    host.is_some_and(|host| hosts.allows(host))
}

/// Whether a request carries the admin token, if there is one. Digests are compared in constant time, so
/// that not even the length of the token can be measured.
pub(super) fn has_token_if_required(session: &ServerSession, admin_token: Option<&RefreshedSecret>) -> bool {
    let Some(token) = admin_token else { return true };
    let presented = session.get_header(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let presented = presented.and_then(|value| value.split_at_checked(7));
    let (Some((scheme, presented)), Some(token)) = (presented, token.current_value()) else { return false };
    let digest = |bytes: &[u8]| openssl::sha::sha256(bytes);
    scheme.eq_ignore_ascii_case(b"bearer ")
        && openssl::memcmp::eq(&digest(presented), &digest(token.secret.expose_secret().as_bytes()))
}
