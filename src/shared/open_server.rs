//! A server that can be used: one that has all keys, or a cluster.

use std::sync::Arc;
use std::time::Duration;

use super::cluster::ClusterKeeper;
use super::connect::{OpenConnection, ServerAccess};
use super::problem::Problem;
use super::server_connection::ServerConnection;

/// A server to which there is a connection, which has been tried.
pub(super) struct OpenServer {
    /// The connection to the server, or to the node of the cluster that describes the others.
    pub(super) open: OpenConnection,
    /// What commands are sent with.
    pub(super) connection: ServerConnection,
    /// `None` if it is not a cluster.
    pub(super) keeper: Option<ClusterKeeper>,
}

/// Connects, finds out whether the server is a cluster, and tries a script. With a cluster it waits for `node_time_limit`
/// at most until its nodes have been tried.
pub(super) async fn open_server(
    access: &Arc<ServerAccess>,
    mut open: OpenConnection,
    node_time_limit: Duration,
) -> Result<OpenServer, Problem> {
    let keeper = ClusterKeeper::find(access, &mut open).await?;
    let connection = match &keeper {
        None => {
            access.try_script(&mut open.connection, &access.keys.key("probe")).await?;
            ServerConnection::Single(open.connection.clone())
        }
        Some(keeper) => {
            keeper.wait_until_tried(node_time_limit).await?;
            ServerConnection::Cluster(keeper.connection())
        }
    };
    Ok(OpenServer { open, connection, keeper })
}
