//! A cluster: each of its masters has a part of the hash slots, and every key is in one of them.
//!
//! The layout is read by a connection to any node. Each master has a connection of its own, which is made again while the
//! others go on. What is published reaches all nodes, so that the connection to one is enough for that.
//! <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>

mod connection;
mod keeper;
mod layout;
mod node;
mod nodes;

pub(super) use self::connection::ClusterConnection;
pub(super) use self::keeper::ClusterKeeper;
