//! Builds the backends from what policies name and from the resources of API Management.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::conditions::ConditionClass;
use super::credentials::{FoundCredentials, api_key, identity};
use super::policy_variables::PolicyVariables;
use super::statements::Statements;
use super::targets::{MAX_BACKENDS, Target, TargetSource, Targets};
use crate::import_apim::backends::{BackendKind, BackendResources, SingleBackend};
use crate::import_apim::plan::{Backend, Breaker, Credential, Value};
use crate::import_apim::report::{Outcome, Report};
use crate::import_apim::source::{ImportError, Place};
use crate::import_apim::text::{as_named_value, endpoint, entry_name};
use crate::import_apim::variables::{VariableKind, Variables};

/// The largest weight, and the largest sum of a tier.
const MAX_WEIGHT: u64 = 1000;
const MAX_WEIGHTS_OF_TIER: u64 = 10_000;

/// A backend that is going to be built.
struct Draft<'d> {
    /// The backend in API Management, or the first part of its host.
    id: String,
    /// The name that it should have.
    wish: String,
    /// As written; `None` if only a name is known.
    url: Option<&'d str>,
    single: Option<&'d SingleBackend>,
    target: Option<&'d Target>,
    place: &'d Place,
    tier: u64,
    weight: u64,
    deployments: BTreeSet<String>,
    /// It is used under a condition that is not understood.
    is_conditional: bool,
    comments: Vec<String>,
}

/// What backends are built with.
pub(super) struct BackendBuilder<'b, 'e> {
    pub(super) statements: &'b Statements<'e>,
    pub(super) policy_variables: &'b PolicyVariables<'e>,
    pub(super) resources: &'b BackendResources,
    pub(super) variables: &'b mut Variables,
    pub(super) report: &'b mut Report,
}

/// The backends, and the circuit breaker of the first that has one.
pub(super) struct BuiltBackends {
    pub(super) list: Vec<Backend>,
    pub(super) breaker: Option<Breaker>,
}

impl<'b> BackendBuilder<'b, '_> {
    /// Builds all backends; at least one.
    ///
    /// # Errors
    /// If there are too many.
    pub(super) fn build(
        &mut self,
        targets: &'b Targets,
        credentials: &mut FoundCredentials,
    ) -> Result<BuiltBackends, ImportError> {
        let mut used = HashSet::new();
        let mut drafts = Vec::new();
        for target in &targets.list {
            self.add_drafts(target, &mut drafts, &mut used)?;
        }
        if drafts.is_empty() {
            self.add_all_resources(&mut drafts, &mut used)?;
        }
        for (key, resource) in &self.resources.0 {
            let is_used = used.contains(key);
            self.report.count(if is_used { Outcome::Mapped } else { Outcome::Left });
            if resource.is_loop {
                self.report.note(
                    &resource.place,
                    "a loop of the template makes these backends; give them as they are deployed, as the REST API or az \
                     prints them",
                );
            } else if !is_used {
                self.report.note(&resource.place, "no policy that was given uses this backend or pool");
            }
        }
        let mut breaker: Option<Breaker> = None;
        let (mut names, mut list) = (HashSet::new(), Vec::new());
        for draft in merge(drafts) {
            if let Some(found) = draft.single.and_then(|single| single.breaker.as_ref()) {
                if breaker.as_ref().is_some_and(|first| first != found) {
                    self.report.note(
                        draft.place,
                        "this circuit breaker is another than the first; aoai-lb has one for all backends (breaker and \
                         cooldown)",
                    );
                }
                breaker.get_or_insert_with(|| found.clone());
            }
            list.push(self.finish(draft, credentials, &mut names));
        }
        if list.is_empty() {
            list.push(self.unnamed_backend(credentials));
        }
        enable_some(&mut list);
        limit_weights(&mut list);
        Ok(BuiltBackends { list, breaker })
    }

    /// Adds the backend of a target, or the members of its pool.
    fn add_drafts(
        &mut self,
        target: &'b Target,
        drafts: &mut Vec<Draft<'b>>,
        used: &mut HashSet<String>,
    ) -> Result<(), ImportError> {
        let mut comments = Vec::new();
        let mut unknown = target.scopes.iter().map(|scope| self.statements.unknown_condition(*scope));
        let is_conditional =
            !target.scopes.is_empty() && unknown.clone().all(|condition| condition.is_some());
        if let Some(condition) = unknown.find_map(|condition| condition) {
            comments.push(format!("{}: only under a condition: {}", target.place, condition.shown()));
        }
        let mut turns = target.scopes.iter().flat_map(|scope| self.statements.scope_chain(*scope));
        if turns.any(|scope| {
            let condition = self.statements.condition(scope);
            condition.is_some_and(|condition| condition.class == ConditionClass::Turn && condition.has_range)
        }) {
            comments.push(
                "The policy gives it a share by a range of numbers: write that share as its weight."
                    .to_owned(),
            );
        }
        if target.is_for_others {
            comments.push(
                "For deployments that no other backend lists: of those that tier 1 lists, tier 2 is only used if tier 1 is \
                 unavailable."
                    .to_owned(),
            );
        }
        if target.is_unused {
            comments.push("No cluster of the policy has this endpoint.".to_owned());
        }
        let is_conditional = is_conditional || target.is_unused;
        let draft = |wish: &str| Draft {
            id: wish.to_owned(),
            wish: if target.is_for_others { format!("{wish}-others") } else { wish.to_owned() },
            url: None,
            single: None,
            target: Some(target),
            place: &target.place,
            tier: target.tier,
            weight: target.weight,
            deployments: target.deployments.clone(),
            is_conditional,
            comments: comments.clone(),
        };
        match &target.source {
            TargetSource::Url(url) => {
                drafts.push(Draft { url: Some(url), ..draft(&name_of_url(url)) });
            }
            TargetSource::Id(id) => {
                let resources = self.resources;
                let Some(resource) = resources.get(id).filter(|_| !target.is_list) else {
                    drafts.push(draft(id));
                    return Ok(());
                };
                used.insert(resource.name.to_ascii_lowercase());
                match &resource.kind {
                    BackendKind::Single(single) => {
                        drafts.push(Draft { url: Some(&single.url), single: Some(single), ..draft(id) });
                    }
                    BackendKind::Pool { members, has_session_affinity } => {
                        if *has_session_affinity {
                            self.report.note(
                                &resource.place,
                                "session affinity needs no cookie: aoai-lb sends a request to the resource that has what \
                                 it refers to (docs/affinity.md)",
                            );
                        }
                        if members.is_empty() {
                            drafts.push(draft(id));
                        }
                        let shift = u64::from(members.iter().any(|member| member.priority == Some(0)));
                        for member in members {
                            if drafts.len() == MAX_BACKENDS {
                                let problem = format!("there are more than {MAX_BACKENDS} backends");
                                return Err(ImportError::new(resource.place.clone(), problem));
                            }
                            let tier = member.priority.unwrap_or(1).saturating_add(shift).max(1);
                            let member_draft = Draft {
                                tier: tier.saturating_add(target.tier.max(1) - 1),
                                weight: member.weight.unwrap_or(1),
                                ..draft(&member.name)
                            };
                            drafts.push(match resources.get(&member.name) {
                                Some(found) => {
                                    used.insert(found.name.to_ascii_lowercase());
                                    match &found.kind {
                                        BackendKind::Single(single) => Draft {
                                            url: Some(&single.url),
                                            single: Some(single),
                                            place: &found.place,
                                            ..member_draft
                                        },
                                        BackendKind::Pool { .. } => member_draft,
                                    }
                                }
                                None => member_draft,
                            });
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// If policies name no backend, everything that was given is used: pools with their members, then single ones.
    fn add_all_resources(
        &mut self,
        drafts: &mut Vec<Draft<'b>>,
        used: &mut HashSet<String>,
    ) -> Result<(), ImportError> {
        let resources = self.resources;
        let mut tiers: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for (key, resource) in &resources.0 {
            let BackendKind::Pool { members, .. } = &resource.kind else { continue };
            used.insert(key.clone());
            let shift = u64::from(members.iter().any(|member| member.priority == Some(0)));
            for member in members {
                let tier = member.priority.unwrap_or(1).saturating_add(shift).max(1);
                tiers.insert(member.name.to_ascii_lowercase(), (tier, member.weight.unwrap_or(1)));
            }
        }
        for (key, resource) in &resources.0 {
            let BackendKind::Single(single) = &resource.kind else { continue };
            if drafts.len() == MAX_BACKENDS {
                let problem = format!("there are more than {MAX_BACKENDS} backends");
                return Err(ImportError::new(resource.place.clone(), problem));
            }
            used.insert(key.clone());
            let (tier, weight) = tiers.get(key).copied().unwrap_or((1, 1));
            drafts.push(Draft {
                id: resource.name.clone(),
                wish: resource.name.clone(),
                url: Some(&single.url),
                single: Some(single),
                target: None,
                place: &resource.place,
                tier,
                weight,
                deployments: BTreeSet::new(),
                is_conditional: false,
                comments: Vec::new(),
            });
        }
        Ok(())
    }

    fn finish(
        &mut self,
        draft: Draft<'_>,
        credentials: &mut FoundCredentials,
        names: &mut HashSet<String>,
    ) -> Backend {
        let name = unique_name(&draft.wish, names);
        let mut comments = draft.comments;
        let (endpoint, more) = match draft.url {
            Some(url) => endpoint(url, &name, self.variables),
            None => {
                let variable = self.variables.endpoint(&draft.id, &name);
                let how = if draft.target.is_some_and(|target| target.is_list) {
                    "the policy reads a list of backends from this named value: add a backend for each of them, with its \
                     priority as tier, and its weight."
                } else {
                    "the policy names this backend by its id; its URL is in API Management under Backends, or comes with \
                     --backends."
                };
                let comment = format!("{}: {how}", draft.place);
                (Value::variable(variable), vec![comment])
            }
        };
        comments.extend(more);
        if let Some(single) = draft.single {
            for note in &single.notes {
                self.report.note(draft.place, *note);
            }
        }
        let (credential, more) = self.credential(draft.single, draft.target, &name, credentials);
        comments.extend(more);
        let (tier, weight) = (draft.tier.clamp(1, u64::from(u16::MAX)), draft.weight.clamp(1, MAX_WEIGHT));
        if weight != draft.weight {
            comments.push("The weight in the policy or template is outside of 1 to 1000.".to_owned());
        }
        Backend {
            name,
            endpoint,
            tier: u16::try_from(tier).unwrap_or(u16::MAX),
            weight: u16::try_from(weight).unwrap_or(1),
            credential,
            deployments: draft.deployments,
            enabled: !draft.is_conditional,
            comments,
        }
    }

    /// The credential of a backend: its own, that of a list, that of the policy, or a variable.
    fn credential(
        &mut self,
        single: Option<&SingleBackend>,
        target: Option<&Target>,
        name: &str,
        credentials: &mut FoundCredentials,
    ) -> (Credential, Vec<String>) {
        if let Some(client_id) = single.and_then(|single| single.managed_identity.as_ref()) {
            return identity(client_id.as_deref(), None, name, self.variables);
        }
        let own_key = single.and_then(|single| single.api_key.as_deref());
        if let Some(key) = own_key.or_else(|| target.and_then(|target| target.api_key.as_deref())) {
            return api_key(key, name, self.variables);
        }
        let nowhere = BTreeSet::new();
        let scopes = target.map_or(&nowhere, |target| &target.scopes);
        let found =
            credentials.for_backend(scopes, name, self.statements, self.policy_variables, self.variables);
        found.unwrap_or_else(|| {
            let purpose = format!("the key of {name}");
            let variable = self.variables.add(&format!("{name}_KEY"), VariableKind::Secret, purpose);
            let comment = "The policy sets no credential for this backend.".to_owned();
            (Credential::ApiKey(Value::variable(variable)), vec![comment])
        })
    }

    /// The one backend if nothing names one.
    fn unnamed_backend(&mut self, credentials: &mut FoundCredentials) -> Backend {
        let name = "backend-1".to_owned();
        let purpose = "the endpoint of backend-1".to_owned();
        let variable = self.variables.add("BACKEND_1_ENDPOINT", VariableKind::Url, purpose);
        let (credential, more) = self.credential(None, None, &name, credentials);
        let mut comments = vec![
            "The policies name no backend: API Management sends requests to the service URL in the settings of the API. Add \
             a backend for each resource."
                .to_owned(),
        ];
        comments.extend(more);
        Backend {
            name,
            endpoint: Value::variable(variable),
            tier: 1,
            weight: 1,
            credential,
            deployments: BTreeSet::new(),
            enabled: true,
            comments,
        }
    }
}

/// Joins drafts of the same backend, which several pools and lists may have.
fn merge(drafts: Vec<Draft<'_>>) -> Vec<Draft<'_>> {
    let mut positions: BTreeMap<(String, Option<&str>), usize> = BTreeMap::new();
    let mut merged: Vec<Draft<'_>> = Vec::new();
    for draft in drafts {
        let key = (draft.wish.to_ascii_lowercase(), draft.url);
        match positions.get(&key).and_then(|position| merged.get_mut(*position)) {
            Some(first) => {
                first.tier = first.tier.min(draft.tier);
                first.weight = first.weight.max(draft.weight);
                first.is_conditional &= draft.is_conditional;
                if first.deployments.is_empty() || draft.deployments.is_empty() {
                    first.deployments.clear();
                } else {
                    first.deployments.extend(draft.deployments);
                }
            }
            None => {
                positions.insert(key, merged.len());
                merged.push(draft);
            }
        }
    }
    merged
}

/// A name for a backend with this URL: the first label of its host, or its named value.
fn name_of_url(url: &str) -> String {
    let after_scheme = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = after_scheme.split(['/', '?', '#']).next().unwrap_or_default();
    // What could be a password is not part of a name.
    let host = authority.rsplit('@').next().unwrap_or_default();
    match as_named_value(host) {
        Some(name) => name.to_owned(),
        None if host.parse::<std::net::Ipv4Addr>().is_ok() => host.to_owned(),
        None => host.split(['.', ':']).next().unwrap_or_default().replace(['{', '}'], ""),
    }
}

pub(super) fn unique_name(wish: &str, names: &mut HashSet<String>) -> String {
    let base = entry_name(wish);
    let candidates = std::iter::once(base.clone()).chain((2..).map(|number| format!("{base}-{number}")));
    candidates.into_iter().find(|name| names.insert(name.to_ascii_lowercase())).unwrap_or(base)
}

/// Enables all backends if otherwise none would be.
fn enable_some(backends: &mut [Backend]) {
    let has_enabled = backends.iter().any(|backend| backend.enabled);
    for backend in backends.iter_mut().filter(|backend| !backend.enabled) {
        if has_enabled {
            backend.comments.push("Not enabled: decide what it is used for.".to_owned());
        } else {
            backend.enabled = true;
        }
    }
}

/// Gives every backend of a tier the weight 1 if their weights are more than aoai-lb supports.
fn limit_weights(backends: &mut [Backend]) {
    let mut sums: BTreeMap<u16, u64> = BTreeMap::new();
    for backend in &*backends {
        *sums.entry(backend.tier).or_default() += u64::from(backend.weight);
    }
    for backend in backends {
        if sums.get(&backend.tier).is_some_and(|sum| *sum > MAX_WEIGHTS_OF_TIER) {
            backend.weight = 1;
            backend
                .comments
                .push("The weights of this tier add up to more than 10000; all are 1.".to_owned());
        }
    }
}
