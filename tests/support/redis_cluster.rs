//! A cluster of Redis servers that exists only in the test.

use redis::{RedisResult, Value, from_redis_value};

use super::redis_server::RedisServer;
use super::{free_port, wait_until_async};

/// The slots of three masters.
const SLOTS: [(&str, &str); 3] = [("0", "5460"), ("5461", "10922"), ("10923", "16383")];

/// Three masters, and replicas of them.
pub struct RedisCluster {
    /// The masters first.
    pub nodes: Vec<RedisServer>,
    password: String,
}

impl RedisCluster {
    /// Starts three masters with these arguments, and as many replicas of the first one.
    pub async fn start(replicas: usize, arguments: &[&str]) -> Self {
        Self::start_with(replicas, |_| arguments.iter().map(|argument| (*argument).to_owned()).collect())
            .await
    }

    /// The same with arguments of its own for each node.
    pub async fn start_with(replicas: usize, arguments: impl Fn(usize) -> Vec<String>) -> Self {
        let mut nodes = Vec::new();
        let mut bus_ports = Vec::new();
        for number in 0..SLOTS.len() + replicas {
            let bus_port = free_port().to_string();
            let own = arguments(number);
            let common =
                ["--cluster-enabled", "yes", "--cluster-port", &bus_port, "--repl-diskless-sync-delay", "0"];
            let all: Vec<&str> = common.into_iter().chain(own.iter().map(String::as_str)).collect();
            nodes.push(RedisServer::start(&all).await);
            bus_ports.push(bus_port);
        }
        let cluster = Self { nodes, password: String::new() };
        for (number, node) in cluster.nodes.iter().enumerate() {
            node.command("", &["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]).await;
            if let Some((first, last)) = SLOTS.get(number) {
                node.command("", &["CLUSTER", "ADDSLOTSRANGE", first, last]).await;
            }
            let port = cluster.nodes[0].port.to_string();
            if number > 0 {
                node.command("", &["CLUSTER", "MEET", "127.0.0.1", &port, &bus_ports[0]]).await;
            }
        }
        cluster.wait_until_whole().await;
        let master = cluster.id(0).await;
        for number in SLOTS.len()..cluster.nodes.len() {
            cluster.nodes[number].command("", &["CLUSTER", "REPLICATE", &master]).await;
        }
        for replica in cluster.nodes.iter().skip(SLOTS.len()) {
            wait_until_async("the replica has everything", async || {
                replica.info_line("", "master_link_status:").await.as_deref() == Some("up")
            })
            .await;
        }
        cluster.wait_until_whole().await;
        cluster
    }

    /// The password that is needed from now on, on all nodes.
    pub async fn require_password(&mut self, password: &str) {
        for node in &self.nodes {
            node.command("", &["CONFIG", "SET", "requirepass", password]).await;
        }
        password.clone_into(&mut self.password);
    }

    /// Waits until every node knows all others, and that all slots are served.
    pub async fn wait_until_whole(&self) {
        for node in &self.nodes {
            wait_until_async("the cluster is whole", async || {
                let info = node.command(&self.password, &["CLUSTER", "INFO"]).await;
                let info: String = from_redis_value(info).unwrap();
                let has = |line: &str| info.lines().any(|known| known == line);
                has("cluster_state:ok")
                    && has("cluster_slots_ok:16384")
                    && has(&format!("cluster_known_nodes:{}", self.nodes.len()))
            })
            .await;
        }
    }

    /// Runs a command on the node that has its key.
    pub async fn command(&self, parts: &[&str]) -> Value {
        let mut last = None;
        for node in &self.nodes {
            match node.try_command(&self.password, parts).await {
                Ok(value) => return value,
                Err(error) => last = Some(error),
            }
        }
        panic!("no node answers {parts:?}: {last:?}");
    }

    /// The number of the master that had the slot of this key at first.
    pub async fn owner(&self, key: &str) -> usize {
        let slot: u16 = self.slot(key).await.parse().unwrap();
        SLOTS.iter().position(|(_, last)| slot <= last.parse().unwrap()).unwrap()
    }

    pub async fn slot(&self, key: &str) -> String {
        let slot = self.nodes[0].command(&self.password, &["CLUSTER", "KEYSLOT", key]).await;
        from_redis_value::<u16>(slot).unwrap().to_string()
    }

    /// Begins to move a slot, with all keys that are in it.
    pub async fn begin_move(&self, slot: &str, from: usize, to: usize) {
        let (source, target) = (&self.nodes[from], &self.nodes[to]);
        let import = ["CLUSTER", "SETSLOT", slot, "IMPORTING", &self.id(from).await];
        target.command(&self.password, &import).await;
        let migrate = ["CLUSTER", "SETSLOT", slot, "MIGRATING", &self.id(to).await];
        source.command(&self.password, &migrate).await;
        let keys = source.command(&self.password, &["CLUSTER", "GETKEYSINSLOT", slot, "100"]).await;
        for key in from_redis_value::<Vec<String>>(keys).unwrap() {
            let port = target.port.to_string();
            // It may have expired.
            let moved: RedisResult<Value> =
                source.try_command(&self.password, &["MIGRATE", "127.0.0.1", &port, &key, "0", "5000"]).await;
            moved.unwrap();
        }
    }

    /// Ends a move.
    pub async fn end_move(&self, slot: &str, from: usize, to: usize) {
        let owner = self.id(to).await;
        for number in [to, from] {
            let node = &self.nodes[number];
            node.command(&self.password, &["CLUSTER", "SETSLOT", slot, "NODE", &owner]).await;
        }
    }

    /// How often this node has answered with this error.
    pub async fn errors(&self, node: usize, code: &str) -> u64 {
        let line = self.nodes[node].info_line(&self.password, &format!("errorstat_{code}:count=")).await;
        line.map_or(0, |count| count.parse().unwrap())
    }

    async fn id(&self, node: usize) -> String {
        let id = self.nodes[node].command(&self.password, &["CLUSTER", "MYID"]).await;
        from_redis_value(id).unwrap()
    }
}
