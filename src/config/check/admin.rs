//! Reads and checks `admin`: where the admin API listens, and its token and TLS.

use std::net::SocketAddr;

use super::credentials::read_header_secret;
use super::listeners::{addresses_overlap, read_server_tls};
use super::server::MAX_SOCKET_PATH_BYTES;
use crate::config::schema::{AdminAddress, AdminConfig, ListenerConfig};
use crate::config::yaml::YamlNode;

const HOW_TO_WRITE_ADDRESS: &str = "write 127.0.0.1:9901 or unix:/run/aoai-lb/admin.sock";
const ADMIN_KEYS: [&str; 3] = ["address", "token", "tls"];

/// Reads the block as far as a client of the admin API needs it.
pub(super) fn read_admin_for_client(node: &YamlNode<'_, '_>, needs_token: bool) -> Option<AdminConfig> {
    let map = node.read_mapping(&ADMIN_KEYS)?;
    let address =
        map.require("address", HOW_TO_WRITE_ADDRESS).and_then(|node| read_admin_address(&node, &[]));
    let token = if needs_token { map.read_optional("token", read_header_secret) } else { Some(None) };
    let tls = map.read_optional("tls", read_server_tls);
    Some(AdminConfig { address: address?, token: token?, tls: tls? })
}

/// Reads the block. Its address must not overlap with one of `listeners`.
pub(super) fn read_admin(node: &YamlNode<'_, '_>, listeners: &[ListenerConfig]) -> Option<AdminConfig> {
    let map = node.read_mapping(&ADMIN_KEYS)?;
    let address =
        map.require("address", HOW_TO_WRITE_ADDRESS).and_then(|node| read_admin_address(&node, listeners));
    let token = map.read_optional("token", read_header_secret);
    let (has_token, has_tls) = (map.get("token").is_some(), map.get("tls").is_some());
    let tls = map.read_optional("tls", read_server_tls);
    let address = address?;
    let has_token_and_tls = has_token && has_tls;
    match &address {
        AdminAddress::Unix(_) if has_tls => {
            return map.report_error_at("tls", "cannot be used with a Unix socket; remove it");
        }
        AdminAddress::Tcp(tcp) if !has_token_and_tls && !tcp.ip().to_canonical().is_loopback() => {
            let message = "needs token and tls: it is not a loopback address";
            return map.report_error_at("address", message);
        }
        _ => {}
    }
    Some(AdminConfig { address, token: token?, tls: tls? })
}

fn read_admin_address(node: &YamlNode<'_, '_>, listeners: &[ListenerConfig]) -> Option<AdminAddress> {
    let address = node.read_parsed(|text| {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = node.resolve_path(path);
            return match path.as_os_str().len() {
                _ if text.len() == "unix:".len() || text.contains('\0') => {
                    Err("must have a path after unix:")
                }
                length if length > MAX_SOCKET_PATH_BYTES => Err("must have a path of at most 107 bytes"),
                _ => Ok(AdminAddress::Unix(path)),
            };
        }
        let address: Result<SocketAddr, _> = text.parse();
        address
            .map(AdminAddress::Tcp)
            .map_err(|_| "must be an IP address with a port, such as 127.0.0.1:9901, or unix:/path")
    })?;
    if let AdminAddress::Tcp(admin) = address
        && let Some(i) = listeners.iter().position(|listener| addresses_overlap(listener.address, admin))
    {
        return node.report_error(format!("is taken by listeners[{i}]; use another port"));
    }
    Some(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::{assert_errors, errors_in, parse_valid, write_test_certificate};

    #[test]
    fn beyond_loopback_a_token_and_tls_are_required() {
        let admin = |yaml: &str| parse_valid(yaml).config.admin.unwrap();
        assert_eq!(admin("admin: { address: 'unix:/a/b' }").address, AdminAddress::Unix("/a/b".into()));
        let loopback = admin("admin: { address: '[::1]:9901', token: '${KEY}' }");
        assert_eq!(loopback.address, AdminAddress::Tcp("[::1]:9901".parse().unwrap()));
        assert!(loopback.token.is_some() && loopback.tls.is_none());
        assert!(!format!("{loopback:?}").contains("k3y"));
        let directory = tempfile::tempdir().unwrap();
        write_test_certificate(directory.path(), "admin", 90, &["admin.test"]);
        let path = |name: &str| directory.path().join(name).display().to_string();
        let tls =
            format!("tls: {{ certificate: '{}', private_key: '{}' }}", path("admin.pem"), path("admin.key"));
        let public = admin(&format!("admin: {{ address: '0.0.0.0:9901', token: t, {tls} }}"));
        assert!(public.tls.is_some());
        let needs = "admin.address: needs token and tls: it is not a loopback address";
        assert_errors(&[
            (&format!("admin: {{ address: '10.0.0.1:9901', {tls} }}"), &[needs]),
            ("admin: { address: '10.0.0.1:9901', token: t }", &[needs]),
            (
                &format!("admin: {{ address: 'unix:/a', {tls} }}"),
                &["admin.tls: cannot be used with a Unix socket; remove it"],
            ),
        ]);
    }

    #[test]
    fn invalid_admin_settings_are_reported() {
        assert_errors(&[
            (
                "admin: { address: 'localhost:9901' }",
                &["admin.address: must be an IP address with a port, such as 127.0.0.1:9901, or unix:/path"],
            ),
            ("admin: { address: 'unix:' }", &["admin.address: must have a path after unix:"]),
            (
                "admin: { address: '127.0.0.1:8080' }",
                &["admin.address: is taken by listeners[0]; use another port"],
            ),
            (
                "admin: { address: '127.0.0.1:9901', token: 'a b' }",
                &["admin.token: must be a key without spaces, line breaks or non-ASCII characters"],
            ),
        ]);
        let long = format!("admin: {{ address: 'unix:/{}' }}", "x".repeat(107));
        assert!(errors_in(&long)[0].starts_with("admin.address: must have a path of at most 107 bytes"));
    }
}
