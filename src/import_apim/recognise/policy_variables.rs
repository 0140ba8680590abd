//! The variables of policies: what is assigned to each, and which of them serve to choose a backend.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::conditions::variables_in;
use super::endpoint_lists::{ListedEndpoint, json_endpoints, listed_endpoints};
use super::literal_targets::LiteralTargets;
use super::statements::Statements;
use crate::import_apim::reading::{Token, tokens};
use crate::import_apim::text::is_expression;

/// The most references of an assignment that are followed.
const MAX_REFERENCES: usize = 64;

/// A value that a statement assigns to a variable. What is asked of it often is found once, since it may be long.
pub(in crate::import_apim) struct Assignment<'e> {
    pub(in crate::import_apim) value: &'e str,
    pub(in crate::import_apim) scope: usize,
    pub(in crate::import_apim) statement: usize,
    /// The variables that the value is made of.
    pub(in crate::import_apim) references: Vec<String>,
    /// The backends that an expression names.
    pub(in crate::import_apim) literals: LiteralTargets,
    /// The endpoints that the value lists.
    pub(in crate::import_apim) listed: Vec<ListedEndpoint>,
    /// The value is read from a text in which there are several.
    pub(in crate::import_apim) is_parsed: bool,
}

impl<'e> Assignment<'e> {
    fn new(value: &'e str, scope: usize, statement: usize) -> Self {
        let mut assignment = Self {
            value,
            scope,
            statement,
            references: Vec::new(),
            literals: LiteralTargets::default(),
            listed: Vec::new(),
            is_parsed: false,
        };
        if is_expression(value) {
            let words = tokens(value);
            let names: BTreeSet<&str> = variables_in(&words).collect();
            assignment.references = names.into_iter().take(MAX_REFERENCES).map(str::to_owned).collect();
            assignment.literals = LiteralTargets::of(&words);
            assignment.listed = listed_endpoints(&words);
            assignment.is_parsed = words
                .windows(3)
                .any(|w| w[0].is_word("JArray") && w[1] == Token::Symbol('.') && w[2].is_word("Parse"))
                || words.iter().any(|word| word.is_word("Split"));
        } else {
            assignment.listed = json_endpoints(value);
        }
        assignment
    }
}

/// All variables of the policies.
pub(in crate::import_apim) struct PolicyVariables<'e> {
    assignments: HashMap<&'e str, Vec<Assignment<'e>>>,
    /// Those that are lists of endpoints, or are made of such a list.
    lists: HashSet<String>,
    /// Those that serve to choose a backend.
    routing: HashSet<String>,
    /// The keys of what is cached of them.
    routing_cache_keys: HashSet<&'e str>,
}

impl<'e> PolicyVariables<'e> {
    pub(in crate::import_apim) fn collect(statements: &Statements<'e>) -> Self {
        let mut assignments: HashMap<&'e str, Vec<Assignment<'e>>> = HashMap::new();
        for (index, statement) in statements.list.iter().enumerate() {
            if statement.element.name == "set-variable"
                && let (Some(name), Some(value)) =
                    (statement.element.attribute("name"), statement.element.attribute("value"))
            {
                let assignment = Assignment::new(value, statement.scope, index);
                assignments.entry(name).or_default().push(assignment);
            }
        }
        let mut variables = Self {
            assignments,
            lists: HashSet::new(),
            routing: HashSet::new(),
            routing_cache_keys: HashSet::new(),
        };
        variables.find_lists();
        variables.find_routing(statements);
        variables
    }

    /// All assignments, in the order of the statements.
    pub(in crate::import_apim) fn all_assignments(&self) -> Vec<&Assignment<'e>> {
        let mut all: Vec<_> = self.assignments.values().flatten().collect();
        all.sort_by_key(|assignment| assignment.statement);
        all
    }

    pub(in crate::import_apim) fn assignments_to(&self, name: &str) -> &[Assignment<'e>] {
        self.assignments.get(name).map_or(&[], Vec::as_slice)
    }

    /// Whether a statement assigns a list of endpoints to the variable.
    pub(in crate::import_apim) fn is_list(&self, name: Option<&str>, statement: usize) -> bool {
        let assignments = name.map_or(&[][..], |name| self.assignments_to(name));
        // They are in the order of the statements.
        let found = assignments.binary_search_by_key(&statement, |assignment| assignment.statement);
        found.is_ok_and(|at| assignments.get(at).is_some_and(|assignment| !assignment.listed.is_empty()))
    }

    /// Whether a value is made of a list of endpoints.
    pub(in crate::import_apim) fn reads_list(&self, assignment: &Assignment<'e>) -> bool {
        assignment.references.iter().any(|name| self.lists.contains(name))
    }

    pub(in crate::import_apim) fn is_for_routing(&self, name: &str) -> bool {
        self.routing.contains(name)
    }

    pub(in crate::import_apim) fn is_cache_key_for_routing(&self, key: &str) -> bool {
        self.routing_cache_keys.contains(key)
    }

    /// Starts with the lists, and follows what is made of them.
    fn find_lists(&mut self) {
        let mut made_of: HashMap<&str, Vec<&str>> = HashMap::new();
        let mut open: Vec<&str> = Vec::new();
        for (name, assignments) in &self.assignments {
            for assignment in assignments {
                if !assignment.listed.is_empty() {
                    open.push(name);
                }
                for reference in &assignment.references {
                    made_of.entry(reference).or_default().push(name);
                }
            }
        }
        let mut lists = HashSet::new();
        while let Some(name) = open.pop() {
            if lists.insert(name.to_owned()) {
                open.extend(made_of.get(name).into_iter().flatten());
            }
        }
        self.lists = lists;
    }

    /// Starts with lists of endpoints and with what chooses a backend, and follows what those variables are made of.
    fn find_routing(&mut self, statements: &Statements<'e>) {
        let mut open: Vec<String> = self.lists.iter().cloned().collect();
        let mut seen_scopes = HashSet::new();
        for statement in &statements.list {
            let element = statement.element;
            match element.name.as_str() {
                "set-backend-service" => {
                    let values = [element.attribute("base-url"), element.attribute("backend-id")];
                    for value in values.into_iter().flatten().filter(|value| is_expression(value)) {
                        open.extend(variables_in(&tokens(value)).map(str::to_owned));
                    }
                    for scope in
                        statements.scope_chain(statement.scope).take_while(|s| seen_scopes.insert(*s))
                    {
                        let condition = statements.condition(scope);
                        open.extend(
                            condition.iter().flat_map(|c| variables_in(&c.tokens)).map(str::to_owned),
                        );
                    }
                }
                // Which key is sent follows from the backend.
                "set-header"
                    if element.attribute("name").is_some_and(|name| name.eq_ignore_ascii_case("api-key")) =>
                {
                    for value in element.children_named("value").filter(|value| is_expression(value.text())) {
                        open.extend(variables_in(&tokens(value.text())).map(str::to_owned));
                    }
                }
                "retry" => {
                    let condition = tokens(element.attribute("condition").unwrap_or_default());
                    open.extend(variables_in(&condition).map(str::to_owned));
                }
                _ => {}
            }
        }
        while let Some(name) = open.pop() {
            if self.routing.contains(&name) {
                continue;
            }
            for assignment in self.assignments_to(&name) {
                open.extend(assignment.references.iter().cloned());
                for scope in statements.scope_chain(assignment.scope).take_while(|s| seen_scopes.insert(*s)) {
                    let condition = statements.condition(scope);
                    open.extend(condition.iter().flat_map(|c| variables_in(&c.tokens)).map(str::to_owned));
                }
            }
            self.routing.insert(name);
        }
        self.routing_cache_keys = statements
            .list
            .iter()
            .filter(|statement| statement.element.name == "cache-lookup-value")
            .filter(|s| s.element.attribute("variable-name").is_some_and(|name| self.routing.contains(name)))
            .filter_map(|statement| statement.element.attribute("key"))
            .collect();
    }
}
