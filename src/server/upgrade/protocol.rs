//! The messages of the control socket and their timeouts. The two processes may have different versions,
//! so the serialized form must not change.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::admission::limits::RateSnapshot;
use crate::gateway::unfinished_objects::{MadeObject, ObjectReport};
use crate::routing::health::snapshot::HealthSnapshot;
use crate::state::budget_log::BudgetEntry;

/// How long a successor may take to prepare. It waits for host names, tokens and secrets.
pub(super) const PREPARATION_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the other side may take for any other step.
pub(super) const REPLY_TIMEOUT: Duration = Duration::from_secs(15);

/// A message of the control socket: one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ControlMessage {
    /// To the running process: a request for an upgrade.
    Upgrade,
    /// To the running process: the sender is its successor.
    #[serde(rename = "succeed")]
    Introduction { pid: u32 },
    /// To the successor: the addresses whose sockets it will get, and the processes before it.
    Welcome {
        addresses: Vec<String>,
        #[serde(rename = "predecessors")]
        earlier_pids: Vec<u32>,
        /// Whether the sender answers [`ControlMessage::FollowHomes`]. Earlier versions do not.
        #[serde(default, skip_serializing_if = "is_false")]
        tells_homes: bool,
        /// Whether the sender answers [`ControlMessage::FollowLimits`].
        #[serde(default, skip_serializing_if = "is_false")]
        tells_limits: bool,
    },
    /// To the running process: it is to tell the homes that it remembers and learns, in the format of their log.
    FollowHomes,
    /// To the running process: the sender will keep the limits from the handover on. After
    /// [`ControlMessage::LearnedState`] the receiver reports what counts against them, and then asks for permission.
    FollowLimits,
    /// The answer to [`ControlMessage::FollowLimits`]: the receiver will report.
    ReadyForLimits,
    /// To the process that serves now: a predecessor has learned homes after its own successor was gone.
    ReportHomes,
    /// In answer to it: they can be sent, in the format of their log.
    ReadyForHomes,
    /// To the process that serves now: what clients have used in a predecessor since it gave the state directory
    /// up, in addition to what was reported before.
    ReportBudgets { additions: Vec<BudgetEntry> },
    /// The same of what responses have cost.
    ReportCosts { additions: Vec<BudgetEntry> },
    /// The same of what has happened to background responses.
    #[serde(rename = "report_bookings")]
    ReportObjects { report: ObjectReport },
    /// In answer to reports of budgets and costs: they are counted.
    BudgetsCounted,
    /// In answer to the report of background responses: it is counted, and the end of these had been seen already.
    ObjectsCounted { ended_before: Vec<String> },
    /// From the successor: every step that can fail is done.
    Prepared,
    /// To the successor: what the running process has learned.
    #[serde(rename = "inheritance")]
    LearnedState {
        #[serde(rename = "remembered")]
        health: HealthSnapshot,
        #[serde(rename = "learned")]
        deployments: Vec<String>,
        /// Background responses that have not ended. Earlier versions do not send it.
        #[serde(rename = "bookings", default, skip_serializing_if = "Vec::is_empty")]
        unfinished_objects: Vec<MadeObject>,
        /// What clients have used of their rates in the last minute. Earlier versions do not send it.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        rates: Vec<RateSnapshot>,
    },
    /// From the successor: it now waits for the sockets.
    #[serde(rename = "ready")]
    ReadyForSockets,
    /// From the successor: it is serving.
    Serving { pid: u32 },
    /// To the process that is now running: its predecessor was told to stop in its place, and waits for it.
    Stop,
    /// From the process that was told to stop: it stops.
    Stopping,
    /// To the requester of the upgrade: the current step.
    Progress {
        #[serde(rename = "what")]
        step: String,
    },
    /// To the requester of the upgrade: the successor is serving.
    Done { pid: u32 },
    /// In either direction: the upgrade failed.
    Failed {
        #[serde(rename = "why")]
        reason: String,
    },
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::ClientName;
    use crate::state::budget_log::{CostCounts, RefundCounts};

    #[test]
    fn messages_keep_the_serialized_form_of_earlier_versions() {
        let state = ControlMessage::LearnedState {
            health: HealthSnapshot::default(),
            deployments: vec!["x".to_owned()],
            unfinished_objects: Vec::new(),
            rates: Vec::new(),
        };
        let welcome = |tells_homes| ControlMessage::Welcome {
            addresses: vec!["a".to_owned()],
            earlier_pids: vec![1],
            tells_homes,
            tells_limits: false,
        };
        let latest_welcome = ControlMessage::Welcome {
            addresses: Vec::new(),
            earlier_pids: Vec::new(),
            tells_homes: true,
            tells_limits: true,
        };
        let addition = BudgetEntry {
            client: Some(ClientName::new("c")),
            deployment: None,
            day: 1,
            day_tokens: 2,
            month: 3,
            month_tokens: 4,
            day_costs: CostCounts::default(),
            month_costs: CostCounts::default(),
            others_day_tokens: 0,
            others_month_tokens: 0,
            others_day_costs: CostCounts::default(),
            others_month_costs: CostCounts::default(),
            day_refunds: RefundCounts::default(),
            month_refunds: RefundCounts::default(),
            others_day_refunds: RefundCounts::default(),
            others_month_refunds: RefundCounts::default(),
        };
        let report = r#"{"made":[{"object":"a","client":"c","deployment":null,"tokens":1,"cached_weight_permille":1000,"day":2,"month":3}],"ended":[{"object":"b","input":1,"cached":0,"output":2,"cost_millionths":null}]}"#;
        let reported = format!(r#"{{"report_bookings":{{"report":{report}}}}}"#);
        let table = [
            (ControlMessage::Upgrade, r#""upgrade""#),
            (ControlMessage::Introduction { pid: 1 }, r#"{"succeed":{"pid":1}}"#),
            (welcome(false), r#"{"welcome":{"addresses":["a"],"predecessors":[1]}}"#),
            (welcome(true), r#"{"welcome":{"addresses":["a"],"predecessors":[1],"tells_homes":true}}"#),
            (
                latest_welcome,
                r#"{"welcome":{"addresses":[],"predecessors":[],"tells_homes":true,"tells_limits":true}}"#,
            ),
            (ControlMessage::FollowLimits, r#""follow_limits""#),
            (ControlMessage::ReadyForLimits, r#""ready_for_limits""#),
            (ControlMessage::FollowHomes, r#""follow_homes""#),
            (ControlMessage::ReportHomes, r#""report_homes""#),
            (ControlMessage::ReadyForHomes, r#""ready_for_homes""#),
            (
                ControlMessage::ReportBudgets { additions: vec![addition] },
                r#"{"report_budgets":{"additions":[{"client":"c","deployment":null,"day":1,"day_tokens":2,"month":3,"month_tokens":4}]}}"#,
            ),
            (ControlMessage::ReportCosts { additions: Vec::new() }, r#"{"report_costs":{"additions":[]}}"#),
            (
                ControlMessage::ReportObjects { report: serde_json::from_str(report).unwrap() },
                reported.as_str(),
            ),
            (ControlMessage::BudgetsCounted, r#""budgets_counted""#),
            (
                ControlMessage::ObjectsCounted { ended_before: vec!["a".to_owned()] },
                r#"{"objects_counted":{"ended_before":["a"]}}"#,
            ),
            (ControlMessage::Prepared, r#""prepared""#),
            (state, r#"{"inheritance":{"remembered":{"backends":[]},"learned":["x"]}}"#),
            (ControlMessage::ReadyForSockets, r#""ready""#),
            (ControlMessage::Serving { pid: 1 }, r#"{"serving":{"pid":1}}"#),
            (ControlMessage::Stop, r#""stop""#),
            (ControlMessage::Stopping, r#""stopping""#),
            (ControlMessage::Progress { step: "s".to_owned() }, r#"{"progress":{"what":"s"}}"#),
            (ControlMessage::Done { pid: 1 }, r#"{"done":{"pid":1}}"#),
            (ControlMessage::Failed { reason: "r".to_owned() }, r#"{"failed":{"why":"r"}}"#),
        ];
        for (message, expected) in table {
            assert_eq!(serde_json::to_string(&message).unwrap(), expected);
        }
    }

    #[test]
    fn messages_of_earlier_versions_are_understood() {
        let welcome = serde_json::from_str(r#"{"welcome":{"addresses":["a"],"predecessors":[1]}}"#).unwrap();
        assert!(
            matches!(welcome, ControlMessage::Welcome { tells_homes: false, tells_limits: false, .. }),
            "{welcome:?}"
        );
    }
}
