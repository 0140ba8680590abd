//! The statements of all policies in their order, with the conditions that they stand under. Fragments are put in where
//! they are included.

use std::collections::{BTreeMap, HashSet};

use super::conditions::{Condition, ConditionClass};
use crate::import_apim::reading::{Element, MAX_ELEMENTS, Token, tokens};
use crate::import_apim::source::ImportError;

/// The deepest nesting of statements, fragments included.
const MAX_DEPTH: usize = 128;

/// A part of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::import_apim) enum Section {
    Request,
    Response,
}

/// A statement of a policy.
#[derive(Clone, Copy)]
pub(in crate::import_apim) struct Statement<'e> {
    pub(in crate::import_apim) element: &'e Element,
    pub(in crate::import_apim) section: Section,
    /// The index of the scope that it stands in.
    pub(in crate::import_apim) scope: usize,
    /// The index of the statement that it is part of: a `choose`, a `retry` and the like.
    pub(in crate::import_apim) parent: Option<usize>,
}

/// A branch of a `choose`, or everything outside of one.
pub(in crate::import_apim) struct Scope {
    pub(in crate::import_apim) parent: Option<usize>,
    /// The index of the `choose`; `None` for the outermost scope.
    pub(in crate::import_apim) choose: Option<usize>,
    pub(in crate::import_apim) condition: Condition,
}

/// All statements and scopes. Scope 0 is the outermost one.
pub(in crate::import_apim) struct Statements<'e> {
    pub(in crate::import_apim) list: Vec<Statement<'e>>,
    pub(in crate::import_apim) scopes: Vec<Scope>,
    /// Fragments that are included and were not given.
    pub(in crate::import_apim) missing_fragments: Vec<usize>,
}

impl Statements<'_> {
    /// The scope and those around it, the innermost first.
    pub(in crate::import_apim) fn scope_chain(&self, scope: usize) -> impl Iterator<Item = usize> {
        std::iter::successors(Some(scope), |scope| self.scopes.get(*scope)?.parent)
    }

    /// The condition of a scope.
    pub(in crate::import_apim) fn condition(&self, scope: usize) -> Option<&Condition> {
        self.scopes.get(scope).filter(|scope| scope.choose.is_some()).map(|scope| &scope.condition)
    }

    /// The nearest condition around a scope that is not about what aoai-lb decides itself.
    pub(in crate::import_apim) fn unknown_condition(&self, scope: usize) -> Option<&Condition> {
        self.scope_chain(scope)
            .filter_map(|scope| self.condition(scope))
            .find(|condition| condition.class == ConditionClass::Unknown)
    }
}

/// The fragments that were given, by name.
pub(in crate::import_apim) type Fragments = BTreeMap<String, Element>;

/// The name of a fragment in the form that names are compared in: files are called `frag-NAME.xml`, `NAME.fragment.xml`
/// or `NAME.xml`.
pub(in crate::import_apim) fn fragment_key(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    let trimmed = ["fragment-", "frag-", "fragment_", "frag_"]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix))
        .unwrap_or(&name);
    let trimmed = [".fragment", "-fragment", "_fragment"]
        .iter()
        .find_map(|suffix| trimmed.strip_suffix(suffix))
        .unwrap_or(trimmed);
    trimmed.to_owned()
}

/// Collects the statements of policies.
///
/// # Errors
/// If fragments include each other, or the statements are too many or too deep.
pub(in crate::import_apim) fn collect<'e>(
    policies: &'e [Element],
    fragments: &'e Fragments,
) -> Result<Statements<'e>, ImportError> {
    let outermost = Scope { parent: None, choose: None, condition: Condition::unknown() };
    let statements = Statements { list: Vec::new(), scopes: vec![outermost], missing_fragments: Vec::new() };
    let mut collector = Collector { statements, fragments, included: Vec::new() };
    for policy in policies {
        if policy.name == "fragment" {
            collector.children(policy, Section::Request, 0, None, MAX_DEPTH)?;
            continue;
        }
        for section in &policy.children {
            match section.name.as_str() {
                "inbound" | "backend" => collector.children(section, Section::Request, 0, None, MAX_DEPTH)?,
                "outbound" | "on-error" => {
                    collector.children(section, Section::Response, 0, None, MAX_DEPTH)?;
                }
                _ => {
                    return Err(ImportError::new(
                        section.place.clone(),
                        "is not a section of a policy: inbound, backend, outbound or on-error",
                    ));
                }
            }
        }
    }
    let mut statements = collector.statements;
    let cached: HashSet<&str> = statements
        .list
        .iter()
        .filter(|statement| statement.element.name == "cache-lookup-value")
        .filter_map(|statement| statement.element.attribute("variable-name"))
        .collect();
    statements.scopes.iter_mut().for_each(|scope| scope.condition.refine(&cached));
    Ok(statements)
}

struct Collector<'e> {
    statements: Statements<'e>,
    fragments: &'e Fragments,
    /// The fragments that are being included.
    included: Vec<String>,
}

impl<'e> Collector<'e> {
    fn children(
        &mut self,
        of: &'e Element,
        section: Section,
        scope: usize,
        parent: Option<usize>,
        depth: usize,
    ) -> Result<(), ImportError> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(ImportError::new(of.place.clone(), "statements and fragments are nested too deeply"));
        };
        of.children.iter().try_for_each(|element| self.statement(element, section, scope, parent, depth))
    }

    fn statement(
        &mut self,
        element: &'e Element,
        section: Section,
        scope: usize,
        parent: Option<usize>,
        depth: usize,
    ) -> Result<(), ImportError> {
        let index = self.statements.list.len();
        if index >= MAX_ELEMENTS {
            let problem =
                format!("there are more than {MAX_ELEMENTS} statements, with what fragments repeat");
            return Err(ImportError::new(element.place.clone(), problem));
        }
        self.statements.list.push(Statement { element, section, scope, parent });
        match element.name.as_str() {
            "choose" => self.branches(element, section, scope, index, depth),
            "retry" | "limit-concurrency" => self.children(element, section, scope, Some(index), depth),
            "include-fragment" => {
                let key = fragment_key(element.attribute("fragment-id").unwrap_or_default());
                let fragments = self.fragments;
                let Some(fragment) = fragments.get(&key) else {
                    self.statements.missing_fragments.push(index);
                    return Ok(());
                };
                if self.included.contains(&key) {
                    return Err(ImportError::new(element.place.clone(), "a fragment includes itself"));
                }
                self.included.push(key);
                let result = self.children(fragment, section, scope, Some(index), depth);
                self.included.pop();
                result
            }
            _ => Ok(()),
        }
    }

    fn branches(
        &mut self,
        choose: &'e Element,
        section: Section,
        scope: usize,
        index: usize,
        depth: usize,
    ) -> Result<(), ImportError> {
        let mut earlier: Vec<Token> = Vec::new();
        let mut class = None;
        for branch in &choose.children {
            let condition = match branch.attribute("condition") {
                Some(written) if branch.name == "when" => Condition::new(tokens(written)),
                _ => Condition::otherwise(class.as_ref(), std::mem::take(&mut earlier)),
            };
            if class.is_none() {
                class = Some(condition.class.clone());
                earlier.clone_from(&condition.tokens);
            }
            self.statements.scopes.push(Scope { parent: Some(scope), choose: Some(index), condition });
            let inner = self.statements.scopes.len() - 1;
            self.children(branch, section, inner, Some(index), depth)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_are_found_by_the_usual_names_of_their_files() {
        for name in ["Backend-Routing", "frag-backend-routing", "backend-routing.fragment", "backend-routing"]
        {
            assert_eq!(fragment_key(name), "backend-routing");
        }
    }
}
