//! Backends, pools and circuit breakers of API Management as JSON: ARM templates, also those that Bicep makes, and what
//! the REST API and `az` print.

mod arm_expression;
mod circuit_breaker;

use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::value::RawValue;

use self::arm_expression::{KnownValues, UNKNOWN};
use self::circuit_breaker::{breaker_of, number};
use super::plan::Breaker;
use super::source::{ImportError, Place, SourceText};

const BACKEND_TYPE: &str = "microsoft.apimanagement/service/backends";
/// The deepest nesting of deployments in templates.
const MAX_DEPTH: usize = 12;
/// The most backends and pools of all files.
const MAX_RESOURCES: usize = 1000;

/// A backend or a pool.
pub(super) struct BackendResource {
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) kind: BackendKind,
    /// A loop of the template makes it, or its members: they are known after the deployment only.
    pub(super) is_loop: bool,
}

/// What a resource is.
pub(super) enum BackendKind {
    /// One endpoint.
    Single(SingleBackend),
    /// Members by name, with their priority and weight.
    Pool { members: Vec<PoolMember>, has_session_affinity: bool },
}

/// One endpoint.
pub(super) struct SingleBackend {
    /// As written; empty if it is computed.
    pub(super) url: String,
    /// The value of `credentials.header.api-key` or of an `Authorization` header, as written.
    pub(super) api_key: Option<String>,
    /// `credentials.managedIdentity`: its client id, if it has one.
    pub(super) managed_identity: Option<Option<String>>,
    pub(super) breaker: Option<Breaker>,
    /// What has no counterpart.
    pub(super) notes: Vec<&'static str>,
}

/// A member of a pool.
pub(super) struct PoolMember {
    pub(super) name: String,
    pub(super) priority: Option<u64>,
    pub(super) weight: Option<u64>,
}

/// All backends and pools, by their name in lower case.
#[derive(Default)]
pub(super) struct BackendResources(pub(super) BTreeMap<String, BackendResource>);

impl BackendResources {
    pub(super) fn get(&self, name: &str) -> Option<&BackendResource> {
        self.0.get(&name.to_ascii_lowercase())
    }

    /// Reads a file.
    ///
    /// # Errors
    /// If it is not JSON, or has no backend.
    pub(super) fn read(&mut self, source: &SourceText<'_>) -> Result<(), ImportError> {
        let root: &RawValue = serde_json::from_str(source.text).map_err(|error| {
            let place = source.line(error.line().max(1));
            let hint = if source.text.trim_start().starts_with(['{', '[']) {
                "is not JSON"
            } else {
                "is not JSON; of Bicep, give the template that az bicep build makes of it"
            };
            ImportError::new(place, hint)
        })?;
        let before = self.0.len();
        self.read_value(root, &KnownValues::default(), source, MAX_DEPTH)?;
        if self.0.len() == before {
            return Err(ImportError::new(
                source.line(1),
                "has no backend: expected a template with resources of type Microsoft.ApiManagement/service/backends, or \
                 what the REST API answers for them",
            ));
        }
        Ok(())
    }

    /// Reads a template, a resource, a list of resources, or an object that has one.
    fn read_value(
        &mut self,
        raw: &RawValue,
        known: &KnownValues,
        source: &SourceText<'_>,
        depth: usize,
    ) -> Result<(), ImportError> {
        let place =
            || source.place_at((raw.get().as_ptr() as usize).saturating_sub(source.text.as_ptr() as usize));
        let Some(depth) = depth.checked_sub(1) else {
            return Err(ImportError::new(place(), "templates are nested too deeply"));
        };
        if let Ok(list) = serde_json::from_str::<Vec<&RawValue>>(raw.get()) {
            return list.into_iter().try_for_each(|item| self.read_value(item, known, source, depth));
        }
        let Ok(members) = serde_json::from_str::<BTreeMap<std::borrow::Cow<'_, str>, &RawValue>>(raw.get())
        else {
            return Ok(());
        };
        let text = |key: &str| {
            members
                .get(key)
                .and_then(|value| serde_json::from_str::<String>(value.get()).ok())
                .unwrap_or_default()
        };
        let kind = text("type").to_ascii_lowercase();
        if let Some(properties) = members.get("properties") {
            let properties_value: Value = serde_json::from_str(properties.get()).unwrap_or_default();
            let is_answer =
                kind.is_empty() && properties_value.get("url").or(properties_value.get("pool")).is_some();
            if kind == BACKEND_TYPE || is_answer {
                let is_loop = members.contains_key("copy");
                return self.add(&text("name"), &properties_value, known, place(), is_loop);
            }
            if kind == "microsoft.resources/deployments" {
                return self.read_members(properties, &["template"], known, source, depth);
            }
        }
        let has_values = ["parameters", "variables"].iter().any(|key| members.contains_key(*key));
        let own_values = has_values
            .then(|| KnownValues::of_template(&serde_json::from_str(raw.get()).unwrap_or_default()));
        let known = own_values.as_ref().unwrap_or(known);
        self.read_members(raw, &["resources", "value", "template"], known, source, depth)
    }

    fn read_members(
        &mut self,
        raw: &RawValue,
        keys: &[&str],
        known: &KnownValues,
        source: &SourceText<'_>,
        depth: usize,
    ) -> Result<(), ImportError> {
        let members: BTreeMap<std::borrow::Cow<'_, str>, &RawValue> =
            serde_json::from_str(raw.get()).unwrap_or_default();
        for (_, value) in members.iter().filter(|(key, _)| keys.contains(&key.as_ref())) {
            // In templates with symbolic names, `resources` is an object.
            match serde_json::from_str::<BTreeMap<std::borrow::Cow<'_, str>, &RawValue>>(value.get()) {
                Ok(named) if !named.contains_key("resources") => {
                    named.into_values().try_for_each(|item| self.read_value(item, known, source, depth))?;
                }
                _ => self.read_value(value, known, source, depth)?,
            }
        }
        Ok(())
    }

    fn add(
        &mut self,
        name: &str,
        properties: &Value,
        known: &KnownValues,
        place: Place,
        is_loop: bool,
    ) -> Result<(), ImportError> {
        if self.0.len() == MAX_RESOURCES {
            return Err(ImportError::new(place, format!("there are more than {MAX_RESOURCES} backends")));
        }
        let name = last_segment(&known.evaluate(name));
        let name = match name {
            Some(name) => name,
            None => format!("backend-{}", self.0.len() + 1),
        };
        let kind = match properties.get("pool") {
            Some(pool) => read_pool(pool, known),
            None => BackendKind::Single(read_single(properties, known)),
        };
        let has_computed_members =
            properties.get("pool").is_some_and(|pool| !pool.get("services").is_some_and(Value::is_array));
        let is_loop = is_loop || has_computed_members;
        self.0.insert(name.to_ascii_lowercase(), BackendResource { name, place, kind, is_loop });
        Ok(())
    }
}

/// The name at the end of a resource's name or id, if it is known.
fn last_segment(name: &str) -> Option<String> {
    let last = name.rsplit('/').next().unwrap_or_default().trim();
    (!last.is_empty() && !last.contains(UNKNOWN)).then(|| last.to_owned())
}

fn read_pool(pool: &Value, known: &KnownValues) -> BackendKind {
    let services = pool.get("services").and_then(Value::as_array).into_iter().flatten();
    let members = services.filter_map(|service| {
        let id = known.evaluate(service.get("id")?.as_str()?);
        Some(PoolMember {
            name: last_segment(&id).unwrap_or_else(|| "unknown".to_owned()),
            priority: service.get("priority").and_then(number),
            weight: service.get("weight").and_then(number),
        })
    });
    BackendKind::Pool {
        members: members.take(MAX_RESOURCES).collect(),
        has_session_affinity: pool.get("sessionAffinity").is_some_and(|affinity| !affinity.is_null()),
    }
}

fn read_single(properties: &Value, known: &KnownValues) -> SingleBackend {
    let url = known.evaluate(properties.get("url").and_then(Value::as_str).unwrap_or_default());
    let credentials = properties.get("credentials").filter(|credentials| !credentials.is_null());
    let headers = credentials.and_then(|credentials| credentials.get("header")).and_then(Value::as_object);
    let header = |wanted: &str| {
        let (_, value) = headers?.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted))?;
        let value = value.as_array().map_or(Some(value), |list| list.first())?;
        Some(value.as_str().unwrap_or_default().to_owned())
    };
    let authorization =
        credentials.and_then(|credentials| credentials.get("authorization")).and_then(|found| {
            Some(format!("{} {}", found.get("scheme")?.as_str()?, found.get("parameter")?.as_str()?))
        });
    let identity = credentials
        .and_then(|credentials| credentials.get("managedIdentity").or(credentials.get("managed_identity")))
        .filter(|identity| !identity.is_null());
    let is_false = |key: &str| {
        properties.get("tls").and_then(|tls| tls.get(key)).and_then(Value::as_bool) == Some(false)
    };
    let has = |value: Option<&Value>| value.is_some_and(|value| !value.is_null());
    let mut notes = Vec::new();
    if is_false("validateCertificateChain") || is_false("validateCertificateName") {
        notes.push(
            "certificates are always validated; if a private authority signs it, write tls: { ca: FILE }",
        );
    }
    if has(properties.get("proxy")) {
        notes.push("aoai-lb uses no proxy; route its traffic in the network");
    }
    let credential = |key| credentials.and_then(|credentials| credentials.get(key));
    if has(credential("certificate")) || has(credential("certificateIds")) {
        notes.push("a client certificate is written as tls: { certificate: FILE, private_key: FILE }");
    }
    SingleBackend {
        url: if url.contains(UNKNOWN) { "[computed]".to_owned() } else { url },
        api_key: header("api-key").or_else(|| header("authorization")).or(authorization),
        managed_identity: identity
            .map(|identity| identity.get("clientId").and_then(Value::as_str).map(|id| known.evaluate(id))),
        breaker: breaker_of(properties),
        notes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import_apim::source::InputFile;

    fn read(text: &str) -> Result<BackendResources, String> {
        let file = InputFile { name: "b.json".to_owned(), bytes: text.into() };
        let mut resources = BackendResources::default();
        resources.read(&SourceText::new(0, &file).unwrap()).map_err(|error| error.to_string())?;
        Ok(resources)
    }

    /// Names with URL or members, and the line.
    fn found(text: &str) -> Vec<String> {
        let show = |resource: &BackendResource| match &resource.kind {
            BackendKind::Single(single) => format!("{} {} {}", resource.name, single.url, resource.place),
            BackendKind::Pool { members, .. } => {
                let members: Vec<_> = members
                    .iter()
                    .map(|member| format!("{}:{:?}:{:?}", member.name, member.priority, member.weight))
                    .collect();
                format!("{} [{}] {}", resource.name, members.join(" "), resource.place)
            }
        };
        read(text).unwrap().0.values().map(show).collect()
    }

    #[test]
    fn templates_and_answers_are_read() {
        let template = r#"{ "parameters": { "url": { "defaultValue": "https://a.b" }, "apim": { "type": "string" } },
          "resources": [
            { "type": "Microsoft.ApiManagement/service/backends", "name": "[format('{0}/{1}', parameters('apim'), 'One')]",
              "properties": { "url": "[parameters('url')]" } },
            { "type": "Microsoft.Resources/deployments", "properties": { "template": { "resources": { "sym": {
              "type": "Microsoft.ApiManagement/service/backends", "name": "[concat('x', '/pool')]", "properties": {
                "type": "Pool", "pool": { "services": [
                  { "id": "[resourceId('Microsoft.ApiManagement/service/backends', 'x', 'One')]", "priority": 2, "weight": "3" },
                  { "id": "/backends/two" } ] } } } } } } } ] }"#;
        assert_eq!(
            found(template),
            ["One https://a.b b.json:3", "pool [One:Some(2):Some(3) two:None:None] b.json:5"]
        );
        let one = r#"{ "name": "one", "properties": { "url": "https://a.b" } }"#;
        let answer = format!("{{ \"value\": [ {one},\n {} ] }}", one.replace("one", "two"));
        for (text, expected) in [
            (one.to_owned(), &["one https://a.b b.json:1"][..]),
            (format!("[{one}]"), &["one https://a.b b.json:1"]),
            (answer, &["one https://a.b b.json:1", "two https://a.b b.json:2"]),
        ] {
            assert_eq!(found(&text), expected, "{text}");
        }
    }

    #[test]
    fn credentials_are_found() {
        for (credentials, key, identity) in [
            (r#"{ "header": { "Api-Key": ["{{k}}"] } }"#, Some("{{k}}"), None),
            (
                r#"{ "authorization": { "scheme": "Bearer", "parameter": "{{t}}" } }"#,
                Some("Bearer {{t}}"),
                None,
            ),
            (
                r#"{ "managedIdentity": { "clientId": "c", "resource": "r" } }"#,
                None,
                Some(Some("c".to_owned())),
            ),
            (r#"{ "managedIdentity": {} }"#, None, Some(None)),
            ("null", None, None),
        ] {
            let text = format!(
                r#"{{ "name": "a", "properties": {{ "url": "https://a.b", "credentials": {credentials} }} }}"#
            );
            let resources = read(&text).unwrap();
            let BackendKind::Single(single) = &resources.get("A").unwrap().kind else { panic!("not a pool") };
            assert_eq!((single.api_key.as_deref(), &single.managed_identity), (key, &identity));
        }
    }

    #[test]
    fn what_has_no_backends_is_an_error_with_its_line() {
        for (text, expected) in [
            ("{\n\"a\": }", "b.json:2: is not JSON"),
            (
                "resource x 'y' = {}",
                "b.json:1: is not JSON; of Bicep, give the template that az bicep build makes of it",
            ),
        ] {
            assert_eq!(read(text).err().as_deref(), Some(expected));
        }
        for text in ["{}", "[]", "{ \"resources\": [] }"] {
            assert!(read(text).err().unwrap().starts_with("b.json:1: has no backend"), "{text}");
        }
        let nested = (0..40).fold("{}".to_owned(), |inner, _| {
            format!("{{\"type\":\"Microsoft.Resources/deployments\",\"properties\":{{\"template\":{{\"resources\":[{inner}]}}}}}}")
        });
        assert!(read(&nested).is_err());
    }
}
