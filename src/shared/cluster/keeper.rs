//! Keeps the connections to all nodes of a cluster, and the layout of it up to date.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use tokio::task::AbortHandle;
use tokio::time::{Instant as TokioInstant, MissedTickBehavior, interval_at, sleep, timeout_at};

use super::connection::ClusterConnection;
use super::layout::{Layout, read_layout};
use super::node::Node;
use super::nodes::ClusterNodes;
use crate::shared::backoff::{Backoff, STABLE_AFTER};
use crate::shared::connect::{OpenConnection, ServerAccess};
use crate::shared::node_address::NodeAddress;
use crate::shared::problem::Problem;
use crate::shared::watch::watch;

/// How often the layout is read if nothing suggests that it has changed.
const LAYOUT_INTERVAL: Duration = Duration::from_secs(5);
/// The shortest time between two readings.
const LAYOUT_PAUSE: Duration = Duration::from_millis(100);

/// The cluster, for as long as the connection to the node that described it lasts. Dropped, it closes all connections.
pub(in crate::shared) struct ClusterKeeper {
    access: Arc<ServerAccess>,
    nodes: Arc<ClusterNodes>,
    layout: Layout,
    /// The host of the node that describes the cluster.
    host: String,
    tasks: Vec<NodeTask>,
}

struct NodeTask {
    node: Arc<Node>,
    task: AbortHandle,
}

impl Drop for NodeTask {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ClusterKeeper {
    /// Asks the server whether it is a node of a cluster, and begins to connect to all of its masters. `None` if it is not.
    pub(in crate::shared) async fn find(
        access: &Arc<ServerAccess>,
        open: &mut OpenConnection,
    ) -> Result<Option<Self>, Problem> {
        let host = open.address.host.clone();
        let Some(layout) = read_layout(access, &mut open.connection, &host).await? else {
            access.set_known_nodes(&[]);
            return Ok(None);
        };
        let nodes = Arc::new(ClusterNodes::new(&access.keys));
        let (access, tasks) = (Arc::clone(access), Vec::new());
        let mut keeper = Self { access, nodes, layout: Layout::default(), host, tasks };
        keeper.use_layout(layout)?;
        Ok(Some(keeper))
    }

    /// Waits until it is known of each node whether it can be used; longer than this only until it is known of one.
    ///
    /// # Errors
    /// If none can be used, or those that answer say that the cluster is down.
    pub(in crate::shared) async fn wait_until_tried(&self, time_limit: Duration) -> Result<(), Problem> {
        let deadline = TokioInstant::now() + time_limit;
        let nodes = self.nodes.all();
        while nodes.iter().any(|node| !node.is_tried()) {
            let changed = self.nodes.changed.notified();
            if !nodes.iter().any(|node| node.is_up()) {
                // Each attempt ends by itself.
                changed.await;
            } else if timeout_at(deadline, changed).await.is_err() {
                break;
            }
        }
        let problems: Vec<_> = nodes.iter().filter_map(|node| Some((node, node.problem()?))).collect();
        let down = problems.iter().find(|(_, problem)| problem.is_cluster_down());
        let is_any_up = nodes.iter().any(|node| node.is_up());
        match down.or_else(|| problems.first().filter(|_| !is_any_up)) {
            Some((node, problem)) => {
                Err(Problem::Node { address: node.address.to_string(), problem: Arc::clone(problem) })
            }
            None => Ok(()),
        }
    }

    /// Sends commands to the nodes that have their keys.
    pub(in crate::shared) fn connection(&self) -> ClusterConnection {
        ClusterConnection::new(Arc::clone(&self.nodes))
    }

    /// The addresses of all nodes, each with what is wrong.
    pub(in crate::shared) fn node_problems(&self) -> Vec<(&NodeAddress, Option<Arc<Problem>>)> {
        self.tasks.iter().map(|task| (&task.node.address, task.node.problem())).collect()
    }

    /// What is wrong if a part of the slots has no server.
    pub(in crate::shared) fn partial_problem(&self) -> Option<String> {
        self.nodes.partial_problem()
    }

    /// Follows changes of the cluster by the connection to one of its nodes, and calls `on_changed` after each. Ends if that
    /// node cannot tell any more.
    pub(in crate::shared) async fn run(
        mut self,
        mut connection: MultiplexedConnection,
        on_changed: impl Fn(Option<String>),
    ) -> Problem {
        let mut ticks = interval_at(TokioInstant::now() + LAYOUT_INTERVAL, LAYOUT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            on_changed(self.partial_problem());
            tokio::select! {
                () = self.nodes.changed.notified() => continue,
                () = self.nodes.is_outdated.notified() => {}
                _ = ticks.tick() => {}
            }
            let layout = match read_layout(&self.access, &mut connection, &self.host).await {
                Ok(layout) => layout.unwrap_or_default(),
                Err(problem) => return problem,
            };
            if let Err(problem) = self.use_layout(layout) {
                return problem;
            }
            // Depending on how it is set, a cluster refuses everything as soon as a part of it is away.
            if self.partial_problem().is_some()
                && let Some(problem) = self.try_one_node().await
                && problem.is_cluster_down()
            {
                return problem;
            }
            sleep(LAYOUT_PAUSE).await;
        }
    }

    /// Tries a script on a node. Returns what is wrong.
    async fn try_one_node(&self) -> Option<Problem> {
        let node = self.nodes.common_node()?;
        let key = self.nodes.key_on(&node)?;
        self.access.try_script(&mut node.connection()?, &key).await.err()
    }

    /// Connects to new nodes, and closes the connections to those that are gone.
    fn use_layout(&mut self, layout: Layout) -> Result<(), Problem> {
        if layout.masters.is_empty() {
            return Err(Problem::cluster_down());
        }
        self.nodes.set_layout(&layout);
        if layout.masters != self.layout.masters {
            self.access.set_known_nodes(&layout.masters);
        }
        self.layout = layout;
        let nodes = self.nodes.all();
        self.tasks.retain(|task| nodes.iter().any(|node| Arc::ptr_eq(node, &task.node)));
        for node in nodes {
            if !self.tasks.iter().any(|task| Arc::ptr_eq(&task.node, &node)) {
                let kept = keep_node(Arc::clone(&self.access), Arc::clone(&self.nodes), Arc::clone(&node));
                self.tasks.push(NodeTask { task: tokio::spawn(kept).abort_handle(), node });
            }
        }
        Ok(())
    }
}

/// Keeps a connection to a node.
async fn keep_node(access: Arc<ServerAccess>, nodes: Arc<ClusterNodes>, node: Arc<Node>) {
    let mut backoff = Backoff::default();
    loop {
        let problem = match open_node(&access, &nodes, &node).await {
            Ok(OpenConnection { connection, mut driver, password_id, .. }) => {
                let up_since = Instant::now();
                node.set_up(connection.clone());
                nodes.changed.notify_one();
                let problem = tokio::select! {
                    () = driver.ended() => Problem::Closed,
                    problem = watch(&access, connection, password_id) => problem,
                };
                if up_since.elapsed() >= STABLE_AFTER {
                    backoff.reset();
                }
                problem
            }
            Err(problem) => problem,
        };
        node.set_down(problem);
        nodes.changed.notify_one();
        // Another node may have taken over.
        nodes.is_outdated.notify_one();
        sleep(backoff.next_wait(fastrand::f64())).await;
    }
}

/// Connects to a node, and tries a script on it.
async fn open_node(
    access: &ServerAccess,
    nodes: &ClusterNodes,
    node: &Arc<Node>,
) -> Result<OpenConnection, Problem> {
    let mut open = access.connect_to(&node.address).await?;
    if let Some(key) = nodes.key_on(node) {
        access.try_script(&mut open.connection, &key).await?;
    }
    Ok(open)
}
