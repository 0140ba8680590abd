//! Where requests wait for a deployment: in one line for all names that lead to the same deployment of a backend, since
//! they wait for the same.

use std::collections::HashMap;
use std::sync::Arc;

use super::backend_queue::BackendQueue;
use crate::admission::queue::QueueLine;
use crate::names::DeploymentName;
use crate::routing::health::backend_health::DeploymentHealth;
use crate::routing::pool::BackendPool;

/// A pool, and where requests wait for it.
#[derive(Clone)]
pub(super) struct PoolWithQueue {
    pub(super) pool: Arc<BackendPool>,
    /// `None` if requests do not wait.
    pub(super) line: Option<Arc<QueueLine>>,
}

/// Gives each pool its line; `queue` is `None` if requests do not wait. The name of a line is that of its deployment, or
/// the names of its deployments.
pub(super) fn with_lines(
    pools: HashMap<DeploymentName, Arc<BackendPool>>,
    queue: Option<&BackendQueue>,
) -> HashMap<DeploymentName, PoolWithQueue> {
    let names = if queue.is_some() { line_names(&pools) } else { HashMap::new() };
    let with_line = |(name, pool): (DeploymentName, Arc<BackendPool>)| {
        let line = queue.zip(names.get(&name)).map(|(queue, line_name)| queue.line(line_name));
        (name, PoolWithQueue { pool, line })
    };
    pools.into_iter().map(with_line).collect()
}

/// Whether requests for two pools wait for the same deployment of a backend.
pub(super) fn waits_for_same(pool: &BackendPool, other: &BackendPool) -> bool {
    deployments_of(pool).any(|deployment| {
        deployments_of(other).any(|other| std::ptr::eq(Arc::as_ptr(deployment), Arc::as_ptr(other)))
    })
}

/// The names of the lines of all pools.
fn line_names(pools: &HashMap<DeploymentName, Arc<BackendPool>>) -> HashMap<DeploymentName, String> {
    let mut names: Vec<&DeploymentName> = pools.keys().collect();
    names.sort_by_key(|name| name.to_lowercase());
    // For each name, the first one that it shares a deployment with, perhaps by way of others.
    let mut first: Vec<usize> = (0..names.len()).collect();
    let mut seen_in: HashMap<*const DeploymentHealth, usize> = HashMap::new();
    for (number, name) in names.iter().enumerate() {
        for deployment in pools.get(*name).into_iter().flat_map(|pool| deployments_of(pool)) {
            let other = *seen_in.entry(Arc::as_ptr(deployment)).or_insert(number);
            let (a, b) = (first_of(&first, number), first_of(&first, other));
            if let Some(entry) = first.get_mut(a.max(b)) {
                *entry = a.min(b);
            }
        }
    }
    let mut line_names: HashMap<usize, Vec<String>> = HashMap::new();
    for (number, name) in names.iter().enumerate() {
        line_names.entry(first_of(&first, number)).or_default().push(name.to_lowercase());
    }
    let line_name = |(number, name): (usize, &&DeploymentName)| {
        let all = line_names.get(&first_of(&first, number)).map(|names| names.join(", "));
        ((*name).clone(), all.unwrap_or_default())
    };
    names.iter().enumerate().map(line_name).collect()
}

fn first_of(first: &[usize], mut number: usize) -> usize {
    while let Some(before) = first.get(number).filter(|before| **before != number) {
        number = *before;
    }
    number
}

fn deployments_of(pool: &BackendPool) -> impl Iterator<Item = &Arc<DeploymentHealth>> {
    pool.candidates().iter().filter_map(|candidate| candidate.deployment_health.as_ref())
}
