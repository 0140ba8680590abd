//! Where policies send requests: the backends that `set-backend-service` names, directly, by variables or by lists.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::conditions::{ConditionClass, variables_in};
use super::endpoint_lists::ListedEndpoint;
use super::literal_targets::{LiteralTargets, is_state, is_url};
use super::policy_variables::PolicyVariables;
use super::statements::Statements;
use crate::import_apim::reading::tokens;
use crate::import_apim::source::{ImportError, Place};
use crate::import_apim::text::{as_named_value, is_expression};

/// The most backends.
pub(in crate::import_apim) const MAX_BACKENDS: usize = 500;
/// How many variables are followed from one to the next.
const MAX_STEPS: usize = 4;

/// What a policy names as backend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::import_apim) enum TargetSource {
    /// A backend or pool of API Management.
    Id(String),
    Url(String),
}

/// A backend that policies name.
pub(in crate::import_apim) struct Target {
    pub(in crate::import_apim) source: TargetSource,
    pub(in crate::import_apim) place: Place,
    /// The scopes in which it is named.
    pub(in crate::import_apim) scopes: BTreeSet<usize>,
    pub(in crate::import_apim) tier: u64,
    pub(in crate::import_apim) weight: u64,
    /// As written in a list.
    pub(in crate::import_apim) api_key: Option<String>,
    /// All if empty.
    pub(in crate::import_apim) deployments: BTreeSet<String>,
    /// It serves what no other backend lists.
    pub(in crate::import_apim) is_for_others: bool,
    /// It stands in a list, and the policy sends nothing to it.
    pub(in crate::import_apim) is_unused: bool,
    /// It stands for a list of backends that is not in the policies.
    pub(in crate::import_apim) is_list: bool,
}

/// All targets.
#[derive(Default)]
pub(in crate::import_apim) struct Targets {
    pub(in crate::import_apim) list: Vec<Target>,
    /// The `set-backend-service` statements whose backend is computed in a way that is not understood.
    pub(in crate::import_apim) unresolved: BTreeSet<usize>,
    index: BTreeMap<(TargetSource, bool), usize>,
    /// How many branches of a `choose` lead to a target.
    turns: HashMap<(usize, usize), u64>,
}

/// Finds the targets of all statements.
///
/// # Errors
/// If there are too many.
pub(in crate::import_apim) fn find_targets(
    statements: &Statements<'_>,
    variables: &PolicyVariables<'_>,
) -> Result<Targets, ImportError> {
    let mut targets = Targets::default();
    let has_list = targets.add_lists(statements, variables)?;
    for (index, statement) in statements.list.iter().enumerate() {
        let element = statement.element;
        if element.name != "set-backend-service" {
            continue;
        }
        let (written, is_id) = match (element.attribute("backend-id"), element.attribute("base-url")) {
            (Some(id), _) => (id, true),
            (None, Some(url)) => (url, false),
            (None, None) => {
                targets.unresolved.insert(index);
                continue;
            }
        };
        let found = resolve(written, is_id, statement.scope, variables);
        if found.is_empty() && !(has_list && is_expression(written)) {
            targets.unresolved.insert(index);
        }
        for found in found {
            targets.add(found, &element.place, statements)?;
        }
    }
    // A backend without a condition serves everything.
    for target in &mut targets.list {
        let is_everywhere = target.scopes.iter().any(|scope| {
            !statements.scope_chain(*scope).filter_map(|scope| statements.condition(scope)).any(|condition| {
                matches!(condition.class, ConditionClass::Deployments(_) | ConditionClass::OtherDeployments)
            })
        });
        if is_everywhere && !target.scopes.is_empty() {
            target.deployments.clear();
        }
    }
    Ok(targets)
}

impl Targets {
    /// Adds the endpoints of all lists. Returns whether there is one.
    fn add_lists(
        &mut self,
        statements: &Statements<'_>,
        variables: &PolicyVariables<'_>,
    ) -> Result<bool, ImportError> {
        let mut found: Vec<(&ListedEndpoint, usize, &Place)> = Vec::new();
        for assignment in variables.all_assignments() {
            let Some(statement) = statements.list.get(assignment.statement) else { continue };
            let place = &statement.element.place;
            found.extend(assignment.listed.iter().map(|endpoint| (endpoint, assignment.scope, place)));
        }
        // Tiers begin with 1.
        let shift = u64::from(found.iter().any(|(endpoint, ..)| endpoint.priority == Some(0)));
        for (endpoint, scope, place) in &found {
            let source = match (&endpoint.backend_id, &endpoint.url) {
                (Some(id), _) => TargetSource::Id(id.clone()),
                (None, Some(url)) => TargetSource::Url(url.clone()),
                (None, None) => continue,
            };
            let around = deployments_around(statements, *scope);
            let is_for_others = endpoint.deployments.is_empty() && around.is_for_others;
            let index = self.position(source, is_for_others, place)?;
            if let Some(target) = self.list.get_mut(index) {
                if endpoint.deployments.is_empty() && target.scopes.insert(*scope) {
                    target.deployments.extend(around.names.iter().flat_map(|names| names.iter().cloned()));
                }
                target.tier = (endpoint.priority.unwrap_or(1).saturating_add(shift)).max(1);
                target.weight = endpoint.weight.unwrap_or(1);
                target.api_key.clone_from(&endpoint.api_key);
                target.is_unused = endpoint.is_in_no_cluster;
                target.deployments.extend(endpoint.deployments.iter().cloned());
            }
        }
        Ok(!found.is_empty())
    }

    /// The index of a target, which is added if it is new.
    fn position(
        &mut self,
        source: TargetSource,
        is_for_others: bool,
        place: &Place,
    ) -> Result<usize, ImportError> {
        if let Some(index) = self.index.get(&(source.clone(), is_for_others)) {
            return Ok(*index);
        }
        if self.list.len() == MAX_BACKENDS {
            return Err(ImportError::new(
                place.clone(),
                format!("there are more than {MAX_BACKENDS} backends"),
            ));
        }
        self.index.insert((source.clone(), is_for_others), self.list.len());
        self.list.push(Target {
            source,
            place: place.clone(),
            scopes: BTreeSet::new(),
            tier: 0,
            weight: 1,
            api_key: None,
            deployments: BTreeSet::new(),
            is_for_others,
            is_unused: false,
            is_list: false,
        });
        Ok(self.list.len() - 1)
    }

    fn add(
        &mut self,
        Found { source, scope, is_list }: Found,
        place: &Place,
        statements: &Statements<'_>,
    ) -> Result<(), ImportError> {
        let DeploymentsAround { names: deployments, is_for_others } = deployments_around(statements, scope);
        let mut is_after_failure = false;
        let mut turn = None;
        for around in statements.scope_chain(scope) {
            let Some(condition) = statements.condition(around) else { continue };
            match &condition.class {
                ConditionClass::Status => is_after_failure = true,
                ConditionClass::Turn => turn = turn.or(statements.scopes.get(around).and_then(|s| s.choose)),
                _ => {}
            }
        }
        let index = self.position(source, is_for_others, place)?;
        if let Some(choose) = turn {
            *self.turns.entry((choose, index)).or_default() += 1;
        }
        let turns = turn.and_then(|choose| self.turns.get(&(choose, index))).copied().unwrap_or(1);
        let Some(target) = self.list.get_mut(index) else { return Ok(()) };
        // Those after a failure, and those for other deployments, are the second choice.
        let tier = if is_after_failure || is_for_others { 2 } else { 1 };
        target.tier = if target.tier == 0 { tier } else { target.tier.min(tier) };
        target.weight = target.weight.max(turns);
        target.deployments.extend(deployments.into_iter().flatten().cloned());
        target.scopes.insert(scope);
        target.is_list |= is_list;
        Ok(())
    }
}

/// What the conditions around a statement say of deployments.
struct DeploymentsAround<'s> {
    /// Those of the innermost condition that names some.
    names: Option<&'s [String]>,
    is_for_others: bool,
}

fn deployments_around<'s>(statements: &'s Statements<'_>, scope: usize) -> DeploymentsAround<'s> {
    let mut around = DeploymentsAround { names: None, is_for_others: false };
    for condition in statements.scope_chain(scope).filter_map(|scope| statements.condition(scope)) {
        match &condition.class {
            ConditionClass::Deployments(names) => around.names = around.names.or(Some(names)),
            ConditionClass::OtherDeployments => around.is_for_others = true,
            _ => {}
        }
    }
    around
}

/// A backend, and the scope in which it is named.
struct Found {
    source: TargetSource,
    scope: usize,
    is_list: bool,
}

/// The backends that a text or an expression stands for.
fn resolve(written: &str, is_id: bool, scope: usize, variables: &PolicyVariables<'_>) -> Vec<Found> {
    let found_in = |text: &str, scope: usize| {
        let source =
            if is_id { TargetSource::Id(text.to_owned()) } else { TargetSource::Url(text.to_owned()) };
        Found { source, scope, is_list: false }
    };
    if !is_expression(written) {
        return if written.is_empty() { Vec::new() } else { vec![found_in(written, scope)] };
    }
    let words = tokens(written);
    let literals = LiteralTargets::of(&words);
    let direct = literals.of_kind(is_id);
    if !direct.is_empty() {
        return direct.iter().map(|text| found_in(text, scope)).collect();
    }
    let mut found = Vec::new();
    // With whether what is made of it was read from a text with several.
    let mut open: BTreeSet<(&str, bool)> = variables_in(&words).map(|name| (name, false)).collect();
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for _ in 0..MAX_STEPS {
        let mut next = BTreeSet::new();
        for (name, is_parsed) in open.into_iter().filter(|(name, _)| seen.insert(name)) {
            for assignment in variables.assignments_to(name) {
                if found.len() >= MAX_BACKENDS {
                    return found;
                }
                let literals = assignment.literals.of_kind(is_id);
                if !assignment.listed.is_empty() || variables.reads_list(assignment) {
                    // The backends are those of the list; other texts are states and errors.
                    continue;
                }
                if !is_expression(assignment.value) {
                    let value = assignment.value;
                    let is_target = if is_id { !is_state(value) } else { is_url(value) };
                    if is_target {
                        let is_list = is_parsed && as_named_value(value).is_some();
                        found.push(Found { is_list, ..found_in(value, assignment.scope) });
                    }
                } else if !literals.is_empty() {
                    found.extend(literals.iter().map(|text| found_in(text, assignment.scope)));
                } else {
                    let is_parsed = is_parsed || assignment.is_parsed;
                    next.extend(assignment.references.iter().map(|name| (name.as_str(), is_parsed)));
                }
            }
        }
        open = next;
    }
    found
}
