//! Which backends an explained request leaves to more urgent ones, and above which utilization.

use crate::config::join_shortened;
use crate::gateway::{AdmittedRequest, Gateway};
use crate::routing::retry_plan::ResourceSearch;

/// What `shed` means for the request; nothing if the requests of its class stay.
pub(super) fn shed_lines(gateway: &Gateway, admitted: &AdmittedRequest) -> Vec<String> {
    // Only deployments have a utilization.
    let Some(rule) = admitted.shed_rule.filter(|_| admitted.deployment.is_some()) else { return Vec::new() };
    let class = rule.class.as_str();
    let stays = |reason: &str| vec![format!("{class} leaves no backend here: {reason}")];
    if matches!(admitted.search(), Some(ResourceSearch::Home { .. })) {
        return stays("only the resource of what the request refers to can answer it");
    }
    let pool = &admitted.pool;
    let upper: Vec<_> =
        pool.candidates().iter().enumerate().filter(|(index, _)| !pool.is_in_last_tier(*index)).collect();
    if upper.is_empty() {
        return stays("no lower tier serves the deployment");
    }
    let name = |backend_index: usize| {
        gateway
            .backends
            .get(backend_index)
            .map_or_else(String::new, |backend| backend.config.name.to_string())
    };
    let names = |is_provisioned: bool| -> Vec<String> {
        let of_kind =
            upper.iter().filter(|(_, candidate)| candidate.is_configured_as_provisioned == is_provisioned);
        of_kind.map(|(_, candidate)| name(candidate.backend_index)).collect()
    };
    let above = format!("above {}% utilization", rule.threshold.percent());
    let (provisioned, others) = (names(true), names(false));
    let mut lines = Vec::new();
    if !provisioned.is_empty() {
        lines.push(format!("{class} leaves {} {above} for the next tier", join_shortened(&provisioned)));
    }
    if !others.is_empty() {
        lines.push(format!(
            "{class} leaves {} {above} for the next tier, if its responses tell a utilization",
            join_shortened(&others)
        ));
    }
    lines
}
