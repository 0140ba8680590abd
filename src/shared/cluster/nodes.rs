//! The nodes of a cluster, as those who send commands see them: which one has a key, and what is wrong.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use redis::cluster_routing::Slot;
use tokio::sync::Notify;

use super::layout::Layout;
use super::node::Node;
use crate::shared::keys::KeySpace;
use crate::shared::node_address::NodeAddress;

/// How many slots a cluster has.
/// <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#key-distribution-model>
const SLOT_COUNT: usize = 16_384;
/// Nodes that others have referred to and that have no slots yet. Later ones are ignored.
const MAX_FURTHER_NODES: usize = 16;
/// How many keys are tried until one is in a slot of a node: enough for a node with one slot.
const MAX_KEY_ATTEMPTS: usize = 10 * SLOT_COUNT;

/// The nodes of a cluster.
pub(super) struct ClusterNodes {
    table: ArcSwap<Table>,
    keys: KeySpace,
    /// The slot of what belongs to no key, such as the time: all instances ask the same node.
    common_slot: Slot,
    /// Nodes without slots that others have referred to.
    further: Mutex<Vec<NodeAddress>>,
    /// The layout has to be read again.
    pub(super) is_outdated: Notify,
    /// A node was connected or lost.
    pub(super) changed: Notify,
}

/// The nodes at one time.
#[derive(Default)]
struct Table {
    nodes: Vec<Arc<Node>>,
    slots: HashMap<Slot, Arc<Node>>,
}

impl ClusterNodes {
    pub(super) fn new(keys: &KeySpace) -> Self {
        Self {
            table: ArcSwap::default(),
            keys: keys.clone(),
            common_slot: Slot::for_key(keys.key("instances")),
            further: Mutex::default(),
            is_outdated: Notify::new(),
            changed: Notify::new(),
        }
    }

    /// All nodes: the masters of the layout, and further ones.
    pub(super) fn all(&self) -> Vec<Arc<Node>> {
        self.table.load().nodes.clone()
    }

    /// Takes over a new layout. Nodes that are known stay as they are.
    pub(super) fn set_layout(&self, layout: &Layout) {
        let known = self.table.load_full();
        let mut further = self.further.lock().unwrap_or_else(PoisonError::into_inner);
        let is_lost = |address: &NodeAddress| {
            known.nodes.iter().any(|node| node.address == *address && node.is_tried() && !node.is_up())
        };
        further.retain(|address| !layout.masters.contains(address) && !is_lost(address));
        let find_or_create = |address: &NodeAddress| {
            let node = known.nodes.iter().find(|node| node.address == *address);
            node.cloned().unwrap_or_else(|| Node::new(address.clone()))
        };
        let nodes: Vec<_> = layout.masters.iter().chain(further.iter()).map(find_or_create).collect();
        let with_node = |(slot, number): (&Slot, &usize)| Some((*slot, Arc::clone(nodes.get(*number)?)));
        let slots = layout.slots.iter().filter_map(with_node).collect();
        self.table.store(Arc::new(Table { nodes, slots }));
    }

    /// The node that has this key.
    pub(super) fn owner_of(&self, key: &[u8]) -> Option<Arc<Node>> {
        self.table.load().slots.get(&Slot::for_key(key)).cloned()
    }

    /// The node for what belongs to no key: the same one for all instances, as long as it is there.
    pub(super) fn common_node(&self) -> Option<Arc<Node>> {
        let table = self.table.load();
        let common = table.slots.get(&self.common_slot).filter(|node| node.is_up());
        common.or_else(|| table.nodes.iter().find(|node| node.is_up())).cloned()
    }

    /// The node that another one has referred to. If it is not known yet, it is from the next layout on.
    pub(super) fn find_or_request(&self, address: &NodeAddress) -> Option<Arc<Node>> {
        let known = self.table.load().nodes.iter().find(|node| node.address == *address).cloned();
        if known.is_none() {
            let mut further = self.further.lock().unwrap_or_else(PoisonError::into_inner);
            if further.len() < MAX_FURTHER_NODES && !further.contains(address) {
                further.push(address.clone());
            }
            self.is_outdated.notify_one();
        }
        known
    }

    /// A key that this node has; `None` if it has no slots.
    pub(super) fn key_on(&self, node: &Arc<Node>) -> Option<String> {
        let table = self.table.load();
        let has_slots = table.slots.values().any(|owner| Arc::ptr_eq(owner, node));
        let mut keys = (0..MAX_KEY_ATTEMPTS).map(|number| self.keys.key(&format!("probe:{number}")));
        let is_own =
            |key: &String| table.slots.get(&Slot::for_key(key)).is_some_and(|owner| Arc::ptr_eq(owner, node));
        has_slots.then(|| keys.find(is_own)).flatten()
    }

    /// What is wrong if a part of the slots has no server.
    pub(super) fn partial_problem(&self) -> Option<String> {
        let table = self.table.load();
        let is_away = |node: &Node| node.is_tried() && !node.is_up();
        let unreachable = table.slots.values().filter(|node| is_away(node)).count();
        let count = SLOT_COUNT.saturating_sub(table.slots.len()) + unreachable;
        if count == 0 {
            return None;
        }
        let reasons: Vec<String> = table
            .nodes
            .iter()
            .filter(|node| table.slots.values().any(|owner| Arc::ptr_eq(owner, node)))
            .filter_map(|node| Some(format!("{}: {}", node.address, node.problem()?)))
            .collect();
        let reasons = if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join("; ")) };
        Some(format!("{count} of {SLOT_COUNT} hash slots have no server{reasons}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::problem::Problem;

    fn address(port: u16) -> NodeAddress {
        NodeAddress { host: "10.0.0.4".to_owned(), port }
    }

    /// Each master has slots from its own number on.
    fn layout(masters: &[(u16, u16)]) -> Layout {
        let mut layout = Layout::default();
        for (number, (port, first)) in masters.iter().enumerate() {
            layout.masters.push(address(*port));
            layout.slots.extend((*first..16_384).filter_map(Slot::new).map(|slot| (slot, number)));
        }
        layout
    }

    #[test]
    fn a_key_has_one_node_and_each_node_has_a_key() {
        let nodes = ClusterNodes::new(&KeySpace::new("p"));
        nodes.set_layout(&layout(&[(1, 0), (2, 8_000), (3, 16_383)]));
        let all = nodes.all();
        assert_eq!(all.len(), 3);
        for node in &all {
            let key = nodes.key_on(node).unwrap();
            assert!(key.starts_with("p:1:probe:"), "{key}");
            assert!(Arc::ptr_eq(&nodes.owner_of(key.as_bytes()).unwrap(), node), "{key}");
        }
        // The slots of these keys are those of the specification.
        let owner = |key: &str| nodes.owner_of(key.as_bytes()).unwrap().address.port;
        assert_eq!((owner("foo"), owner("{foo}:x"), owner("bar")), (2, 2, 1));
    }

    #[test]
    fn a_new_layout_keeps_known_nodes_and_those_that_were_referred_to() {
        let nodes = ClusterNodes::new(&KeySpace::new("p"));
        nodes.set_layout(&layout(&[(1, 0), (2, 8_000)]));
        let before = nodes.all();
        assert!(nodes.find_or_request(&address(1)).is_some());
        assert!(nodes.find_or_request(&address(3)).is_none());
        nodes.set_layout(&layout(&[(2, 0)]));
        let ports: Vec<_> = nodes.all().iter().map(|node| node.address.port).collect();
        assert_eq!(ports, [2, 3]);
        assert!(Arc::ptr_eq(&nodes.all()[0], &before[1]));
        let further = nodes.find_or_request(&address(3)).unwrap();
        assert_eq!(nodes.key_on(&further), None);
        nodes.set_layout(&layout(&[(2, 0), (3, 5)]));
        assert!(Arc::ptr_eq(&nodes.all()[1], &further));
        assert_eq!(nodes.all().len(), 2);
    }

    #[test]
    fn slots_without_a_server_are_counted() {
        let nodes = ClusterNodes::new(&KeySpace::new("p"));
        nodes.set_layout(&layout(&[(1, 4), (2, 10_000)]));
        assert_eq!(nodes.partial_problem().unwrap(), "4 of 16384 hash slots have no server");
        nodes.set_layout(&layout(&[(1, 0), (2, 10_000)]));
        assert_eq!(nodes.partial_problem(), None, "no attempt has ended");
        nodes.all()[1].set_down(Problem::Closed);
        let expected = "6384 of 16384 hash slots have no server: 10.0.0.4:2: it closed the connection";
        assert_eq!(nodes.partial_problem().unwrap(), expected);
        // Nodes without slots are not needed, and forgotten when they are lost.
        nodes.find_or_request(&address(3));
        nodes.set_layout(&layout(&[(1, 0)]));
        nodes.all()[1].set_down(Problem::Closed);
        assert_eq!(nodes.partial_problem(), None);
        nodes.set_layout(&layout(&[(1, 0)]));
        assert_eq!(nodes.all().len(), 1);
    }
}
