//! Reads and checks `prices`: the rows of the file itself, or those of the file that it names.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use chrono::NaiveDate;

use super::partial_backends::{NameLookup, PartialBackends};
use super::shared::read_amount;
use crate::config::changes::join_shortened;
use crate::config::yaml::{ProblemCollector, YamlMapping, YamlNode, closest_match, parse_document};
use crate::files::read_text_file;
use crate::money::{Amount, PriceKey, PriceList, PriceRow, PriceSubject, Rates, is_standard_tier};
use crate::names::{BackendName, DeploymentName};
use crate::yaml::MAX_BYTES;

const ROW_KEYS: [&str; 14] = [
    "deployment",
    "model",
    "backend",
    "service_tier",
    "from",
    "input",
    "cached",
    "cache_write",
    "output",
    "audio_input",
    "audio_cached",
    "audio_output",
    "per_image",
    "per_minute",
];
/// The service tiers that responses name, besides the standard one.
const KNOWN_TIERS: [&str; 3] = ["flex", "priority", "scale"];
/// More than anything costs: a unit of the currency for each token.
const MAX_RATE: Amount = Amount::from_millionths(1_000_000_000_000);
const HOW_TO_WRITE_ROW: &str = "such as { model: gpt-4o, input: 2.50, cached: 1.25, output: 10.00 }";
const HOW_TO_WRITE_CURRENCY: &str = "write the currency of the prices, such as currency: USD";
const CURRENCY_BESIDE_FILE: (&str, &str) =
    ("currency", "belongs into the file that `file` names, beside its rows");

/// Reads the block.
pub(super) fn read_prices(node: &YamlNode<'_, '_>, backends: Option<&PartialBackends>) -> Option<PriceList> {
    let map = node.read_mapping(&["currency", "rows", "file"])?;
    let how = "write the rows here, or the file that has them";
    match map.require_exactly_one(&["rows", "file"], how)? {
        ("file", file) => {
            if map.get("currency").is_some() {
                let (key, problem) = CURRENCY_BESIDE_FILE;
                map.report_error_at::<()>(key, problem);
            }
            read_price_file(&file, backends)
        }
        _ => read_list(&map, backends),
    }
}

/// Reads the file of prices. Its problems have its own lines.
fn read_price_file(node: &YamlNode<'_, '_>, backends: Option<&PartialBackends>) -> Option<PriceList> {
    let path = node.read_file_path()?;
    let text = match read_text_file(&path, MAX_BYTES) {
        Ok(text) => text,
        Err(error) => return node.report_error(format!("cannot read the file: {error}")),
    };
    let outer = node.problems;
    let problems = ProblemCollector::new(path.parent().unwrap_or(Path::new("")), outer.environment());
    let root = parse_document(&text, &problems);
    let list = root.as_ref().and_then(|root| {
        let map = YamlNode::root(root, &problems).read_mapping(&["currency", "rows"])?;
        read_list(&map, backends)
    });
    outer.adopt(problems.into_problems(Some(&path), root.as_ref()));
    list
}

/// Reads the currency and the rows.
fn read_list(map: &YamlMapping<'_, '_>, backends: Option<&PartialBackends>) -> Option<PriceList> {
    let currency = map.require("currency", HOW_TO_WRITE_CURRENCY).and_then(|node| {
        node.read_parsed(|text| {
            let is_code = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_uppercase());
            if is_code { Ok(text.to_owned()) } else { Err("must be three capital letters, such as USD") }
        })
    });
    let rows = map.require("rows", &format!("write at least one, {HOW_TO_WRITE_ROW}"))?;
    let nodes = rows.read_list()?;
    if nodes.is_empty() {
        return rows.report_error(format!("must have at least one, {HOW_TO_WRITE_ROW}"));
    }
    let served = backends.and_then(PartialBackends::served_deployments);
    let read = nodes.iter().map(|node| read_row(node, backends, served.as_ref()));
    let read: Vec<Option<PriceRow>> = read.collect();
    report_repeated_rows(&nodes, &read);
    let list: Option<Vec<PriceRow>> = read.into_iter().collect();
    let list = list?;
    warn_of_unpriced_deployments(&rows, &list, backends);
    Some(PriceList::new(currency?, list))
}

fn read_row(
    node: &YamlNode<'_, '_>,
    backends: Option<&PartialBackends>,
    served: Option<&HashSet<&DeploymentName>>,
) -> Option<PriceRow> {
    let map = node.read_mapping(&ROW_KEYS)?;
    let subject = map
        .require_exactly_one(&["deployment", "model"], HOW_TO_WRITE_ROW)
        .and_then(|(key, node)| read_subject(key, &node, served));
    let backend = map.read_optional("backend", |node| read_backend(node, backends));
    let service_tier = map.read_optional("service_tier", read_service_tier);
    let from = map.read_optional("from", |node| {
        node.read_parsed(|text| {
            NaiveDate::parse_from_str(text, "%Y-%m-%d").map_err(|_| "must be a date, such as 2026-01-31")
        })
    });
    let rates = read_rates(&map);
    let key = PriceKey::new(subject?, backend?, service_tier?.as_deref());
    Some(PriceRow { key, from: from?, rates: rates? })
}

fn read_subject(
    key: &str,
    node: &YamlNode<'_, '_>,
    served: Option<&HashSet<&DeploymentName>>,
) -> Option<PriceSubject> {
    if key == "model" {
        let model = node.read_parsed(|text| {
            let is_name = text.len() <= 64 && !text.contains(char::is_whitespace);
            if is_name {
                Ok(text.to_ascii_lowercase())
            } else {
                Err("must be the name of a model, such as gpt-4o")
            }
        });
        return model.map(PriceSubject::Model);
    }
    let name = node.read_parsed(DeploymentName::parse)?;
    if let Some(served) = served.filter(|served| !served.contains(&name)) {
        let near = closest_match(name.as_str(), served.iter().map(|served| served.as_str()));
        let suggestion = near.map_or_else(String::new, |near| format!("; did you mean {near}?"));
        node.report_warning(format!("has no effect: no backend serves this deployment{suggestion}"));
    }
    Some(PriceSubject::Deployment(name))
}

fn read_backend(node: &YamlNode<'_, '_>, backends: Option<&PartialBackends>) -> Option<BackendName> {
    let name = node.read_nonempty_text()?;
    let Some(backends) = backends else { return Some(BackendName::new(&name.value)) };
    if let NameLookup::NotFound = backends.look_up_name(&name.value) {
        return node.report_error(format!(
            "must be the name of a backend, and there is none with this one{}",
            name.source_note()
        ));
    }
    Some(BackendName::new(&name.value))
}

fn read_service_tier(node: &YamlNode<'_, '_>) -> Option<String> {
    let tier = node.read_nonempty_text()?.value.to_ascii_lowercase();
    if !is_standard_tier(&tier) && !KNOWN_TIERS.contains(&tier.as_str()) {
        node.report_warning(
            "is no service tier that responses are known to name: default, flex, priority or scale. Prices of a \
             deployment type, such as a data zone, differ by deployment or backend",
        );
    }
    Some(tier)
}

fn read_rates(map: &YamlMapping<'_, '_>) -> Option<Rates> {
    let rate = |key| map.read_optional(key, |node| read_amount(node, MAX_RATE, "2.50"));
    let (input, cached, cache_write, output) =
        (rate("input"), rate("cached"), rate("cache_write"), rate("output"));
    let (audio_input, audio_cached, audio_output) =
        (rate("audio_input"), rate("audio_cached"), rate("audio_output"));
    let (per_image, per_minute) = (rate("per_image"), rate("per_minute"));
    let rates = Rates {
        input: input?,
        cached: cached?,
        cache_write: cache_write?,
        output: output?,
        audio_input: audio_input?,
        audio_cached: audio_cached?,
        audio_output: audio_output?,
        per_image: per_image?,
        per_minute: per_minute?,
    };
    if rates == Rates::default() {
        return map.problems.report_error(&map.key_path, format!("has no price, {HOW_TO_WRITE_ROW}"));
    }
    Some(rates)
}

/// Reports rows that are about the same and begin on the same day: which of them applies would be a matter of chance.
fn report_repeated_rows(nodes: &[YamlNode<'_, '_>], rows: &[Option<PriceRow>]) {
    let mut first_by_key = HashMap::new();
    for (node, row) in nodes.iter().zip(rows) {
        let Some(row) = row else { continue };
        if let Some(first) = first_by_key.get(&(&row.key, row.from)) {
            node.report_error::<()>(format!(
                "is about the same as {first}, from the same day on; remove one of them, or give it another `from`"
            ));
        } else {
            first_by_key.insert((&row.key, row.from), &node.key_path);
        }
    }
}

/// Warns of deployments that no row is about. Which model a deployment has is not in the file: its name is taken as a
/// hint.
fn warn_of_unpriced_deployments(
    node: &YamlNode<'_, '_>,
    rows: &[PriceRow],
    backends: Option<&PartialBackends>,
) {
    let enabled = backends.into_iter().flat_map(|backends| &backends.backends);
    let paid_by_token = enabled
        .filter_map(|backend| backend.as_ref()?.enabled())
        .filter(|backend| backend.provisioned.is_none());
    let mut unpriced: Vec<String> = Vec::new();
    for backend in paid_by_token {
        for (name, upstream) in backend.deployments.listed_entries() {
            let is_about = |row: &PriceRow| {
                let is_of_backend = row.key.backend.as_ref().is_none_or(|only| *only == backend.name);
                let is_of_deployment = match &row.key.subject {
                    PriceSubject::Deployment(priced) => priced == name,
                    PriceSubject::Model(model) => {
                        [name, upstream].iter().any(|name| name.to_lowercase().contains(model.as_str()))
                    }
                };
                is_of_backend && is_of_deployment
            };
            if !rows.iter().any(is_about) && !unpriced.iter().any(|known| known == name.as_str()) {
                unpriced.push(name.as_str().to_owned());
            }
        }
    }
    if !unpriced.is_empty() {
        node.report_warning(format!(
            "have no row for {}, neither by the deployment's name nor by that of a model within it: its responses have \
             no cost unless they name a model that has a row",
            join_shortened(&unpriced)
        ));
    }
}

#[cfg(test)]
#[path = "prices_tests.rs"]
mod tests;
