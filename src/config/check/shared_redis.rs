//! Reads and checks `shared.redis`: the server through which several instances act as one.

use super::credentials::{read_ca_file, read_entra_credential, read_secret};
use crate::config::schema::{RedisConfig, RedisCredential};
use crate::config::values::{Endpoint, parse_host};
use crate::config::yaml::{YamlMapping, YamlNode};

const REDIS_KEYS: [&str; 6] = ["url", "username", "password", "credential", "ca", "prefix"];
/// The scope of tokens for Azure Cache for Redis and Azure Managed Redis.
/// <https://learn.microsoft.com/azure/redis/entra-for-authentication>
const REDIS_TOKEN_SCOPE: &str = "https://redis.azure.com/.default";
const DEFAULT_PREFIX: &str = "aoai-lb";

/// Reads the block; `Some(None)` if there is none.
pub(super) fn read_shared(root: &YamlMapping<'_, '_>) -> Option<Option<RedisConfig>> {
    root.read_optional("shared", |node| {
        let map = node.read_mapping(&["redis"])?;
        read_redis(&map.require("redis", "write redis: { url: \"rediss://HOST:PORT\" }")?)
    })
}

fn read_redis(node: &YamlNode<'_, '_>) -> Option<RedisConfig> {
    let map = node.read_mapping(&REDIS_KEYS)?;
    let endpoint = map
        .require("url", "write rediss://HOST:PORT, or redis://HOST:PORT without TLS")
        .and_then(|node| node.read_parsed(parse_redis_url));
    let username = map.read_optional("username", |node| {
        let text = node.read_nonempty_text()?;
        if text.value.contains(char::is_whitespace) {
            return node.report_error(format!("must be a name without spaces{}", text.source_note()));
        }
        Some(text.value)
    });
    let credential = read_credential(&map);
    let ca_file = map.read_optional("ca", read_ca_file);
    let prefix = map.read_or("prefix", DEFAULT_PREFIX.to_owned(), |node| node.read_parsed(parse_prefix));
    let config = RedisConfig {
        endpoint: endpoint?,
        username: username?,
        credential: credential?,
        ca_file: ca_file?,
        prefix: prefix?,
    };
    check_agreement(&map, &config)?;
    Some(config)
}

/// Reads the password, or the identity whose token is used in its place.
fn read_credential(map: &YamlMapping<'_, '_>) -> Option<Option<RedisCredential>> {
    if map.get("password").is_some() && map.get("credential").is_some() {
        return map.report_error_at("credential", "is used in place of password; remove one of them");
    }
    let password = map.read_optional("password", |node| read_secret(node, true));
    let token = map.read_optional("credential", |node| {
        read_entra_credential(&node.read_secret_mapping(&["entra"])?, REDIS_TOKEN_SCOPE, true)
    });
    Some(password?.map(RedisCredential::Password).or(token?.map(RedisCredential::Entra)))
}

/// Checks what must agree between keys.
fn check_agreement(map: &YamlMapping<'_, '_>, config: &RedisConfig) -> Option<()> {
    match (&config.username, &config.credential) {
        (Some(_), None) => {
            return map
                .report_error_at("username", "needs a password beside it; write password: \"${NAME}\"");
        }
        (None, Some(RedisCredential::Entra(_))) => {
            return map.report_error_at(
                "username",
                "is missing; write the object id of the identity in credential",
            );
        }
        _ => {}
    }
    let Endpoint { uses_tls, .. } = config.endpoint;
    if config.ca_file.is_some() && !uses_tls {
        return map.report_error_at("ca", "is of use with TLS only; write rediss:// in url, or remove it");
    }
    if !uses_tls && !config.endpoint.is_loopback() {
        let what = match config.credential {
            Some(_) => "the password and what is shared go",
            None => "what is shared goes",
        };
        map.report_warning_at(
            "url",
            format!("has no TLS: {what} over the network readable; write rediss:// if the server has TLS"),
        );
    }
    Some(())
}

/// Parses `redis://HOST:PORT` or `rediss://HOST:PORT`. What is wrong is told without repeating the text, which may
/// have a password in it.
fn parse_redis_url(text: &str) -> Result<Endpoint, &'static str> {
    const EXPECTED: &str = "must be rediss://HOST:PORT, or redis://HOST:PORT without TLS";
    let (scheme, rest) = text.split_once("://").ok_or(EXPECTED)?;
    let uses_tls = match scheme.to_ascii_lowercase().as_str() {
        "redis" => false,
        "rediss" => true,
        _ => return Err("must begin with rediss:// (with TLS) or redis:// (without)"),
    };
    if rest.contains('@') {
        return Err(
            "must not have a user or password; they belong in shared.redis.username and shared.redis.password",
        );
    }
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#']) {
        return Err("must end after the port; database 0 is used, which every server has");
    }
    // The colons of an IPv6 address are within brackets.
    let host_end = authority.rfind(']').map_or(0, |at| at + 1);
    let Some((host, port)) = authority[host_end..]
        .rfind(':')
        .map(|at| authority.split_at(host_end + at))
        .map(|(host, port)| (host, &port[1..]))
    else {
        return Err(
            "must have a port: 6380 for Azure Cache for Redis, 10000 for Azure Managed Redis, elsewhere often 6379",
        );
    };
    let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let port = port.parse().ok().filter(|port| is_number && *port != 0);
    let port = port.ok_or("must have a port between 1 and 65535 after its `:`")?;
    let host = parse_host(host).ok_or("must have a valid host name or IP address")?;
    Ok(Endpoint { uses_tls, host, port })
}

/// Checks a prefix. Braces are left to the keys themselves, where they say which of them live together in a cluster.
fn parse_prefix(text: &str) -> Result<String, &'static str> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b':');
    let is_valid = text.len() <= 64 && text.bytes().all(is_allowed);
    is_valid.then(|| text.to_owned()).ok_or("must be 1 to 64 of the characters A-Z a-z 0-9 . _ - :")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::{assert_errors, assert_warnings, parse_valid};
    use crate::config::{EntraCredential, Secret, SecretSource};

    fn redis(keys: &str) -> RedisConfig {
        parse_valid(&format!("shared: {{ redis: {{ {keys} }} }}")).config.shared.unwrap()
    }

    #[test]
    fn without_the_block_nothing_is_shared() {
        assert_eq!(parse_valid("").config.shared, None);
    }

    #[test]
    fn a_server_is_a_host_and_a_port_with_or_without_tls() {
        for (url, uses_tls, host, port, address) in [
            ("redis://127.0.0.1:6379", false, "127.0.0.1", 6379, "127.0.0.1:6379"),
            (
                "rediss://Name.Redis.cache.windows.net:6380/",
                true,
                "name.redis.cache.windows.net",
                6380,
                "name.redis.cache.windows.net:6380",
            ),
            ("REDISS://[::1]:443", true, "::1", 443, "[::1]:443"),
        ] {
            let config = redis(&format!("url: '{url}'"));
            let expected = Endpoint { uses_tls, host: host.to_owned(), port };
            assert_eq!((config.endpoint.clone(), config.address().as_str()), (expected, address), "{url}");
        }
    }

    #[test]
    fn a_password_is_a_secret_like_any_other() {
        let config = redis("url: 'redis://localhost:1', username: lb, password: '${KEY}', prefix: 'x:y'");
        assert_eq!(config.username.as_deref(), Some("lb"));
        let literal = SecretSource::Literal(Secret::new("k3y-of-the-test"));
        assert_eq!(config.credential, Some(RedisCredential::Password(literal)));
        assert_eq!(
            (config.prefix.as_str(), redis("url: 'redis://[::1]:1'").prefix.as_str()),
            ("x:y", "aoai-lb")
        );
        let config = redis(
            "url: 'redis://localhost:1', password: { key_vault: 'https://n.vault.azure.net/secrets/s' }",
        );
        assert!(matches!(config.credential, Some(RedisCredential::Password(SecretSource::KeyVault(_)))));
    }

    #[test]
    fn a_token_of_an_identity_takes_the_place_of_the_password() {
        let scope = |more: &str| {
            let keys = format!(
                "url: 'rediss://a:1', username: id, credential: {{ entra: {{ managed_identity: {{}}{more} }} }}"
            );
            match redis(&keys).credential {
                Some(RedisCredential::Entra(EntraCredential { token_scope, .. })) => token_scope,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(scope(""), "https://redis.azure.com/.default");
        assert_eq!(scope(", scope: https://other/.default"), "https://other/.default");
        let entra = "credential: { entra: { managed_identity: {} } }";
        assert_errors(&[
            (
                &format!("shared: {{ redis: {{ url: 'rediss://a:1', {entra} }} }}"),
                &["shared.redis.username: is missing; write the object id of the identity in credential"],
            ),
            (
                &format!(
                    "shared: {{ redis: {{ url: 'rediss://a:1', username: id, password: x, {entra} }} }}"
                ),
                &["shared.redis.credential: is used in place of password; remove one of them"],
            ),
        ]);
    }

    #[test]
    fn what_is_wrong_is_told_with_what_would_be_right() {
        let url = |url: &str| format!("shared: {{ redis: {{ url: '{url}' }} }}");
        let (scheme, port, address) = (
            "shared.redis.url: must begin with rediss:// (with TLS) or redis:// (without)",
            "shared.redis.url: must have a port between 1 and 65535 after its `:`",
            "shared.redis.url: must have a valid host name or IP address",
        );
        let no_port = "shared.redis.url: must have a port: 6380 for Azure Cache for Redis, 10000 for Azure Managed Redis, \
                       elsewhere often 6379";
        let credentials = "shared.redis.url: must not have a user or password; they belong in shared.redis.username and \
                           shared.redis.password";
        let database =
            "shared.redis.url: must end after the port; database 0 is used, which every server has";
        for (text, expected) in [
            ("https://a:1", scheme),
            ("a:1", "shared.redis.url: must be rediss://HOST:PORT, or redis://HOST:PORT without TLS"),
            ("rediss://lb:hush@a:1", credentials),
            ("redis://:hush@a:1", credentials),
            ("redis://a", no_port),
            ("redis://[::1]", no_port),
            ("redis://a:", port),
            ("redis://a:+1", port),
            ("redis://a:0", port),
            ("redis://a:65536", port),
            ("redis://a_b-:1", address),
            ("redis://::1:1", address),
            ("redis://:1", address),
            ("redis://a:1/3", database),
            ("redis://a:1?db=3", database),
        ] {
            assert_errors(&[(&url(text), &[expected])]);
        }
        assert_errors(&[
            ("shared: {}", &["shared.redis: is missing; write redis: { url: \"rediss://HOST:PORT\" }"]),
            (
                "shared: { redis: { uri: x, prefix: '{a}', username: 'a b' } }",
                &[
                    "shared.redis.uri: unknown key; did you mean `url`?",
                    "shared.redis.url: is missing; write rediss://HOST:PORT, or redis://HOST:PORT without TLS",
                    "shared.redis.username: must be a name without spaces",
                    "shared.redis.prefix: must be 1 to 64 of the characters A-Z a-z 0-9 . _ - :",
                ],
            ),
            (
                "shared: { redis: { url: 'redis://localhost:1', username: lb } }",
                &["shared.redis.username: needs a password beside it; write password: \"${NAME}\""],
            ),
            (
                "shared: { redis: { url: 'redis://localhost:1', ca: missing.pem } }",
                &["shared.redis.ca: cannot read the file: No such file or directory"],
            ),
        ]);
    }

    #[test]
    fn a_password_that_anybody_on_the_way_can_read_is_warned_about() {
        let warning = |what: &str| {
            format!(
                "shared.redis.url: has no TLS: {what} over the network readable; write rediss:// if the server has TLS"
            )
        };
        assert_warnings(&[
            ("shared: { redis: { url: 'redis://10.0.0.1:1' } }", &[&warning("what is shared goes")]),
            (
                "shared: { redis: { url: 'redis://10.0.0.1:1', password: '${KEY}' } }",
                &[&warning("the password and what is shared go")],
            ),
            ("shared: { redis: { url: 'rediss://10.0.0.1:1', password: '${KEY}' } }", &[]),
            ("shared: { redis: { url: 'redis://127.0.0.1:1', password: '${KEY}' } }", &[]),
        ]);
    }
}
