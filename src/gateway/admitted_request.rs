//! A request after admission: what the choice of a backend and the attempts need to know of it.

use std::sync::Arc;

use super::request_affinity::RequestAffinity;
use super::requested_call::ParsedBody;
use crate::admission::queue::QueueLine;
use crate::azure::{PromptPartRanges, RequestTarget};
use crate::names::{ClientName, DeploymentName};
use crate::routing::pool::BackendPool;
use crate::routing::prompt_cache::PromptRoute;
use crate::routing::retry_plan::{ResourceSearch, RetryPlan, ShedRule};
use crate::routing::routed_operation::RoutedOperation;

/// A request that is allowed and has a pool of backends.
pub struct AdmittedRequest {
    /// Its path and query.
    pub target: Arc<RequestTarget>,
    /// The deployment that it names, if any.
    pub deployment: Option<DeploymentName>,
    /// The client that sent it; `None` if no client has to authenticate.
    pub client_name: Option<ClientName>,
    /// The backends that can serve it.
    pub pool: Arc<BackendPool>,
    /// Where it waits if no backend is free; `None` if it is refused.
    pub queue_line: Option<Arc<QueueLine>>,
    /// Whether it asks for a stream, if its body could be read.
    pub wants_stream: Option<bool>,
    /// Whether it may be sent again after an attempt that the backend may have received: not if it creates
    /// an object each time.
    pub is_repeatable: bool,
    /// What it refers to; `None` for a request that refers to nothing and names a deployment.
    pub affinity: Option<Box<RequestAffinity>>,
    /// Whether its path names an object and no deployment, so that a 404 is about the object.
    pub names_object_in_path: bool,
    pub(super) parsed_body: ParsedBody,
    /// Whether no backend lists the deployment and none has answered for it yet.
    pub(super) uses_unlisted_pool: bool,
    /// Which of its backends it leaves to more urgent requests; `None` for none.
    pub shed_rule: Option<ShedRule>,
    /// How it is routed by its prompt; `None` if it takes turns.
    pub prompt_route: Option<PromptRoute>,
}

impl AdmittedRequest {
    /// Where it may be answered, if it refers to objects.
    pub fn search(&self) -> Option<&ResourceSearch> {
        self.affinity.as_ref()?.search.as_ref()
    }

    /// The same request, which leaves backends to more urgent ones by this rule.
    #[must_use]
    pub fn with_shed_rule(self, rule: Option<ShedRule>) -> Self {
        Self { shed_rule: rule, ..self }
    }

    /// The same request, which is routed by its prompt.
    #[must_use]
    pub fn with_prompt_route(self, route: Option<PromptRoute>) -> Self {
        Self { prompt_route: route, ..self }
    }

    /// The plan for its attempts.
    pub fn retry_plan(&self) -> RetryPlan {
        let plan = match self.search() {
            Some(search) => RetryPlan::for_search(&self.pool, search.clone()),
            None => RetryPlan::new(&self.pool),
        };
        plan.with_shed_rule(self.shed_rule).with_prompt_route(self.prompt_route)
    }

    /// What it would have a backend do.
    pub fn routed_operation(&self) -> RoutedOperation {
        let is_flex = matches!(&self.parsed_body, ParsedBody::Json(facts) if facts.asks_for_flex);
        RoutedOperation { operation: self.target.operation, is_flex }
    }

    /// Where the prompt is in the body, if that is known.
    pub fn prompt_parts(&self) -> Option<&PromptPartRanges> {
        match &self.parsed_body {
            ParsedBody::Json(facts) => Some(&facts.prompt_part_ranges),
            ParsedBody::Multipart(_) | ParsedBody::Opaque => None,
        }
    }
}
