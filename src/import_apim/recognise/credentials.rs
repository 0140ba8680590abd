//! The credentials that policies set on the way to a backend: `api-key` and `Authorization` headers, managed identities.

use std::collections::{BTreeSet, HashSet};

use super::policy_variables::PolicyVariables;
use super::statements::{Section, Statements};
use crate::import_apim::plan::{Credential, Value};
use crate::import_apim::reading::{Element, tokens};
use crate::import_apim::text::{as_named_value, is_expression};
use crate::import_apim::variables::{VariableKind, Variables};

use super::conditions::variables_in;

/// Resources of managed identities that are the default, and those that are other names of Azure OpenAI.
const DEFAULT_RESOURCE: &str = "https://cognitiveservices.azure.com";
const OTHER_RESOURCE: &str = "https://ai.azure.com";

/// A statement that sets a credential.
struct FoundCredential {
    statement: usize,
    scope: usize,
    kind: FoundKind,
    is_used: bool,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum FoundKind {
    /// A key, as it is written.
    Key(String),
    Identity {
        client_id: Option<String>,
        resource: String,
    },
}

/// All credentials.
pub(in crate::import_apim) struct FoundCredentials(Vec<FoundCredential>);

/// The value of a `set-header`, if it is set and not deleted.
pub(in crate::import_apim) fn header_value(element: &Element) -> Option<&str> {
    let is_deleted = element.attribute("exists-action") == Some("delete");
    element.children_named("value").next().map(Element::text).filter(|text| !is_deleted && !text.is_empty())
}

impl FoundCredentials {
    pub(in crate::import_apim) fn find(statements: &Statements<'_>) -> Self {
        let mut found = Vec::new();
        for (index, statement) in statements.list.iter().enumerate() {
            if statement.section == Section::Response {
                continue;
            }
            let element = statement.element;
            let kind = match element.name.as_str() {
                "set-header" => key_of_header(element).map(FoundKind::Key),
                "authentication-managed-identity" => identity_of(element),
                _ => None,
            };
            if let Some(kind) = kind {
                found.push(FoundCredential {
                    statement: index,
                    scope: statement.scope,
                    kind,
                    is_used: false,
                });
            }
        }
        Self(found)
    }

    /// The credential for a backend that is named in these scopes: the one of the innermost scope, else that of another
    /// branch with the same condition. `None` if there is none.
    pub(super) fn for_backend(
        &mut self,
        scopes: &BTreeSet<usize>,
        name: &str,
        statements: &Statements<'_>,
        policy_variables: &PolicyVariables<'_>,
        variables: &mut Variables,
    ) -> Option<(Credential, Vec<String>)> {
        let chain: Vec<usize> = if scopes.is_empty() {
            vec![0]
        } else {
            scopes.iter().take(8).flat_map(|scope| statements.scope_chain(*scope)).collect()
        };
        let inner = chain.iter().filter(|scope| **scope != 0);
        let direct = inner.clone().find_map(|scope| self.position(|found| found.scope == *scope));
        let position = direct
            .or_else(|| {
                let digests: BTreeSet<u64> =
                    inner.filter_map(|scope| statements.condition(*scope)).map(|c| c.digest).collect();
                self.position(|found| {
                    statements
                        .condition(found.scope)
                        .is_some_and(|condition| digests.contains(&condition.digest))
                })
            })
            .or_else(|| self.position(|found| found.scope == 0))
            .or_else(|| self.position(|found| matches!(found.kind, FoundKind::Identity { .. })))?;
        for found in &mut self.0 {
            found.is_used |= found.statement == position;
        }
        let found = self.0.iter().find(|found| found.statement == position)?;
        Some(match &found.kind {
            FoundKind::Identity { client_id, resource } => {
                identity(client_id.as_deref(), Some(resource), name, variables)
            }
            FoundKind::Key(written) => {
                let written = constant_key(written, &chain, policy_variables).unwrap_or(written);
                api_key(written, name, variables)
            }
        })
    }

    /// The statements of credentials, and those of them that a backend has, or that are the same as one of those.
    pub(super) fn statements(&self) -> (HashSet<usize>, HashSet<usize>) {
        let used: HashSet<&FoundKind> =
            self.0.iter().filter(|found| found.is_used).map(|found| &found.kind).collect();
        let all = self.0.iter().map(|found| found.statement).collect();
        let used_statements =
            self.0.iter().filter(|found| used.contains(&found.kind)).map(|found| found.statement).collect();
        (all, used_statements)
    }

    /// The statement of the credential for which this holds: an identity before a key.
    fn position(&self, is_wanted: impl Fn(&FoundCredential) -> bool) -> Option<usize> {
        let mut wanted: Vec<_> = self.0.iter().filter(|found| is_wanted(found)).collect();
        wanted.sort_by_key(|found| matches!(found.kind, FoundKind::Key(_)));
        wanted.first().map(|found| found.statement)
    }
}

/// The key that a `set-header` sends, as it is written. A token of a managed identity is not one.
fn key_of_header(element: &Element) -> Option<String> {
    let name = element.attribute("name")?.to_ascii_lowercase();
    let value = header_value(element)?;
    match name.as_str() {
        "api-key" => Some(value.to_owned()),
        "authorization" if !is_expression(value) => Some(value.to_owned()),
        _ => None,
    }
}

fn identity_of(element: &Element) -> Option<FoundKind> {
    let resource = element.attribute("resource").unwrap_or(DEFAULT_RESOURCE).trim_end_matches('/');
    let is_for_backends = [DEFAULT_RESOURCE, OTHER_RESOURCE].contains(&resource)
        || is_expression(resource)
        || resource.contains("{{");
    is_for_backends.then(|| FoundKind::Identity {
        client_id: element.attribute("client-id").filter(|id| !id.is_empty()).map(str::to_owned),
        resource: resource.to_owned(),
    })
}

/// The constant that a key's expression reads from a variable, in the innermost scope.
fn constant_key<'e>(written: &str, chain: &[usize], variables: &PolicyVariables<'e>) -> Option<&'e str> {
    if !is_expression(written) {
        return None;
    }
    let words = tokens(written);
    let name = variables_in(&words).next()?;
    let assignments = variables.assignments_to(name);
    chain
        .iter()
        .find_map(|scope| assignments.iter().find(|assignment| assignment.scope == *scope))
        .map(|assignment| assignment.value)
}

/// A key as it is written in a policy or template: a named value, or one of which only a variable is written.
pub(super) fn api_key(written: &str, backend: &str, variables: &mut Variables) -> (Credential, Vec<String>) {
    let trimmed = written.trim();
    let (token, is_bearer) = match trimmed.get(..7) {
        Some(scheme) if scheme.eq_ignore_ascii_case("bearer ") => {
            (trimmed.get(7..).unwrap_or_default(), true)
        }
        _ => (trimmed, false),
    };
    let mut comments = Vec::new();
    if is_bearer {
        comments.push(
            "The policy sends this as Authorization: Bearer. It is sent as api-key here, which Azure accepts for keys; for a \
             token of Entra ID, write entra instead."
                .to_owned(),
        );
    }
    if let Some(name) = as_named_value(token) {
        let value = Value::variable(variables.named_value(name, VariableKind::Secret));
        return (Credential::ApiKey(value), comments);
    }
    let is_computed =
        is_expression(token) || token.starts_with('[') || token.is_empty() || token.contains("{{");
    comments.push(if is_computed {
        "The key is computed in the policy or template.".to_owned()
    } else {
        "The policy or template contains the key in plain text; it is not copied here. Regenerate it in Azure: \
         everyone who can read that file has it."
            .to_owned()
    });
    let name =
        variables.add(&format!("{backend}_KEY"), VariableKind::Secret, format!("the key of {backend}"));
    (Credential::ApiKey(Value::variable(name)), comments)
}

/// A managed identity.
pub(super) fn identity(
    client_id: Option<&str>,
    resource: Option<&str>,
    backend: &str,
    variables: &mut Variables,
) -> (Credential, Vec<String>) {
    let mut comments = Vec::new();
    let is_plain =
        |id: &str| id.len() <= 128 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-/._()".contains(&b));
    let client_id = client_id.map(|id| match as_named_value(id) {
        Some(name) => Value::variable(variables.named_value(name, VariableKind::Id)),
        None if is_plain(id) && !id.is_empty() => Value::literal(id),
        None => {
            comments.push("The client id of the identity is computed in the policy or template.".to_owned());
            let wish = format!("{backend}_IDENTITY");
            let purpose = format!("the client id of the identity for {backend}");
            Value::variable(variables.add(&wish, VariableKind::Id, purpose))
        }
    });
    let scope = (resource == Some(OTHER_RESOURCE)).then(|| format!("{OTHER_RESOURCE}/.default"));
    (Credential::ManagedIdentity { client_id, scope }, comments)
}
