//! The pools that are an exception: none of their backends is available, another tier than the first serves, or a
//! backend that is healthy otherwise cannot serve this deployment.

use std::collections::HashSet;

use super::fitted_table::{Cell, Column, Table};
use crate::admin::status::{BackendStatus, PoolMemberStatus, PoolStatus};
use crate::cli::text::{Style, printable};
use crate::routing::health::backend_state::BackendState;

/// A row per pool that is an exception, those without any backend first. `spilling` are the backends that are full while
/// others serve.
pub(super) fn pool_exceptions(
    pools: &[PoolStatus],
    backends: &[BackendStatus],
    spilling: &HashSet<&str>,
) -> Table {
    let mut table =
        Table::new(&[Column::text("POOL"), Column::number("AVAILABLE", 5), Column::text("EXCEPTION")]);
    let exceptions = pools.iter().filter_map(|pool| Some((pool, exception(pool, backends, spilling)?)));
    let (outages, others): (Vec<_>, Vec<_>) = exceptions.partition(|(_, (_, style))| *style == Style::Bad);
    for (pool, (text, style)) in outages.into_iter().chain(others) {
        let members = || pool.tiers.iter().flat_map(|tier| &tier.members);
        let available = members().filter(|member| is_available(member)).count();
        table.push(vec![
            pool_name(pool).into(),
            format!("{available} of {}", members().count()).into(),
            Cell::new(text, style),
        ]);
    }
    table
}

/// Why a pool is an exception, if it is one.
fn exception(
    pool: &PoolStatus,
    backends: &[BackendStatus],
    spilling: &HashSet<&str>,
) -> Option<(String, Style)> {
    let first = pool.tiers.first()?;
    let Some(serving) = pool.tiers.iter().find(|tier| tier.members.iter().any(is_available)) else {
        return Some(("no backend is available".to_owned(), Style::Bad));
    };
    let is_full = |member: &PoolMemberStatus| spilling.contains(member.backend.as_str());
    let mut style = Style::Warning;
    let mut texts = Vec::new();
    if serving.tier != first.tier {
        let are_full = first.members.iter().all(is_full);
        let state = if are_full { "full" } else { "not available" };
        texts.push(format!("tier {} is {state}, tier {} serves", first.tier, serving.tier));
        style = if are_full { Style::Notice } else { style };
    }
    let members = pool.tiers.iter().flat_map(|tier| &tier.members);
    let is_unlike = |member: &&PoolMemberStatus| {
        !is_available(member) && !is_full(member) && !is_state_of_backend(member, backends)
    };
    let unlike: Vec<String> = members
        .filter(is_unlike)
        .map(|member| format!("{} {}", printable(&member.backend), printable(&member.state)))
        .collect();
    if !unlike.is_empty() {
        texts.push(unlike.join(", "));
        style = Style::Warning;
    }
    (!texts.is_empty()).then(|| (texts.join("; "), style))
}

/// Whether requests are sent to this member.
fn is_available(member: &PoolMemberStatus) -> bool {
    [BackendState::Healthy, BackendState::Failing].iter().any(|state| state.as_str() == member.state)
}

/// Whether the table of backends tells of it already.
fn is_state_of_backend(member: &PoolMemberStatus, backends: &[BackendStatus]) -> bool {
    backends.iter().any(|backend| backend.name == member.backend && backend.state == member.state)
}

fn pool_name(pool: &PoolStatus) -> String {
    match (pool.kind.as_str(), &pool.deployment) {
        (_, Some(deployment)) => printable(deployment),
        ("home", None) => "(calls without a deployment)".to_owned(),
        _ => "(deployments that no backend lists)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::backend;
    use super::*;
    use crate::admin::status::TierStatus;
    use crate::cli::text::Palette;

    /// The members of a tier and their states.
    type Members<'m> = &'m [(&'m str, &'m str)];

    fn pool(deployment: &str, tiers: &[Members<'_>]) -> PoolStatus {
        let member = |(backend, state): &(&str, &str)| PoolMemberStatus {
            backend: (*backend).to_owned(),
            upstream_deployment: None,
            weight: 1,
            state: (*state).to_owned(),
            remaining_ms: None,
            cached_share: None,
        };
        let tiers = tiers
            .iter()
            .zip(1..)
            .map(|(members, tier)| TierStatus { tier, members: members.iter().map(member).collect() });
        PoolStatus {
            kind: "deployment".to_owned(),
            deployment: Some(deployment.to_owned()),
            balance: "headroom".to_owned(),
            cached_share: None,
            tiers: tiers.collect(),
        }
    }

    #[test]
    fn only_exceptions_are_told_and_what_the_backends_tell_already_is_not() {
        let backends = [backend("a", "healthy", None), backend("b", "stalled", None)];
        let spilling = HashSet::from(["full"]);
        let table: &[(&[Members<'_>], Option<&str>)] = &[
            (&[&[("a", "healthy"), ("b", "healthy")]], None),
            (&[&[("a", "failing")]], None),
            (&[&[("a", "healthy"), ("b", "stalled")]], None),
            (&[&[("a", "absent"), ("b", "healthy")]], Some("1 of 2  a absent")),
            (
                &[&[("b", "stalled")], &[("a", "healthy")]],
                Some("1 of 2  tier 1 is not available, tier 2 serves"),
            ),
            (
                &[&[("a", "cooling")], &[("b", "stalled")], &[("c", "healthy")]],
                Some("1 of 3  tier 1 is not available, tier 3 serves; a cooling"),
            ),
            (&[&[("full", "cooling")], &[("a", "healthy")]], Some("1 of 2  tier 1 is full, tier 2 serves")),
            (&[&[("full", "cooling"), ("a", "healthy")]], None),
            (&[&[("a", "absent"), ("b", "stalled")]], Some("0 of 2  no backend is available")),
            (&[], None),
        ];
        for (tiers, expected) in table {
            let shown = pool_exceptions(&[pool("gpt-4o", tiers)], &backends, &spilling).lines(None);
            let shown = shown.get(1).map(|line| line.render(Palette::Text));
            assert_eq!(shown, expected.map(|text| format!("gpt-4o     {text}")), "{tiers:?}");
        }
        let pools =
            [pool("one", &[&[("a", "absent"), ("b", "healthy")]]), pool("two", &[&[("b", "stalled")]])];
        let shown = pool_exceptions(&pools, &backends, &spilling).lines(None);
        assert!(shown[1].render(Palette::Text).starts_with("two "), "the worst is first");
    }
}
