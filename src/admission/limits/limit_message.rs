//! The messages between a process and the one that keeps the limits in its place: lines of JSON. The two processes may
//! have different versions, so the serialized form must not change.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::amounts::Amounts;
use super::limit_key::{LimitKey, LimitKind, LimitReached};
use super::sliding_minute::ReservedAt;
use crate::names::{ClientName, DeploymentName};

/// To the keeper of the limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitMessage {
    /// Asks for permission to admit a request.
    Ask {
        /// The answer has the same.
        id: u64,
        /// What the request would reserve.
        #[serde(flatten)]
        booking: Booking,
    },
    /// A request was admitted without permission.
    Admitted(Booking),
    /// A request is no longer in flight.
    Ended(LimitScope),
    /// What a request has reserved is replaced by what it has used.
    Settled {
        /// What it had reserved.
        #[serde(flatten)]
        booking: Booking,
        /// The tokens that it has used.
        used: u64,
    },
}

/// Whose limits count for a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitScope {
    /// `None`: clients that need not authenticate.
    client: Option<String>,
    /// `None`: the request names no deployment.
    deployment: Option<String>,
}

/// What a request has reserved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Booking {
    /// Whose limits count.
    #[serde(flatten)]
    pub scope: LimitScope,
    /// The estimate.
    #[serde(flatten)]
    pub amounts: Amounts,
    /// When they were reserved, in total and for the deployment; `None` where they are not limited.
    #[serde(default)]
    pub reserved_at: [Option<ReservedAt>; 2],
}

/// What the keeper answers to [`LimitMessage::Ask`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitAnswer {
    /// The request is counted.
    Granted {
        /// The id of the question.
        id: u64,
        /// When its tokens were reserved.
        reserved_at: [Option<ReservedAt>; 2],
    },
    /// It would exceed this limit.
    Refused {
        /// The id of the question.
        id: u64,
        /// The limit.
        #[serde(flatten)]
        reached: ReachedLimit,
    },
}

/// [`LimitReached`] as it is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReachedLimit {
    deployment: Option<String>,
    kind: LimitKind,
    limit: u64,
    demand: u64,
    wait_ms: Option<u64>,
}

impl LimitScope {
    /// The scope of a client's requests for a deployment.
    pub fn new(client: Option<&ClientName>, deployment: Option<&DeploymentName>) -> Self {
        Self { client: client.map(ToString::to_string), deployment: deployment.map(ToString::to_string) }
    }

    /// The client.
    pub fn client(&self) -> Option<ClientName> {
        self.client.as_deref().map(ClientName::new)
    }

    /// The deployment.
    pub fn deployment(&self) -> Option<DeploymentName> {
        self.deployment.as_deref().and_then(|name| DeploymentName::parse(name).ok())
    }
}

impl From<LimitReached> for ReachedLimit {
    fn from(reached: LimitReached) -> Self {
        let LimitReached { key, limit, demand, wait } = reached;
        let wait_ms = wait.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        Self {
            deployment: key.deployment.map(|name| name.to_string()),
            kind: key.kind,
            limit,
            demand,
            wait_ms,
        }
    }
}

impl From<ReachedLimit> for LimitReached {
    fn from(reached: ReachedLimit) -> Self {
        let ReachedLimit { deployment, kind, limit, demand, wait_ms } = reached;
        let deployment = deployment.and_then(|name| DeploymentName::parse(&name).ok());
        Self { key: LimitKey { deployment, kind }, limit, demand, wait: wait_ms.map(Duration::from_millis) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn booking_of(amounts: Amounts) -> Booking {
        Booking { scope: LimitScope::default(), amounts, reserved_at: [None; 2] }
    }

    #[test]
    fn the_serialized_form_does_not_change() {
        let deployment = DeploymentName::parse("gpt-4o").unwrap();
        let scope = LimitScope::new(Some(&ClientName::new("a")), Some(&deployment));
        let reserved_at = [serde_json::from_str("7").unwrap(), None];
        let booking = Booking { scope: scope.clone(), amounts: Amounts::of_tokens(5), reserved_at };
        let nobody = booking_of(Amounts::default());
        let priced = booking_of(Amounts { tokens: 5, cost_millionths: 7 });
        for (message, expected) in [
            (
                LimitMessage::Ask { id: 1, booking: nobody },
                r#"{"ask":{"id":1,"client":null,"deployment":null,"tokens":0,"reserved_at":[null,null]}}"#,
            ),
            (
                LimitMessage::Admitted(booking.clone()),
                r#"{"admitted":{"client":"a","deployment":"gpt-4o","tokens":5,"reserved_at":[7,null]}}"#,
            ),
            (
                LimitMessage::Admitted(priced),
                r#"{"admitted":{"client":null,"deployment":null,"tokens":5,"cost_millionths":7,"reserved_at":[null,null]}}"#,
            ),
            (LimitMessage::Ended(scope), r#"{"ended":{"client":"a","deployment":"gpt-4o"}}"#),
            (
                LimitMessage::Settled { booking, used: 9 },
                r#"{"settled":{"client":"a","deployment":"gpt-4o","tokens":5,"reserved_at":[7,null],"used":9}}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&message).unwrap(), expected);
            assert_eq!(serde_json::from_str::<LimitMessage>(expected).unwrap(), message);
        }
        let reached = LimitReached {
            key: LimitKey { deployment: Some(deployment), kind: LimitKind::TokensPerMinute },
            limit: 10,
            demand: 3,
            wait: Some(Duration::from_millis(1500)),
        };
        for (answer, expected) in [
            (LimitAnswer::Granted { id: 1, reserved_at }, r#"{"granted":{"id":1,"reserved_at":[7,null]}}"#),
            (
                LimitAnswer::Refused { id: 2, reached: reached.clone().into() },
                r#"{"refused":{"id":2,"deployment":"gpt-4o","kind":"tokens_per_minute","limit":10,"demand":3,"wait_ms":1500}}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&answer).unwrap(), expected);
            assert_eq!(serde_json::from_str::<LimitAnswer>(expected).unwrap(), answer);
        }
        assert_eq!(LimitReached::from(ReachedLimit::from(reached.clone())), reached);
    }
}
