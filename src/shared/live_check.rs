//! The check of `check --live`: whether the server can be used, and which instances it knows.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Script, Value};
use tokio::time::timeout;

use super::connect::{REPLY_TIMEOUT, ServerAccess};
use super::listing::{REGISTER_SCRIPT, parse_listing};
use super::open_server::{OpenServer, open_server};
use super::problem::Problem;
use super::server_connection::ServerConnection;
use crate::config::{RedisConfig, join_shortened};
use crate::credentials::RefreshedSecret;

/// How long the nodes of a cluster may take to be reached, all together.
const NODE_TIME_LIMIT: Duration = Duration::from_secs(10);

/// Connects, authenticates, and lists the instances without becoming one. Each check has a name, and what was found or
/// what is wrong.
pub async fn check_server(
    config: &RedisConfig,
    password: Option<RefreshedSecret>,
) -> Vec<(&'static str, Result<String, String>)> {
    let access = Arc::new(ServerAccess::new(config, password));
    let opened = match access.connect().await {
        Ok(open) => open_server(&access, open, NODE_TIME_LIMIT).await,
        Err(problem) => Err(problem),
    };
    let OpenServer { mut open, mut connection, keeper } = match opened {
        Ok(server) => server,
        Err(problem) => return vec![("connection", Err(problem.to_string()))],
    };
    let who = match (&access.config.username, &access.password) {
        (Some(user), _) => format!("authenticated as {user}"),
        (None, Some(_)) => "authenticated".to_owned(),
        (None, None) => "no password".to_owned(),
    };
    let server = server_version(&mut open.connection).await.unwrap_or_else(|| "Redis".to_owned());
    let mut findings = vec![("connection", Ok(format!("{server} at {} answers; {who}", config.address())))];
    if let Some(keeper) = &keeper {
        findings.extend(keeper.node_problems().into_iter().map(|(address, problem)| {
            let problem = problem.map(|problem| format!("{address}: {problem}"));
            ("node", problem.map_or_else(|| Ok(format!("{address} answers")), Err))
        }));
        findings.extend(keeper.partial_problem().map(|problem| ("slots", Err(problem))));
    }
    findings.push(("instances", list(&access, &mut connection).await));
    findings
}

async fn list(access: &ServerAccess, connection: &mut ServerConnection) -> Result<String, String> {
    let script = Script::new(REGISTER_SCRIPT);
    let mut invocation = script.prepare_invoke();
    invocation.key(access.keys.key("instances")).arg("").arg("");
    let reply = timeout(REPLY_TIMEOUT, invocation.invoke_async::<Value>(connection)).await;
    let reply = reply
        .map_err(|_| Problem::Silent(REPLY_TIMEOUT))
        .and_then(|reply| reply.map_err(|error| access.problem_of(&error, false)))
        .map_err(|problem| problem.to_string())?;
    let instances = parse_listing(&reply, "").map_err(|error| error.to_string())?;
    let names: Vec<&str> = instances.iter().map(|instance| instance.name.as_str()).collect();
    Ok(match names.len() {
        0 => "scripts run; no instance is running".to_owned(),
        1 => format!("scripts run; 1 instance: {}", names[0]),
        count => format!("scripts run; {count} instances: {}", join_shortened(&names)),
    })
}

/// The name and version of the server, if this user may ask for it.
async fn server_version(connection: &mut MultiplexedConnection) -> Option<String> {
    let mut command = redis::cmd("INFO");
    command.arg("server");
    let info = timeout(Duration::from_secs(1), command.query_async::<String>(connection)).await;
    version_in(&info.ok()?.ok()?)
}

/// The version in the text of INFO. Valkey tells a version of Redis as well.
fn version_in(info: &str) -> Option<String> {
    let field = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.trim().chars().filter(|c| c.is_ascii_graphic()).take(20).collect::<String>())
    };
    field("valkey_version")
        .map(|version| format!("Valkey {version}"))
        .or_else(|| field("redis_version").map(|version| format!("Redis {version}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_redis_and_valkey_is_read() {
        for (info, expected) in [
            ("# Server\r\nredis_version:6.0.16\r\nos:Linux\r\n", Some("Redis 6.0.16")),
            (
                "# Server\r\nredis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.0.1\r\n",
                Some("Valkey 8.0.1"),
            ),
            ("redis_version_x:1\r\n", None),
            ("", None),
        ] {
            assert_eq!(version_in(info).as_deref(), expected, "{info}");
        }
    }
}
