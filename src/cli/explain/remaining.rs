//! What is left of a client's limits, which only the running process knows.

use std::time::Duration;

use tokio::runtime::Runtime;

use super::super::admin_client::{AdminArguments, AdminClient, AdminError};
use super::super::config_file::ConfigArguments;
use crate::admin::status::StatusReport;
use crate::admin::status::limits::LimitUsage;

/// How long the running process is waited for.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What is left, or why that is not known.
pub(super) type Remaining = Result<Vec<LimitUsage>, String>;

/// Asks the process that runs with this configuration about a client.
pub(super) fn ask_for_remaining(config: &ConfigArguments, client: &str, runtime: &Runtime) -> Remaining {
    let asked = || {
        let admin = AdminClient::new(&AdminArguments::of_config(config), TIMEOUT)?;
        Ok::<_, AdminError>(runtime.block_on(admin.get("/api/status"))?.body)
    };
    let body = asked().map_err(|problem| problem.to_string())?;
    let status: StatusReport =
        serde_json::from_slice(&body).map_err(|_| "the running process has another version".to_owned())?;
    let mut clients = status.limits.map(|limits| limits.clients).unwrap_or_default().into_iter();
    let limits = clients.find(|limited| limited.client.as_deref() == Some(client));
    limits
        .map(|limited| limited.limits)
        .ok_or_else(|| "the running process has no limits for this client, or lists others first".to_owned())
}

/// The text of a line about it.
pub(super) fn describe_remaining(remaining: &Remaining) -> String {
    match remaining {
        Ok(limits) => {
            let left = |limit: &LimitUsage| format!("{} {} of {}", limit.limit, limit.remaining, limit.value);
            limits.iter().map(left).collect::<Vec<_>>().join(", ")
        }
        Err(problem) => format!("not known: {problem}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::limits::ShownAmount;

    #[test]
    fn what_is_left_stands_beside_the_limit() {
        let usage = |limit: &str, value, used: u64| LimitUsage {
            limit: limit.to_owned(),
            value: ShownAmount::Count(value),
            used: ShownAmount::Count(used),
            remaining: ShownAmount::Count(value - used),
        };
        let [value, used, remaining] = [2.5, 1.0, 1.5].map(ShownAmount::Money);
        let cost = LimitUsage { limit: "cost_per_day".to_owned(), value, used, remaining };
        let limits = vec![usage("in_flight", 5, 2), usage("deployments.a.tokens_per_minute", 100, 100), cost];
        assert_eq!(
            describe_remaining(&Ok(limits)),
            "in_flight 3 of 5, deployments.a.tokens_per_minute 0 of 100, cost_per_day 1.5 of 2.5"
        );
        assert_eq!(describe_remaining(&Err("nobody answers".to_owned())), "not known: nobody answers");
    }
}
