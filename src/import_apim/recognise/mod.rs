//! Recognises what policies do, statement by statement, and plans the configuration that does it.

mod advice;
mod backends;
mod conditions;
mod credentials;
mod endpoint_lists;
mod headers;
mod limits;
mod literal_targets;
mod policy_variables;
mod retry;
mod statements;
mod targets;
mod tokens;

use std::collections::{BTreeSet, HashSet};

pub(super) use self::statements::{Fragments, fragment_key};

use self::backends::{BackendBuilder, unique_name};
use self::conditions::{ConditionClass, show, variables_in};
use self::credentials::FoundCredentials;
use self::headers::{Handled, set_header, set_query_parameter};
use self::limits::{FoundLimits, call_limits, token_limits};
use self::policy_variables::PolicyVariables;
use self::retry::read_retry;
use self::statements::{Section, Statement, Statements, collect};
use self::targets::{Targets, find_targets};
use self::tokens::{read_tokens, remove_duplicates};
use super::backends::BackendResources;
use super::plan::{Client, ClientLimits, Limits, Plan, Recorded, Value};
use super::reading::{Element, tokens};
use super::report::{Outcome, Report};
use super::source::{ImportError, shown_name};
use super::text::is_expression;
use super::variables::{VariableKind, Variables};

/// The most clients and allowed deployments that are taken from conditions.
const MAX_CLIENTS: usize = 200;

/// Plans the configuration of policies.
///
/// # Errors
/// If a limit is exceeded, or a policy has an unknown section.
pub(super) fn plan(
    policies: &[Element],
    fragments: &Fragments,
    resources: &BackendResources,
    variables: &mut Variables,
    report: &mut Report,
) -> Result<Plan, ImportError> {
    let statements = collect(policies, fragments)?;
    let policy_variables = PolicyVariables::collect(&statements);
    let targets = find_targets(&statements, &policy_variables)?;
    let mut credentials = FoundCredentials::find(&statements);
    let mut builder = BackendBuilder {
        statements: &statements,
        policy_variables: &policy_variables,
        resources,
        variables: &mut *variables,
        report: &mut *report,
    };
    let built = builder.build(&targets, &mut credentials)?;
    let mut plan = Plan { backends: built.list, breaker: built.breaker, ..Plan::default() };
    let (all_credentials, used_credentials) = credentials.statements();
    let mut recogniser = Recogniser {
        statements: &statements,
        policy_variables: &policy_variables,
        targets: &targets,
        used_credentials,
        all_credentials,
        variables,
        report,
        plan: &mut plan,
        app_ids: Vec::new(),
        roles: Vec::new(),
        allowed_deployments: BTreeSet::new(),
    };
    recogniser.run();
    Ok(plan)
}

struct Recogniser<'r, 'e> {
    statements: &'r Statements<'e>,
    policy_variables: &'r PolicyVariables<'e>,
    targets: &'r Targets,
    used_credentials: HashSet<usize>,
    all_credentials: HashSet<usize>,
    variables: &'r mut Variables,
    report: &'r mut Report,
    plan: &'r mut Plan,
    app_ids: Vec<Value>,
    roles: Vec<Value>,
    allowed_deployments: BTreeSet<String>,
}

impl<'e> Recogniser<'_, 'e> {
    fn run(&mut self) {
        let statements = self.statements;
        let mut outcomes: Vec<(Outcome, Option<String>)> = Vec::with_capacity(statements.list.len());
        for (index, statement) in statements.list.iter().enumerate() {
            outcomes.push(self.handle(index, statement));
        }
        // Statements before what they are part of: what becomes of a `choose` follows from them.
        let mut worst_inside: Vec<Option<Outcome>> = vec![None; statements.list.len()];
        let mut seen = HashSet::new();
        for (index, (statement, (outcome, note))) in statements.list.iter().zip(outcomes).enumerate().rev() {
            let inside = worst_inside.get(index).copied().flatten();
            let (outcome, note) = match statement.element.name.as_str() {
                "choose" => self.choose(statement, index, inside),
                _ => (outcome, note),
            };
            if let Some(worst) = statement.parent.and_then(|parent| worst_inside.get_mut(parent)) {
                *worst = Some(worse(*worst, outcome));
            }
            // Those of fragments come more than once.
            if seen.insert(std::ptr::from_ref(statement.element) as usize) {
                self.report.count(outcome);
            }
            if let Some(note) = note {
                let what = described(statement.element);
                self.report.note(&statement.element.place, format!("{what}: {note}"));
            }
        }
        self.add_clients();
    }

    /// What becomes of a statement other than `choose`, and what to do instead.
    fn handle(&mut self, index: usize, statement: &Statement<'e>) -> (Outcome, Option<String>) {
        let element = statement.element;
        let is_response = statement.section == Section::Response;
        let (outcome, note): Handled = match element.name.as_str() {
            "set-backend-service" if self.targets.unresolved.contains(&index) => (
                Outcome::Left,
                Some("the backend is computed in a way that is not understood; add it to backends"),
            ),
            "set-backend-service" => (Outcome::Mapped, None),
            "set-header" if is_response => (
                Outcome::Left,
                Some("headers of responses pass unchanged; aoai-lb adds x-aoai-lb-backend and others"),
            ),
            "set-header" | "authentication-managed-identity" if self.used_credentials.contains(&index) => {
                (Outcome::Mapped, None)
            }
            "set-header" | "authentication-managed-identity" if self.all_credentials.contains(&index) => {
                let same =
                    "the backends have another credential; if it belongs to one of them, write it there";
                (Outcome::Left, Some(same))
            }
            "authentication-managed-identity" => {
                (Outcome::Left, Some("this token is for another service than Azure OpenAI"))
            }
            "set-header" => set_header(element, self.plan, self.variables),
            "set-query-parameter" => set_query_parameter(element, self.plan, self.variables),
            "retry" => return self.retry(statement),
            "validate-jwt" | "validate-azure-ad-token" => return self.tokens(statement),
            "azure-openai-token-limit" | "llm-token-limit" => {
                let found = token_limits(element, self.is_of_deployments(statement), self.variables);
                return self.limits(statement, found);
            }
            "rate-limit" | "rate-limit-by-key" | "quota" | "quota-by-key" => {
                let found = call_limits(element, self.is_of_deployments(statement), self.variables);
                return self.limits(statement, found);
            }
            "set-variable" if self.policy_variables.is_list(element.attribute("name"), index) => {
                (Outcome::Mapped, None)
            }
            "set-variable" | "cache-lookup-value" | "cache-store-value" | "cache-remove-value"
                if self.is_routing_state(element) =>
            {
                (Outcome::Implied, None)
            }
            "include-fragment" if !self.statements.missing_fragments.contains(&index) => {
                (Outcome::Implied, None)
            }
            "forward-request" => {
                let timeout = element.attribute("timeout").and_then(|timeout| timeout.parse::<u64>().ok());
                if let Some(seconds) = timeout.filter(|seconds| (1..=86_400).contains(seconds)) {
                    self.plan.first_byte = Some(seconds);
                    (Outcome::Mapped, None)
                } else {
                    (Outcome::Implied, None)
                }
            }
            "log-to-eventhub" => self.record(Recorded::Content),
            "azure-openai-emit-token-metric" | "llm-emit-token-metric" => self.record(Recorded::Tokens),
            "return-response" if self.refuses_deployments(statement) => (Outcome::Mapped, None),
            name => {
                let (outcome, note) = advice::advice(name);
                (outcome, (outcome == Outcome::Left).then_some(note))
            }
        };
        (outcome, note.map(str::to_owned))
    }

    fn record(&mut self, recorded: Recorded) -> Handled {
        self.plan.recorded = self.plan.recorded.max(Some(recorded));
        (Outcome::Mapped, None)
    }

    /// Whether a statement keeps what the policy needs to choose a backend, which aoai-lb keeps itself.
    fn is_routing_state(&self, element: &Element) -> bool {
        let is_routing = |name: &str| self.policy_variables.is_for_routing(name);
        let value = element.attribute("value").unwrap_or_default();
        match element.name.as_str() {
            "set-variable" => element.attribute("name").is_some_and(is_routing),
            "cache-lookup-value" => element.attribute("variable-name").is_some_and(is_routing),
            _ => {
                element
                    .attribute("key")
                    .is_some_and(|key| self.policy_variables.is_cache_key_for_routing(key))
                    || (is_expression(value) && variables_in(&tokens(value)).any(is_routing))
            }
        }
    }

    fn retry(&mut self, statement: &Statement<'e>) -> (Outcome, Option<String>) {
        if self.plan.retry.is_some() {
            return (Outcome::Left, Some("aoai-lb has one retry, here the first of the policies".to_owned()));
        }
        self.plan.retry = Some(read_retry(statement.element));
        (Outcome::Mapped, None)
    }

    fn choose(
        &mut self,
        statement: &Statement<'e>,
        index: usize,
        inside: Option<Outcome>,
    ) -> (Outcome, Option<String>) {
        let class = self
            .statements
            .scopes
            .iter()
            .find(|scope| scope.choose == Some(index))
            .map(|s| &s.condition.class);
        let is_understood = !matches!(class, None | Some(ConditionClass::Unknown));
        match inside {
            None => (Outcome::Implied, None),
            Some(Outcome::Implied) => (Outcome::Implied, None),
            Some(Outcome::Mapped) if is_understood => (Outcome::Mapped, None),
            Some(_) if statement.section == Section::Response => {
                (Outcome::Left, Some("responses pass unchanged".to_owned()))
            }
            Some(Outcome::Mapped) => {
                (Outcome::Left, Some("the condition is not kept; what it decides applies always".to_owned()))
            }
            Some(Outcome::Left) => (Outcome::Left, Some(advice::advice("choose").1.to_owned())),
        }
    }

    fn tokens(&mut self, statement: &Statement<'e>) -> (Outcome, Option<String>) {
        let Some(found) = read_tokens(statement.element, self.variables) else {
            let hint = "aoai-lb accepts tokens of Entra ID only; give such clients keys, or certificates";
            return (Outcome::Left, Some(hint.to_owned()));
        };
        match &mut self.plan.tokens {
            None => self.plan.tokens = Some(found.tokens),
            Some(first) if first.tenant == found.tokens.tenant => {
                first.audiences.extend(found.tokens.audiences);
                first.issuers.extend(found.tokens.issuers);
                first.comments.extend(found.tokens.comments);
                remove_duplicates(&mut first.audiences);
                remove_duplicates(&mut first.issuers);
            }
            Some(_) => {
                return (Outcome::Left, Some("aoai-lb accepts the tokens of one tenant".to_owned()));
            }
        }
        self.app_ids.extend(found.app_ids);
        self.roles.extend(found.roles);
        (Outcome::Mapped, None)
    }

    fn limits(&mut self, statement: &Statement<'e>, found: FoundLimits) -> (Outcome, Option<String>) {
        let (limits, comments) = match found {
            FoundLimits::Limits(limits, comments) => (limits, comments),
            FoundLimits::None(reason) => return (Outcome::Left, Some(reason)),
        };
        let conditions: Vec<_> = self
            .statements
            .scope_chain(statement.scope)
            .filter_map(|scope| self.statements.condition(scope))
            .collect();
        if conditions.iter().any(|condition| condition.class == ConditionClass::OtherDeployments) {
            let hint = "a limit for all other deployments has no counterpart; name them in limits.default.deployments";
            return (Outcome::Left, Some(hint.to_owned()));
        }
        let clients = conditions.iter().find_map(|condition| match &condition.class {
            ConditionClass::Clients(names) => Some(names),
            _ => None,
        });
        let deployments = conditions.iter().find_map(|condition| match &condition.class {
            ConditionClass::Deployments(names) => Some(names.as_slice()),
            _ => None,
        });
        let deployments = deployments.unwrap_or_default();
        let is_kept = |class: &ConditionClass| {
            matches!(class, ConditionClass::Clients(_) | ConditionClass::Deployments(_))
        };
        if let Some(condition) = conditions.iter().find(|condition| !is_kept(&condition.class)) {
            self.plan.limit_comments.push(format!(
                "{}: in the policy only under a condition: {}",
                statement.element.place,
                condition.shown()
            ));
        }
        self.plan.limit_comments.extend(comments);
        match clients {
            Some(names) => {
                for name in names {
                    self.limit_client(name, deployments, &limits, statement);
                }
            }
            None => add_limits(&mut self.plan.default_limits, deployments, &limits),
        }
        (Outcome::Mapped, None)
    }

    /// Whether a condition around a statement names deployments.
    fn is_of_deployments(&self, statement: &Statement<'e>) -> bool {
        let scopes = self.statements.scope_chain(statement.scope);
        scopes.filter_map(|scope| self.statements.condition(scope)).any(|condition| {
            matches!(condition.class, ConditionClass::Deployments(_) | ConditionClass::OtherDeployments)
        })
    }

    /// Adds limits of the client for a subscription.
    fn limit_client(
        &mut self,
        subscription: &str,
        deployments: &[String],
        limits: &Limits,
        statement: &Statement<'e>,
    ) {
        let wish = super::text::entry_name(&shown_name(subscription));
        let position = self.plan.clients.iter().position(|client| client.name.eq_ignore_ascii_case(&wish));
        let position = match position {
            Some(position) => position,
            None if self.plan.clients.len() >= MAX_CLIENTS => return,
            None => {
                let comment = format!("{}: a subscription in a condition", statement.element.place);
                let client = self.client_with_key(wish, vec![comment]);
                self.plan.clients.push(client);
                self.plan.clients.len() - 1
            }
        };
        if let Some(client) = self.plan.clients.get_mut(position) {
            add_limits(&mut client.limits, deployments, limits);
        }
    }

    fn client_with_key(&mut self, name: String, comments: Vec<String>) -> Client {
        let purpose = format!("the SHA-256 of the key of {name}");
        let variable = self.variables.add(&format!("{name}_SHA256"), VariableKind::KeyHash, purpose);
        Client {
            name,
            key_hash: Some(Value::variable(variable)),
            app_ids: Vec::new(),
            roles: Vec::new(),
            deployments: BTreeSet::new(),
            limits: ClientLimits::default(),
            comments,
        }
    }

    /// Whether a refusal stands under a condition on deployments, which then are those that clients may use.
    fn refuses_deployments(&mut self, statement: &Statement<'e>) -> bool {
        let condition = self.statements.condition(statement.scope);
        let Some(ConditionClass::NotDeployments(names)) = condition.map(|condition| &condition.class) else {
            return false;
        };
        for name in names.iter().take(MAX_CLIENTS) {
            let lower = name.to_ascii_lowercase();
            if !self.allowed_deployments.iter().any(|known| known.to_ascii_lowercase() == lower) {
                self.allowed_deployments.insert(name.clone());
            }
        }
        true
    }

    /// Adds the clients that the policies do not name: any that has a token or a subscription.
    fn add_clients(&mut self) {
        let mut names: HashSet<String> =
            self.plan.clients.iter().map(|client| client.name.to_ascii_lowercase()).collect();
        if self.plan.tokens.is_some() {
            remove_duplicates(&mut self.app_ids);
            remove_duplicates(&mut self.roles);
            let mut comments = Vec::new();
            if self.app_ids.is_empty() && self.roles.is_empty() {
                comments.push(
                    "The policy accepts every application with a token for the audience. aoai-lb lists them: add the \
                     application ids, or app roles, of each client."
                        .to_owned(),
                );
                let purpose = "the application id of a client".to_owned();
                self.app_ids.push(Value::variable(self.variables.add(
                    "APPLICATION_ID",
                    VariableKind::Id,
                    purpose,
                )));
            }
            let client = Client {
                name: unique_name("applications", &mut names),
                key_hash: None,
                app_ids: std::mem::take(&mut self.app_ids),
                roles: std::mem::take(&mut self.roles),
                deployments: BTreeSet::new(),
                limits: ClientLimits::default(),
                comments,
            };
            self.plan.clients.push(client);
        }
        let has_limits_for_others = !self.plan.default_limits.is_empty();
        let has_others = self.plan.clients.iter().any(|client| client.limits.is_empty());
        if self.plan.clients.is_empty() || (has_limits_for_others && !has_others) {
            let name = unique_name("subscription-1", &mut names);
            let comments = vec![
                "One client for each subscription. To keep an existing key, compute its hash: printf %s \"KEY\" | sha256sum"
                    .to_owned(),
            ];
            let client = self.client_with_key(name, comments);
            self.plan.clients.push(client);
        }
        for client in &mut self.plan.clients {
            client.deployments.clone_from(&self.allowed_deployments);
        }
    }
}

/// A statement for a comment: its name and what it is about.
fn described(element: &Element) -> String {
    let about = ["name", "variable-name", "fragment-id", "backend-id", "id"]
        .iter()
        .find_map(|name| element.attribute(name))
        .filter(|value| !is_expression(value))
        .map(shown_name);
    let mut text = shown_name(&element.name);
    if let Some(about) = about {
        text += &format!(" {about}");
    }
    if element.name == "choose" {
        let when = element.children_named("when").next().and_then(|when| when.attribute("condition"));
        text += &format!(" {}", show(&tokens(when.unwrap_or_default())));
    }
    text
}

fn worse(first: Option<Outcome>, second: Outcome) -> Outcome {
    let rank = |outcome: Outcome| match outcome {
        Outcome::Implied => 0,
        Outcome::Mapped => 1,
        Outcome::Left => 2,
    };
    first.filter(|first| rank(*first) > rank(second)).unwrap_or(second)
}

/// Adds limits: those of these deployments, or those of all together if there are none.
fn add_limits(known: &mut ClientLimits, deployments: &[String], more: &Limits) {
    if deployments.is_empty() {
        keep_lower(&mut known.all, more);
    }
    for name in deployments {
        let key = name.to_ascii_lowercase();
        if known.of_deployments.len() < MAX_CLIENTS || known.of_deployments.contains_key(&key) {
            let (_, limits) =
                known.of_deployments.entry(key).or_insert_with(|| (name.clone(), Limits::new()));
            keep_lower(limits, more);
        }
    }
}

/// Adds limits; of two for the same key, the lower one, if both are numbers.
fn keep_lower(limits: &mut Limits, more: &Limits) {
    let number = |value: &Value| value.as_literal().and_then(|text| text.parse::<u64>().ok());
    for (key, value) in more {
        let is_lower = limits.get(key).is_none_or(|known| match (number(known), number(value)) {
            (Some(known), Some(value)) => value < known,
            _ => true,
        });
        if is_lower {
            limits.insert(*key, value.clone());
        }
    }
}
