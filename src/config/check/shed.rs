//! Reads and checks `shed`.

use super::partial_backends::PartialBackends;
use crate::config::schema::{RequestClass, ShedConfig};
use crate::config::values::Percentage;
use crate::config::yaml::{YamlMapping, YamlNode};

/// Reads the block.
pub(super) fn read_shed(
    root: &YamlMapping<'_, '_>,
    backends: Option<&PartialBackends>,
) -> Option<ShedConfig> {
    let Some(node) = root.get("shed") else { return Some(ShedConfig::default()) };
    let map = node.read_mapping(&RequestClass::ALL.map(RequestClass::as_str))?;
    if map.is_empty() {
        return node
            .report_error("must have a class, such as batch: 80%; remove the key if no class is to leave");
    }
    let [interactive, standard, batch] =
        RequestClass::ALL.map(|class| map.read_optional(class.as_str(), read_threshold));
    let shed = ShedConfig { interactive: interactive?, standard: standard?, batch: batch? };
    warn_of_more_urgent_classes_that_leave_first(&map, &shed);
    if backends.and_then(PartialBackends::has_deployment_in_two_tiers) == Some(false) {
        node.report_warning(
            "has no effect: requests leave a provisioned deployment for a lower tier, and no deployment is in two; give \
             the backends that are to take them a higher tier number",
        );
    }
    Some(shed)
}

fn read_threshold(node: &YamlNode<'_, '_>) -> Option<Percentage> {
    let threshold = node.read_percentage()?;
    if threshold.percent() == 0 {
        return node.report_error("must be from 1% to 100%");
    }
    Some(threshold)
}

fn warn_of_more_urgent_classes_that_leave_first(map: &YamlMapping<'_, '_>, shed: &ShedConfig) {
    for (position, class) in RequestClass::ALL.into_iter().enumerate() {
        let less_urgent = RequestClass::ALL.into_iter().skip(position + 1);
        let stays_longer = |other: &RequestClass| {
            let thresholds = shed.threshold(class).zip(shed.threshold(*other));
            thresholds.is_some_and(|(own, other)| own.percent() < other.percent())
        };
        if let Some(other) = less_urgent.into_iter().find(stays_longer) {
            let other = other.as_str();
            map.report_warning_at(
                class.as_str(),
                format!("is below that of {other}, which is less urgent and stays for longer"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::{assert_errors, assert_warnings, parse_valid};

    /// A file with these backends, each with its tier and the deployments that it serves.
    fn backends(backends: &[(u16, &str)]) -> String {
        let backend = |(index, (tier, deployments)): (usize, &(u16, &str))| {
            format!(
                "  - {{ name: b{index}, tier: {tier}, endpoint: 'https://b{index}.example', credential: {{ api_key: k }}{deployments} }}\n"
            )
        };
        format!("backends:\n{}", backends.iter().enumerate().map(backend).collect::<String>())
    }

    #[test]
    fn each_class_has_a_threshold_of_its_own_or_none() {
        for (yaml, expected) in [
            ("", [None, None, None]),
            ("shed: { batch: 80%, standard: 95% }", [None, Some(95), Some(80)]),
            ("shed: { interactive: 100%, standard: 50 %, batch: 1% }", [Some(100), Some(50), Some(1)]),
        ] {
            let shed = parse_valid(yaml).config.shed;
            let thresholds = RequestClass::ALL.map(|class| shed.threshold(class).map(Percentage::percent));
            assert_eq!(thresholds, expected, "{yaml}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_what_would_be_right() {
        const RANGE: &str = "must be a whole number of percent from 0% to 100%";
        assert_errors(&[
            (
                "shed: {}",
                &["shed: must have a class, such as batch: 80%; remove the key if no class is to leave"],
            ),
            ("shed:", &["shed: is empty; remove it or give it a value"]),
            ("shed: 80%", &["shed: must be a mapping with interactive, standard or batch, not a string"]),
            ("shed: { bach: 80% }", &["shed.bach: unknown key; did you mean `batch`?"]),
            (
                "shed: { interactive: 101%, standard: 0%, batch: 80 }",
                &[
                    &format!("shed.interactive: {RANGE}"),
                    "shed.standard: must be from 1% to 100%",
                    "shed.batch: has no unit; give it one, such as 10% or 10 %",
                ],
            ),
            ("shed: { batch: 79.5% }", &[&format!("shed.batch: {RANGE}")]),
        ]);
    }

    #[test]
    fn thresholds_without_effect_or_in_the_wrong_order_are_warnings() {
        const UNUSED: &str = "shed: has no effect: requests leave a provisioned deployment for a lower tier, and no deployment \
                              is in two; give the backends that are to take them a higher tier number";
        let with = |list: &[(u16, &str)], shed: &str| format!("{}{shed}", backends(list));
        let (x, y, all) = (", deployments: { x: x1 }", ", deployments: { X: x2, y: y }", "");
        let shed = "shed: { batch: 80%, standard: 95% }";
        assert_warnings(&[
            (&with(&[(1, all)], shed), &[UNUSED]),
            (&with(&[(1, all), (1, all)], shed), &[UNUSED]),
            (&with(&[(1, x), (2, ", deployments: { y: y }")], shed), &[UNUSED]),
            (&with(&[(1, all), (2, all)], shed), &[]),
            (&with(&[(1, x), (2, y)], shed), &[]),
            (&with(&[(2, y), (1, all)], shed), &[]),
            // A disabled backend takes no requests.
            (&with(&[(1, x), (2, ", deployments: { x: x2 }, enabled: false")], shed), &[UNUSED]),
            (&with(&[(1, all), (1, all)], ""), &[]),
            (&with(&[(1, all), (2, all)], "shed: { batch: 80%, standard: 80%, interactive: 80% }"), &[]),
            (
                &with(&[(1, all), (2, all)], "shed: { batch: 80%, standard: 70%, interactive: 75% }"),
                &[
                    "shed.interactive: is below that of batch, which is less urgent and stays for longer",
                    "shed.standard: is below that of batch, which is less urgent and stays for longer",
                ],
            ),
        ]);
    }
}
