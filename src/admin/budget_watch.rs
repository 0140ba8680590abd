//! Looks at the budgets of clients: that what is used of them outlives the process.

use crate::admission::client_registry::ClientRegistry;
use crate::config::LimitMode;
use crate::routing::service_state::{ServiceProblem, ServiceState};

/// The problem of budgets that are enforced but not saved; `None` if there are none, or all is well.
pub(super) fn budget_problem(clients: &ClientRegistry, not_saved: Option<String>) -> Option<ServiceProblem> {
    let mut limiters = clients.all_clients().iter().filter_map(|client| client.limiter.as_ref());
    let enforces_budgets =
        limiters.any(|limiter| limiter.mode() == LimitMode::Enforce && limiter.has_budgets());
    let reason = not_saved.filter(|_| enforces_budgets)?;
    Some(ServiceProblem {
        state: ServiceState::Degraded,
        subject: "budgets".to_owned(),
        text: format!("what clients have used of them is forgotten when this process ends: {reason}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::testing::TestClients;

    #[test]
    fn budgets_that_are_enforced_and_not_saved_are_a_problem() {
        for (limits, not_saved, expected) in [
            ("default: { tokens_per_day: 5 }", Some("disk full"), true),
            ("default: { deployments: { gpt-4o: { tokens_per_month: 5 } } }", Some("disk full"), true),
            ("default: { tokens_per_day: 5 }", None, false),
            ("mode: observe, default: { tokens_per_day: 5 }", Some("disk full"), false),
            ("default: { tokens_per_minute: 5 }", Some("disk full"), false),
            ("mode: enforce", Some("disk full"), false),
        ] {
            let clients = TestClients::new(&format!("limits: {{ {limits} }}\nclients: open"));
            let problem = budget_problem(&clients.registry, not_saved.map(str::to_owned));
            assert_eq!(problem.is_some(), expected, "{limits} {not_saved:?}");
            assert!(
                problem.is_none_or(|problem| problem.text.ends_with("when this process ends: disk full"))
            );
        }
    }
}
