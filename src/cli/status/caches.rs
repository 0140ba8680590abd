//! How much of their input deployments read from prompt caches.

use super::fitted_table::{Column, Table};
use crate::admin::status::PoolStatus;
use crate::cli::text::{or_unknown, printable};

/// The deployments that are balanced by their prompt caches; with `shows_all` also others that read from one.
pub(super) fn cache_table(pools: &[PoolStatus], shows_all: bool) -> Table {
    let mut table = Table::new(&[
        Column::text("PROMPT CACHE OF"),
        Column::number("CACHED/15 MIN", 6),
        Column::text("BY BACKEND"),
    ]);
    for pool in pools {
        let Some(deployment) = &pool.deployment else { continue };
        let is_used = pool.cached_share.is_some_and(|share| share > 0.0);
        if pool.balance != "prompt_cache" && !(shows_all && is_used) {
            continue;
        }
        let members = pool.tiers.iter().flat_map(|tier| &tier.members);
        let by_backend = members.filter_map(|member| {
            Some(format!("{} {}", printable(&member.backend), in_percent(member.cached_share?)))
        });
        let by_backend = by_backend.collect::<Vec<_>>().join(", ");
        table.push(vec![
            printable(deployment).into(),
            or_unknown(pool.cached_share.map(in_percent)).into(),
            by_backend.into(),
        ]);
    }
    table
}

fn in_percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cli::text::Palette;

    #[test]
    fn deployments_that_are_balanced_by_their_caches_are_shown_and_in_detail_others() {
        let pool = |deployment: &str,
                    balance: Option<&str>,
                    share: Option<f64>,
                    members: &[(&str, Option<f64>)]| {
            let members: Vec<Value> = members
                .iter()
                .map(|(name, share)| json!({"backend": name, "weight": 1, "state": "healthy", "cached_share": share}))
                .collect();
            let mut pool = json!({
                "kind": "deployment", "deployment": deployment, "cached_share": share,
                "tiers": [{"tier": 1, "members": members}],
            });
            if let Some(balance) = balance {
                pool["balance"] = balance.into();
            }
            serde_json::from_value::<PoolStatus>(pool).unwrap()
        };
        let pools = [
            pool(
                "gpt-4o",
                Some("prompt_cache"),
                Some(0.844),
                &[("a", Some(0.9)), ("b", Some(0.0)), ("c", None)],
            ),
            pool("new", Some("prompt_cache"), None, &[("a", None)]),
            pool("o3", Some("headroom"), Some(0.25), &[("a", Some(0.25))]),
            pool("ada", Some("headroom"), Some(0.0), &[]),
            // Of an older version.
            pool("old", None, None, &[]),
        ];
        let shown = |shows_all| {
            let lines = cache_table(&pools, shows_all).lines(None);
            let text = |line: String| line.split_whitespace().collect::<Vec<_>>().join(" ");
            lines.iter().skip(1).map(|line| text(line.render(Palette::Text))).collect::<Vec<_>>()
        };
        assert_eq!(shown(false), ["gpt-4o 84% a 90%, b 0%", "new -"]);
        assert_eq!(shown(true), ["gpt-4o 84% a 90%, b 0%", "new -", "o3 25% a 25%"]);
    }
}
