//! Sends each command to the node that has its key.
//!
//! Every command with the same key goes over the same connection, so that they run in the order in which they are called,
//! except while a slot moves from one node to another.

use std::sync::Arc;

use futures::future::try_join_all;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Arg, Cmd, ErrorKind, Pipeline, RedisError, RedisFuture, RedisResult, ServerErrorKind, Value};

use super::node::Node;
use super::nodes::ClusterNodes;
use crate::shared::node_address::NodeAddress;
use crate::shared::problem::SLOT_NOT_SERVED;

/// How often a command follows a node that refers to another one.
const MAX_REDIRECTIONS: usize = 4;

/// Sends the commands of one caller.
#[derive(Clone)]
pub(in crate::shared) struct ClusterConnection {
    nodes: Arc<ClusterNodes>,
    /// Where the last command went: the text of a script goes there, if the script was not known.
    last_node: Option<Arc<Node>>,
}

impl ClusterConnection {
    pub(super) fn new(nodes: Arc<ClusterNodes>) -> Self {
        Self { nodes, last_node: None }
    }

    async fn run(&mut self, command: &Cmd) -> RedisResult<Value> {
        match Target::of(command) {
            Target::Key(key) => {
                self.last_node = self.nodes.owner_of(key);
                self.send(command).await
            }
            Target::Keys(keys) => self.get_all(&keys).await,
            Target::LastNode => {
                let last = self.last_node.clone();
                // Nothing has to wait for it there later on.
                for node in self.nodes.all() {
                    let is_other = last.as_ref().is_none_or(|last| !Arc::ptr_eq(last, &node));
                    if let (true, Some(mut connection)) = (is_other, node.connection()) {
                        let command = command.clone();
                        tokio::spawn(async move { connection.send_packed_command(&command).await });
                    }
                }
                self.send(command).await
            }
            Target::CommonNode => {
                self.last_node = self.nodes.common_node();
                self.send(command).await
            }
        }
    }

    /// Gets each key from the node that has it, in place of one `MGET`.
    async fn get_all(&self, keys: &[&[u8]]) -> RedisResult<Value> {
        let gets = keys.iter().map(|key| {
            let mut connection = Self { nodes: Arc::clone(&self.nodes), last_node: self.nodes.owner_of(key) };
            let mut command = redis::cmd("GET");
            command.arg(key);
            async move { connection.send(&command).await }
        });
        try_join_all(gets).await.map(Value::Array)
    }

    /// Sends a command to the last node, and to those that it refers to.
    async fn send(&mut self, command: &Cmd) -> RedisResult<Value> {
        let mut is_asking = false;
        for _ in 0..=MAX_REDIRECTIONS {
            let Some(node) = &self.last_node else { break };
            let Some(mut connection) = node.connection() else { break };
            let error = match send_to(&mut connection, command, is_asking).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let ErrorKind::Server(kind) = error.kind() else { return Err(error) };
            match kind {
                ServerErrorKind::Moved | ServerErrorKind::Ask => {
                    if kind == ServerErrorKind::Moved {
                        self.nodes.is_outdated.notify_one();
                    }
                    is_asking = kind == ServerErrorKind::Ask;
                    let address = error
                        .redirect_node()
                        .and_then(|(address, _)| NodeAddress::parse(address, &node.address.host));
                    self.last_node = address.and_then(|address| self.nodes.find_or_request(&address));
                }
                // A part of the keys has moved already.
                ServerErrorKind::TryAgain => break,
                ServerErrorKind::ClusterDown
                    if error.detail().is_some_and(|detail| detail.contains(SLOT_NOT_SERVED)) =>
                {
                    self.nodes.is_outdated.notify_one();
                    break;
                }
                _ => return Err(error),
            }
        }
        Err(RedisError::from((ErrorKind::ClusterConnectionNotFound, "there is no connection to the node")))
    }
}

impl ConnectionLike for ClusterConnection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(self.run(command))
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        _pipeline: &'a Pipeline,
        _offset: usize,
        _count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        // What is published is sent by the connection to one node.
        let error =
            RedisError::from((ErrorKind::Client, "the commands of a pipeline may have several nodes"));
        Box::pin(std::future::ready(Err(error)))
    }

    fn get_db(&self) -> i64 {
        0
    }
}

/// Sends a command, and reads its answer.
async fn send_to(
    connection: &mut MultiplexedConnection,
    command: &Cmd,
    is_asking: bool,
) -> RedisResult<Value> {
    if !is_asking {
        return connection.send_packed_command(command).await.and_then(Value::extract_error);
    }
    // Both together: ASKING holds for the next command of the connection only.
    let mut pipeline = redis::pipe();
    pipeline.cmd("ASKING").ignore().add_command(command.clone());
    let mut answers = connection.send_packed_commands(&pipeline, 1, 1).await?;
    answers.pop().unwrap_or(Value::Nil).extract_error()
}

/// Where a command has to go.
#[derive(Debug, PartialEq)]
enum Target<'c> {
    /// To the node that has this key, and all others of the command.
    Key(&'c [u8]),
    /// To the nodes that have these keys.
    Keys(Vec<&'c [u8]>),
    /// To the node of the previous command.
    LastNode,
    /// To the node that all instances ask for what has no key.
    CommonNode,
}

impl<'c> Target<'c> {
    fn of(command: &'c Cmd) -> Self {
        let arguments: Vec<&[u8]> = command
            .args_iter()
            .map(|argument| match argument {
                Arg::Simple(bytes) => bytes,
                _ => &[],
            })
            .collect();
        match arguments.as_slice() {
            [b"SCRIPT", ..] => Self::LastNode,
            [b"EVALSHA" | b"EVAL", _, b"0", ..] => Self::CommonNode,
            [b"EVALSHA" | b"EVAL", _, _, key, ..] => Self::Key(key),
            [b"MGET", key] => Self::Key(key),
            [b"MGET", keys @ ..] => Self::Keys(keys.to_vec()),
            [b"GET" | b"SET" | b"DEL" | b"HDEL", key, ..] => Self::Key(key),
            _ => Self::CommonNode,
        }
    }
}

#[cfg(test)]
mod tests {
    use redis::{Script, cmd};

    use super::*;

    #[test]
    fn a_command_goes_where_its_keys_are() {
        let command = |text: &str| {
            let mut words = text.split(' ');
            let mut command = cmd(words.next().unwrap());
            words.for_each(|word| {
                command.arg(word);
            });
            command
        };
        for (text, expected) in [
            ("GET a", Target::Key(b"a")),
            ("SET a b NX PX 5", Target::Key(b"a")),
            ("DEL a", Target::Key(b"a")),
            ("HDEL a field", Target::Key(b"a")),
            ("MGET a", Target::Key(b"a")),
            ("MGET a b", Target::Keys(vec![b"a", b"b"])),
            ("EVALSHA 0123 2 a b c", Target::Key(b"a")),
            ("EVALSHA 0123 0 c", Target::CommonNode),
            ("SCRIPT LOAD text", Target::LastNode),
            ("TIME", Target::CommonNode),
        ] {
            assert_eq!(Target::of(&command(text)), expected, "{text}");
        }
    }

    #[tokio::test]
    async fn the_calls_of_a_script_are_commands_of_this_kind() {
        /// Notes the targets of commands, and knows no script.
        struct Recorder(Vec<String>);
        impl ConnectionLike for Recorder {
            fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
                self.0.push(format!("{:?}", Target::of(command)));
                let answer = redis::parse_redis_value(b"-NOSCRIPT No matching script\r\n");
                Box::pin(std::future::ready(answer))
            }
            fn req_packed_commands<'a>(
                &'a mut self,
                _: &'a Pipeline,
                _: usize,
                _: usize,
            ) -> RedisFuture<'a, Vec<Value>> {
                Box::pin(std::future::ready(Ok(Vec::new())))
            }
            fn get_db(&self) -> i64 {
                0
            }
        }
        let mut recorder = Recorder(Vec::new());
        let called = Script::new("return 1").key("a").invoke_async::<Value>(&mut recorder).await;
        assert!(called.is_err());
        assert_eq!(recorder.0, [format!("{:?}", Target::Key(b"a")), "LastNode".to_owned()]);
    }
}
