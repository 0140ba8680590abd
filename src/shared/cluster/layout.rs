//! Which master of a cluster has which hash slots.

use std::collections::HashMap;

use redis::aio::MultiplexedConnection;
use redis::cluster_routing::Slot;
use redis::{ErrorKind, ServerErrorKind, Value, cmd};
use tokio::time::timeout;

use crate::shared::connect::{REPLY_TIMEOUT, ServerAccess};
use crate::shared::node_address::NodeAddress;
use crate::shared::problem::Problem;

/// The masters, and the slots of each.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Layout {
    pub(super) masters: Vec<NodeAddress>,
    /// The number of the master in the list above. A slot that no master has is missing.
    pub(super) slots: HashMap<Slot, usize>,
}

/// Asks a server for the layout of its cluster; `None` if it is not a node of one.
pub(super) async fn read_layout(
    access: &ServerAccess,
    connection: &mut MultiplexedConnection,
    host: &str,
) -> Result<Option<Layout>, Problem> {
    let mut command = cmd("CLUSTER");
    command.arg("SLOTS");
    let answer = timeout(REPLY_TIMEOUT, command.query_async::<Value>(connection)).await;
    match answer.map_err(|_| Problem::Silent(REPLY_TIMEOUT))? {
        Ok(reply) => Ok(Some(parse_layout(&reply, host))),
        // This is how a server that is not part of a cluster answers.
        Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::ResponseError) => Ok(None),
        Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm) => {
            // Without a cluster the command is not needed.
            if is_cluster_node(connection).await { Err(access.problem_of(&error, false)) } else { Ok(None) }
        }
        Err(error) => Err(access.problem_of(&error, false)),
    }
}

/// Whether the server says that it is a node of a cluster. It may not let this user ask.
async fn is_cluster_node(connection: &mut MultiplexedConnection) -> bool {
    let mut command = cmd("INFO");
    command.arg("cluster");
    let info = timeout(REPLY_TIMEOUT, command.query_async::<String>(connection)).await;
    matches!(info, Ok(Ok(info)) if info.lines().any(|line| line == "cluster_enabled:1"))
}

/// Reads the answer to `CLUSTER SLOTS`: ranges of slots, each with its master and replicas. What is not understood is
/// passed over. <https://redis.io/docs/latest/commands/cluster-slots/>
fn parse_layout(reply: &Value, answering_host: &str) -> Layout {
    let mut layout = Layout::default();
    let Value::Array(ranges) = reply else { return layout };
    for range in ranges {
        let Value::Array(parts) = range else { continue };
        let [Value::Int(first), Value::Int(last), master, ..] = parts.as_slice() else { continue };
        let (Ok(first), Ok(last)) = (u16::try_from(*first), u16::try_from(*last)) else { continue };
        let Some(master) = parse_node(master, answering_host) else { continue };
        let number = layout.masters.iter().position(|known| *known == master).unwrap_or_else(|| {
            layout.masters.push(master);
            layout.masters.len() - 1
        });
        layout.slots.extend((first..=last).filter_map(Slot::new).map(|slot| (slot, number)));
    }
    layout
}

/// A node is announced by its host and port, and more. Without a host, it is that of the node that answers; `?` is one
/// that it does not know.
fn parse_node(node: &Value, answering_host: &str) -> Option<NodeAddress> {
    let Value::Array(parts) = node else { return None };
    let [host, Value::Int(port), ..] = parts.as_slice() else { return None };
    let host = match host {
        Value::Nil => "",
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok()?,
        Value::SimpleString(text) => text,
        _ => return None,
    };
    let host = match host {
        "?" => return None,
        "" => answering_host,
        host => host,
    };
    Some(NodeAddress { host: host.to_owned(), port: u16::try_from(*port).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(host: &str, port: i64) -> Value {
        let host = if host == "nil" { Value::Nil } else { Value::BulkString(host.as_bytes().to_vec()) };
        Value::Array(vec![
            host,
            Value::Int(port),
            Value::BulkString(b"0123".to_vec()),
            Value::Array(Vec::new()),
        ])
    }

    fn range(first: i64, last: i64, nodes: &[Value]) -> Value {
        Value::Array([&[Value::Int(first), Value::Int(last)], nodes].concat())
    }

    fn owner(layout: &Layout, slot: u16) -> Option<String> {
        let number = layout.slots.get(&Slot::new(slot)?)?;
        Some(layout.masters[*number].to_string())
    }

    #[test]
    fn each_slot_has_the_first_node_of_its_range() {
        let reply = Value::Array(vec![
            range(0, 5460, &[node("10.0.0.4", 6379), node("10.0.0.5", 6379)]),
            range(5461, 5461, &[node("", 6380)]),
            range(5462, 5470, &[node("nil", 6381)]),
            range(10923, 16383, &[node("10.0.0.4", 6379)]),
        ]);
        let layout = parse_layout(&reply, "redis.example");
        assert_eq!(layout.masters.len(), 3);
        for (slot, expected) in [
            (0, Some("10.0.0.4:6379")),
            (5460, Some("10.0.0.4:6379")),
            (5461, Some("redis.example:6380")),
            (5470, Some("redis.example:6381")),
            (5471, None),
            (16383, Some("10.0.0.4:6379")),
        ] {
            assert_eq!(owner(&layout, slot).as_deref(), expected, "{slot}");
        }
    }

    #[test]
    fn what_is_not_understood_is_passed_over() {
        for reply in [
            Value::Nil,
            Value::Array(vec![Value::Int(1)]),
            Value::Array(vec![range(0, 5, &[])]),
            Value::Array(vec![range(-1, 5, &[node("a", 1)])]),
            Value::Array(vec![range(5, 70_000, &[node("a", 1)])]),
            Value::Array(vec![range(0, 5, &[node("?", 1)])]),
            Value::Array(vec![range(0, 5, &[node("a", 70_000)])]),
            Value::Array(vec![range(0, 5, &[Value::Array(vec![Value::Int(1), Value::Int(1)])])]),
        ] {
            assert_eq!(parse_layout(&reply, "h"), Layout::default(), "{reply:?}");
        }
        // A slot beyond the last one is none.
        let layout = parse_layout(&Value::Array(vec![range(16_383, 20_000, &[node("a", 1)])]), "h");
        assert_eq!(layout.slots.len(), 1);
    }
}
