//! Lists of endpoints in expressions: a `JArray` of objects with `url`, `priority`, `isThrottling` and the like, clusters
//! of their indices by deployment, lists of URLs, and the same as JSON.

use std::collections::BTreeSet;

use serde_json::Value;

use super::literal_targets::is_url;
use crate::import_apim::reading::Token;
use crate::names::DeploymentName;

/// An endpoint of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::import_apim) struct ListedEndpoint {
    pub(super) url: Option<String>,
    pub(super) backend_id: Option<String>,
    pub(super) priority: Option<u64>,
    pub(super) weight: Option<u64>,
    pub(super) api_key: Option<String>,
    pub(super) deployments: BTreeSet<String>,
    /// There are clusters, and none has it.
    pub(super) is_in_no_cluster: bool,
}

/// A field of an object.
#[derive(Default)]
struct Field {
    name: String,
    value: Option<String>,
    /// The indices of a list, as in `new JArray(routes[0], routes[1])`.
    indices: Vec<usize>,
    /// The texts of a list, as in `new JArray("gpt-4o", "o3")`; `None` if the value is no list.
    texts: Option<Vec<String>>,
}

/// The endpoints that an expression lists. An expression that only reads a list has none.
pub(super) fn listed_endpoints(tokens: &[Token]) -> Vec<ListedEndpoint> {
    let objects = objects_in(tokens);
    let mut endpoints = Vec::new();
    for fields in &objects {
        endpoints.extend(endpoint_of(fields));
    }
    let mut has_clusters = false;
    for fields in &objects {
        let text = |wanted: &str| fields.iter().find(|field| field.name == wanted);
        let deployment = text("deploymentname").and_then(|field| field.value.as_deref());
        let deployment = deployment.filter(|name| DeploymentName::parse(name).is_ok());
        has_clusters |= deployment.is_some() && fields.iter().any(|field| !field.indices.is_empty());
        for (deployment, index) in
            deployment.iter().flat_map(|name| fields.iter().flat_map(|f| &f.indices).map(move |i| (name, *i)))
        {
            if let Some(endpoint) = endpoints.get_mut(index) {
                endpoint.deployments.insert((*deployment).to_owned());
            }
        }
    }
    for endpoint in &mut endpoints {
        endpoint.is_in_no_cluster = has_clusters && endpoint.deployments.is_empty();
    }
    if endpoints.is_empty() {
        endpoints = tokens
            .iter()
            .filter_map(|token| match token {
                Token::Text(text) => Some(json_endpoints(text)),
                _ => None,
            })
            .flatten()
            .collect();
    }
    if endpoints.is_empty() {
        endpoints = added_urls(tokens);
    }
    endpoints
}

/// The endpoints of a list that is JSON.
pub(super) fn json_endpoints(text: &str) -> Vec<ListedEndpoint> {
    let text = text.trim();
    if !text.starts_with(['[', '{']) {
        return Vec::new();
    }
    let Ok(Value::Array(items)) = serde_json::from_str(text) else { return Vec::new() };
    let fields_of = |item: &Value| -> Vec<Field> {
        let members = item.as_object().into_iter().flatten();
        members
            .map(|(name, value)| Field {
                name: name.to_ascii_lowercase(),
                value: value.as_str().map(str::to_owned).or_else(|| value.as_u64().map(|n| n.to_string())),
                indices: Vec::new(),
                texts: value
                    .as_array()
                    .map(|items| items.iter().filter_map(Value::as_str).map(str::to_owned).collect()),
            })
            .collect()
    };
    items.iter().filter_map(|item| endpoint_of(&fields_of(item))).collect()
}

fn endpoint_of(fields: &[Field]) -> Option<ListedEndpoint> {
    let value = |names: &[&str]| {
        fields.iter().find(|field| names.contains(&field.name.as_str())).and_then(|field| field.value.clone())
    };
    let number = |names: &[&str]| value(names).and_then(|text| text.parse().ok());
    // The models of a pool.
    let models = fields
        .iter()
        .filter(|field| ["supportedmodels", "models", "deployments"].contains(&field.name.as_str()))
        .find_map(|field| field.texts.as_ref());
    let url = value(&["url", "endpoint", "baseurl", "base-url", "backendurl", "uri"]);
    let is_candidate = models.is_some()
        || ["priority", "prioritygroup", "weight", "isthrottling"]
            .iter()
            .any(|name| value(&[name]).is_some());
    let id = value(&["backend-id", "backendid", "backend_id", "poolname"]).or_else(|| value(&["name", "id"]));
    let backend_id = if url.is_none() && is_candidate { id } else { None };
    if url.is_none() && backend_id.is_none() {
        return None;
    }
    Some(ListedEndpoint {
        url,
        backend_id,
        priority: number(&["priority", "prioritygroup"]),
        weight: number(&["weight"]),
        api_key: value(&["api-key", "apikey", "api_key", "key"]),
        deployments: models
            .into_iter()
            .flatten()
            .filter(|name| DeploymentName::parse(name).is_ok())
            .cloned()
            .collect(),
        is_in_no_cluster: false,
    })
}

/// The fields of each `new JObject() { { "name", value }, … }`.
fn objects_in(tokens: &[Token]) -> Vec<Vec<Field>> {
    let mut objects = Vec::new();
    let mut at = 0;
    while let Some(found) = tokens.get(at..).and_then(|rest| rest.iter().position(|t| t.is_word("JObject"))) {
        at += found + 1;
        if tokens.get(at) == Some(&Token::Symbol('(')) && tokens.get(at + 1) == Some(&Token::Symbol(')')) {
            at += 2;
        }
        if tokens.get(at) != Some(&Token::Symbol('{')) {
            continue;
        }
        at += 1;
        let mut fields: Vec<Field> = Vec::new();
        let mut depth = 1_usize;
        while let Some(token) = tokens.get(at).filter(|_| depth > 0) {
            match token {
                Token::Symbol('{') => {
                    depth += 1;
                    if let (2, Some(Token::Text(name)), Some(Token::Symbol(','))) =
                        (depth, tokens.get(at + 1), tokens.get(at + 2))
                    {
                        fields.push(Field { name: name.to_ascii_lowercase(), ..Field::default() });
                        // The value begins after the comma.
                        at += 2;
                    }
                }
                Token::Symbol('}') => depth -= 1,
                token if depth == 2 => {
                    if let Some(field) = fields.last_mut() {
                        read_value(field, token, tokens, at);
                    }
                }
                _ => {}
            }
            at += 1;
        }
        objects.push(fields);
    }
    objects
}

/// Reads a word of a value. Only a value that begins with a literal is known.
fn read_value(field: &mut Field, token: &Token, tokens: &[Token], at: usize) {
    let before = |back: usize| at.checked_sub(back).and_then(|at| tokens.get(at));
    let is_first = before(1) == Some(&Token::Symbol(','))
        && matches!(before(2), Some(Token::Text(name)) if name.eq_ignore_ascii_case(&field.name));
    match token {
        Token::Text(text) if is_first => field.value = Some(text.clone()),
        Token::Number(number) if is_first => field.value = Some(number.clone()),
        Token::Word(word) if is_first && matches!(word.as_str(), "true" | "false") => {
            field.value = Some(word.clone());
        }
        Token::Word(word) if word == "JArray" && before(1).is_some_and(|token| token.is_word("new")) => {
            field.texts.get_or_insert_default();
        }
        Token::Text(text) if matches!(before(1), Some(Token::Symbol('(' | ',' | '{'))) => {
            field.texts.iter_mut().for_each(|texts| texts.push(text.clone()));
        }
        Token::Number(number) if before(1) == Some(&Token::Symbol('[')) => {
            field.indices.extend(number.parse::<usize>());
        }
        _ => {}
    }
}

/// The texts of `list.Add("…")` that are URLs or named values.
fn added_urls(tokens: &[Token]) -> Vec<ListedEndpoint> {
    let urls = tokens.windows(3).filter_map(|words| match words {
        [Token::Word(add), Token::Symbol('('), Token::Text(text)] if add == "Add" && is_url(text) => {
            Some(ListedEndpoint { url: Some(text.clone()), ..ListedEndpoint::default() })
        }
        _ => None,
    });
    urls.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import_apim::reading::tokens;

    fn shown(expression: &str) -> Vec<String> {
        let show = |endpoint: ListedEndpoint| {
            let target = endpoint.url.or(endpoint.backend_id).unwrap_or_default();
            let names: Vec<_> = endpoint.deployments.into_iter().collect();
            let unused = if endpoint.is_in_no_cluster { "unused" } else { "" };
            format!("{target} {:?} {:?} {}{unused}", endpoint.priority, endpoint.weight, names.join(","))
        };
        listed_endpoints(&tokens(expression)).into_iter().map(show).collect()
    }

    #[test]
    fn endpoints_are_found_in_lists_of_objects() {
        let list = r#"@{ JArray list = new JArray();
            list.Add(new JObject() { { "url", "https://a.b/" }, { "priority", 1 }, { "isThrottling", false }, { "retryAfter", DateTime.MinValue } });
            // list.Add(new JObject() { { "url", "https://no.b/" } });
            list.Add(new JObject { { "backend-id", "east" }, { "priority", 2 }, { "weight", 3 } });
            return list; }"#;
        assert_eq!(shown(list), ["https://a.b/ Some(1) None ", "east Some(2) Some(3) "]);
        let clusters = r#"@{ routes.Add(new JObject() { { "name", "E" }, { "backend-id", "b0" }, { "priority", 1 } });
            routes.Add(new JObject() { { "name", "W" }, { "backend-id", "b1" }, { "priority", 1 } });
            clusters.Add(new JObject() { { "deploymentName", "chat" }, { "routes", new JArray(routes[0], routes[1]) } });
            clusters.Add(new JObject() { { "deploymentName", "dall-e-3" }, { "routes", new JArray(routes[0], routes[9]) } }); }"#;
        assert_eq!(shown(clusters), ["b0 Some(1) None chat,dall-e-3", "b1 Some(1) None chat"]);
        let without_cluster = r#"@{ routes.Add(new JObject() { { "url", "https://a.b" }, { "priorityGroup", 2 } });
            routes.Add(new JObject() { { "url", "https://c.d" }, { "accepted", new JArray(1, 2) } });
            clusters.Add(new JObject() { { "deploymentName", "chat" }, { "routes", new JArray(routes[0]) } }); }"#;
        assert_eq!(shown(without_cluster), ["https://a.b Some(2) None chat", "https://c.d None None unused"]);
        let pools = r#"@{ var one = new JObject() { { "poolName", "p1" }, { "poolType", "x" }, { "supportedModels", new JArray("o3", "gpt-4o") } };
            pools.Add(one); pools.Add(new JObject() { { "poolName", "p2" }, { "supportedModels", new JArray() } }); }"#;
        assert_eq!(shown(pools), ["p1 None None gpt-4o,o3", "p2 None None "]);
        assert_eq!(
            shown(r#"@{ l.Add("{{one}}"); l.Add("https://two.b"); l.Add("x"); }"#),
            ["{{one}} None None ", "https://two.b None None "]
        );
        let json = r#"@(JArray.Parse(@"[{""url"":""https://a.b"",""priority"":2}]"))"#;
        assert_eq!(shown(json), ["https://a.b Some(2) None "]);
    }

    #[test]
    fn what_only_reads_a_list_lists_nothing() {
        for expression in [
            r#"@{ JObject b = (JObject)list[i]; b["isThrottling"] = true; return b.Value<int>("priority"); }"#,
            r#"@(((JObject)((JArray)context.Variables["l"])[0]).Value<string>("url") + "openai")"#,
            r#"@{ return new JObject() { { "name", c.GetValue("name") }, { "priority", c.GetValue("priority") }, { "weight", 1 } }; }"#,
        ] {
            assert_eq!(shown(expression), Vec::<String>::new(), "{expression}");
        }
    }
}
