//! The log of used budgets in the state directory: what each client has used in a day and in a month. The log of costs
//! has the same form.
//!
//! A line with the version, then a line of JSON for each change. A line tells all that was used, not what was
//! added, and the last one of a client and deployment counts: a log may be read twice, and end early.

use std::io::{self, BufRead, Read};

use serde::{Deserialize, Serialize};

use crate::names::{ClientName, DeploymentName, DeploymentNameError};

/// The file with what clients have used of their budgets.
pub const FILE_NAME: &str = "budgets.log";
/// The file with what the responses to clients have cost.
pub const COSTS_FILE_NAME: &str = "costs.log";
/// The version of its format.
const VERSION: u64 = 1;
/// The longest line that is read.
const MAX_LINE_BYTES: u64 = 64 * 1024;

/// What was used in a scope: by a client of a deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Line", into = "Line")]
pub struct BudgetEntry {
    /// The client; `None` for requests of clients without a name.
    pub client: Option<ClientName>,
    /// The deployment; `None` for all of them.
    pub deployment: Option<DeploymentName>,
    /// Days since 1970-01-01.
    pub day: u32,
    /// The tokens of this day.
    pub day_tokens: u64,
    /// `year * 12 + month`, where January is month 0.
    pub month: u32,
    /// The tokens of this month.
    pub month_tokens: u64,
    /// The costs of this day. Earlier versions have none.
    pub day_costs: CostCounts,
    /// The costs of this month.
    pub month_costs: CostCounts,
    /// The tokens of the other instances in this day, when that was last known.
    pub others_day_tokens: u64,
    /// The tokens of the other instances in this month, when that was last known.
    pub others_month_tokens: u64,
    /// The costs of the other instances in this day, when that was last known.
    pub others_day_costs: CostCounts,
    /// The costs of the other instances in this month, when that was last known.
    pub others_month_costs: CostCounts,
    /// What was counted in this day and has turned out not to be used. Earlier versions have none.
    pub day_refunds: RefundCounts,
    /// The same in this month.
    pub month_refunds: RefundCounts,
    /// The refunds of the other instances in this day, when that was last known.
    pub others_day_refunds: RefundCounts,
    /// The refunds of the other instances in this month, when that was last known.
    pub others_month_refunds: RefundCounts,
}

/// What responses cost, and how many of them have no cost of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CostCounts {
    /// In millionths of the currency.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub millionths: u64,
    /// Responses that are part of what their backend costs by the hour.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub provisioned: u64,
    /// Responses whose cost is not known.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unknown: u64,
}

/// What was counted before and has turned out not to be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefundCounts {
    /// Tokens.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub tokens: u64,
    /// Costs, in millionths of the currency.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub millionths: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn is_nothing<T: Default + PartialEq>(counts: &T) -> bool {
    *counts == T::default()
}

/// What a log has besides its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Lines that are skipped since they are no entries.
    pub lines: u64,
    /// The bytes of a line at the end that is not complete.
    pub torn_bytes: usize,
}

/// Why a log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BudgetLogError {
    /// It does not begin with the version.
    #[error("it does not begin as a log of budgets does")]
    Malformed,
    /// Another version of aoai-lb wrote it.
    #[error("it has version {0}, and this binary knows version {VERSION}")]
    UnknownVersion(u64),
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The first line.
#[derive(Serialize, Deserialize)]
struct Header {
    budgets_version: u64,
}

#[derive(Serialize, Deserialize)]
struct Line {
    client: Option<String>,
    deployment: Option<String>,
    day: u32,
    day_tokens: u64,
    month: u32,
    month_tokens: u64,
    #[serde(default, skip_serializing_if = "is_nothing")]
    day_costs: CostCounts,
    #[serde(default, skip_serializing_if = "is_nothing")]
    month_costs: CostCounts,
    #[serde(default, skip_serializing_if = "is_zero")]
    others_day_tokens: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    others_month_tokens: u64,
    #[serde(default, skip_serializing_if = "is_nothing")]
    others_day_costs: CostCounts,
    #[serde(default, skip_serializing_if = "is_nothing")]
    others_month_costs: CostCounts,
    #[serde(default, skip_serializing_if = "is_nothing")]
    day_refunds: RefundCounts,
    #[serde(default, skip_serializing_if = "is_nothing")]
    month_refunds: RefundCounts,
    #[serde(default, skip_serializing_if = "is_nothing")]
    others_day_refunds: RefundCounts,
    #[serde(default, skip_serializing_if = "is_nothing")]
    others_month_refunds: RefundCounts,
}

impl TryFrom<Line> for BudgetEntry {
    type Error = DeploymentNameError;

    fn try_from(line: Line) -> Result<Self, Self::Error> {
        Ok(Self {
            client: line.client.as_deref().map(ClientName::new),
            deployment: line.deployment.as_deref().map(DeploymentName::parse).transpose()?,
            day: line.day,
            day_tokens: line.day_tokens,
            month: line.month,
            month_tokens: line.month_tokens,
            day_costs: line.day_costs,
            month_costs: line.month_costs,
            others_day_tokens: line.others_day_tokens,
            others_month_tokens: line.others_month_tokens,
            others_day_costs: line.others_day_costs,
            others_month_costs: line.others_month_costs,
            day_refunds: line.day_refunds,
            month_refunds: line.month_refunds,
            others_day_refunds: line.others_day_refunds,
            others_month_refunds: line.others_month_refunds,
        })
    }
}

impl From<BudgetEntry> for Line {
    fn from(entry: BudgetEntry) -> Self {
        Self {
            client: entry.client.map(|name| name.to_string()),
            deployment: entry.deployment.map(|name| name.to_string()),
            day: entry.day,
            day_tokens: entry.day_tokens,
            month: entry.month,
            month_tokens: entry.month_tokens,
            day_costs: entry.day_costs,
            month_costs: entry.month_costs,
            others_day_tokens: entry.others_day_tokens,
            others_month_tokens: entry.others_month_tokens,
            others_day_costs: entry.others_day_costs,
            others_month_costs: entry.others_month_costs,
            day_refunds: entry.day_refunds,
            month_refunds: entry.month_refunds,
            others_day_refunds: entry.others_day_refunds,
            others_month_refunds: entry.others_month_refunds,
        }
    }
}

/// Appends the first line to `into`.
pub fn encode_header(into: &mut Vec<u8>) {
    encode_line(&Header { budgets_version: VERSION }, into);
}

/// Appends the line of an entry to `into`.
pub fn encode_entry(entry: &BudgetEntry, into: &mut Vec<u8>) {
    encode_line(entry, into);
}

fn encode_line(value: &impl Serialize, into: &mut Vec<u8>) {
    // Strings and numbers alone cannot fail.
    into.extend(serde_json::to_vec(value).unwrap_or_default());
    into.push(b'\n');
}

/// Reads a log. `on_entry` gets its entries in their order, also those before a line that cannot be read.
///
/// # Errors
/// [`BudgetLogError`].
pub fn read(
    reader: &mut impl BufRead,
    mut on_entry: impl FnMut(BudgetEntry),
) -> Result<Damage, BudgetLogError> {
    let mut line = Vec::new();
    read_line(reader, &mut line)?;
    match serde_json::from_slice(&line) {
        Ok(Header { budgets_version: VERSION }) => {}
        Ok(Header { budgets_version }) => return Err(BudgetLogError::UnknownVersion(budgets_version)),
        Err(_) => return Err(BudgetLogError::Malformed),
    }
    let mut damage = Damage::default();
    while read_line(reader, &mut line)? {
        match serde_json::from_slice(&line) {
            Ok(entry) => on_entry(entry),
            Err(_) if line.ends_with(b"\n") => damage.lines += 1,
            Err(_) => damage.torn_bytes = line.len(),
        }
    }
    Ok(damage)
}

/// Reads the next line with its line feed, which only the last one may lack. Of one that is too long, only the
/// beginning and a line feed. Returns false at the end.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let length = reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', line)?;
    if length as u64 == MAX_LINE_BYTES && !line.ends_with(b"\n") {
        reader.skip_until(b'\n')?;
        line.push(b'\n');
    }
    Ok(length > 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(client: Option<&str>, deployment: Option<&str>, tokens: u64) -> BudgetEntry {
        BudgetEntry {
            client: client.map(ClientName::new),
            deployment: deployment.map(|name| DeploymentName::parse(name).unwrap()),
            day: 20_783,
            day_tokens: tokens,
            month: 24_322,
            month_tokens: tokens.saturating_mul(2),
            day_costs: CostCounts::default(),
            month_costs: CostCounts::default(),
            others_day_tokens: 0,
            others_month_tokens: 0,
            others_day_costs: CostCounts::default(),
            others_month_costs: CostCounts::default(),
            day_refunds: RefundCounts::default(),
            month_refunds: RefundCounts::default(),
            others_day_refunds: RefundCounts::default(),
            others_month_refunds: RefundCounts::default(),
        }
    }

    fn written(entries: &[BudgetEntry]) -> Vec<u8> {
        let mut text = Vec::new();
        encode_header(&mut text);
        entries.iter().for_each(|entry| encode_entry(entry, &mut text));
        text
    }

    fn read_all(mut text: &[u8]) -> Result<(Vec<BudgetEntry>, Damage), String> {
        let mut entries = Vec::new();
        let damage = read(&mut text, |entry| entries.push(entry)).map_err(|problem| problem.to_string())?;
        Ok((entries, damage))
    }

    fn any_entry() -> impl Strategy<Value = BudgetEntry> {
        let names = (proptest::option::of(any::<String>()), proptest::option::of("[A-Za-z0-9_-]{1,64}"));
        let (costs, refunds) = (any::<[(u64, u64, u64); 4]>(), any::<[(u64, u64); 4]>());
        (names, any::<(u32, u64, u32, u64)>(), any::<(u64, u64)>(), costs, refunds).prop_map(
            |((client, deployment), (day, day_tokens, month, month_tokens), others, costs, refunds)| {
                let [day_costs, month_costs, others_day_costs, others_month_costs] =
                    costs.map(|(millionths, provisioned, unknown)| CostCounts {
                        millionths,
                        provisioned,
                        unknown,
                    });
                let [day_refunds, month_refunds, others_day_refunds, others_month_refunds] =
                    refunds.map(|(tokens, millionths)| RefundCounts { tokens, millionths });
                BudgetEntry {
                    client: client.as_deref().map(ClientName::new),
                    deployment: deployment.map(|name| DeploymentName::parse(&name).unwrap()),
                    day,
                    day_tokens,
                    month,
                    month_tokens,
                    day_costs,
                    month_costs,
                    others_day_tokens: others.0,
                    others_month_tokens: others.1,
                    others_day_costs,
                    others_month_costs,
                    day_refunds,
                    month_refunds,
                    others_day_refunds,
                    others_month_refunds,
                }
            },
        )
    }

    #[test]
    fn the_text_is_that_of_earlier_versions() {
        let costs = |millionths, unknown| CostCounts { millionths, provisioned: 0, unknown };
        let priced = BudgetEntry { day_costs: costs(5, 0), month_costs: costs(9, 1), ..entry(None, None, 0) };
        let shared =
            BudgetEntry { others_day_tokens: 3, others_month_tokens: 5, ..entry(Some("b"), None, 1) };
        let shared_costs =
            BudgetEntry { others_day_costs: costs(4, 0), others_month_costs: costs(6, 0), ..shared.clone() };
        let refunds = |tokens, millionths| RefundCounts { tokens, millionths };
        let refunded = BudgetEntry {
            day_refunds: refunds(2, 0),
            month_refunds: refunds(3, 4),
            others_month_refunds: refunds(0, 5),
            ..entry(Some("c"), None, 6)
        };
        let entries = [
            entry(Some("team-a"), Some("gpt-4o"), 7),
            entry(None, None, 0),
            priced,
            shared,
            shared_costs,
            refunded,
        ];
        let text = written(&entries);
        let expected = concat!(
            "{\"budgets_version\":1}\n",
            r#"{"client":"team-a","deployment":"gpt-4o","day":20783,"day_tokens":7,"month":24322,"month_tokens":14}"#,
            "\n",
            r#"{"client":null,"deployment":null,"day":20783,"day_tokens":0,"month":24322,"month_tokens":0}"#,
            "\n",
            r#"{"client":null,"deployment":null,"day":20783,"day_tokens":0,"month":24322,"month_tokens":0,"day_costs":{"millionths":5},"month_costs":{"millionths":9,"unknown":1}}"#,
            "\n",
            r#"{"client":"b","deployment":null,"day":20783,"day_tokens":1,"month":24322,"month_tokens":2,"others_day_tokens":3,"others_month_tokens":5}"#,
            "\n",
            r#"{"client":"b","deployment":null,"day":20783,"day_tokens":1,"month":24322,"month_tokens":2,"others_day_tokens":3,"others_month_tokens":5,"others_day_costs":{"millionths":4},"others_month_costs":{"millionths":6}}"#,
            "\n",
            r#"{"client":"c","deployment":null,"day":20783,"day_tokens":6,"month":24322,"month_tokens":12,"day_refunds":{"tokens":2},"month_refunds":{"tokens":3,"millionths":4},"others_month_refunds":{"millionths":5}}"#,
            "\n",
        );
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }

    #[test]
    fn what_another_program_or_version_wrote_is_refused_with_a_reason() {
        let malformed = "it does not begin as a log of budgets does";
        for (text, reason) in [
            ("", malformed),
            ("\n", malformed),
            ("{\"budgets_ver", malformed),
            ("{\"version\":1}\n", malformed),
            ("{\"budgets_version\":2}\n[]\n", "it has version 2, and this binary knows version 1"),
        ] {
            assert_eq!(read_all(text.as_bytes()), Err(reason.to_owned()), "{text}");
        }
        assert_eq!(read_all(b"{\"budgets_version\":1,\"more\":1}"), Ok((vec![], Damage::default())));
    }

    #[test]
    fn a_damaged_line_costs_only_itself() {
        let whole = entry(Some("a"), None, 3);
        let later_field = r#"{"client":"a","deployment":null,"day":20783,"day_tokens":3,"month":24322,"month_tokens":6,"cost":1}"#;
        let too_long = "x".repeat(3 * 64 * 1024);
        // At most this long, with its line feed.
        let longest_client = "x".repeat(64 * 1024 - 200);
        for (line, entries, lines) in [
            (later_field, 3, 0),
            ("", 2, 1),
            ("\0\0\0\0", 2, 1),
            ("{}", 2, 1),
            (&later_field.replace("null", "\"not a deployment\""), 2, 1),
            (&later_field.replace("20783", "-1"), 2, 1),
            (&later_field[..40], 2, 1),
            (&too_long, 2, 1),
            (&later_field.replace("\"a\"", &format!("\"{longest_client}\"")), 3, 0),
        ] {
            let mut text = written(std::slice::from_ref(&whole));
            text.extend(line.as_bytes());
            text.push(b'\n');
            encode_entry(&whole, &mut text);
            let (found, damage) = read_all(&text).unwrap();
            assert_eq!((found.len(), damage), (entries, Damage { lines, torn_bytes: 0 }), "{line:.80}");
            assert_eq!(found.last(), Some(&whole));
        }
    }

    proptest! {
        #[test]
        fn entries_are_read_as_they_were_written(entries in proptest::collection::vec(any_entry(), 0..20)) {
            prop_assert_eq!(read_all(&written(&entries)), Ok((entries, Damage::default())));
        }

        #[test]
        fn a_log_that_was_cut_anywhere_has_all_entries_before_the_cut(
            entries in proptest::collection::vec(any_entry(), 0..4),
        ) {
            let (text, header) = (written(&entries), written(&[]).len());
            for cut in header..=text.len() {
                let (found, damage) = read_all(&text[..cut]).unwrap();
                let body = &text[header..cut];
                let lines = body.iter().filter(|byte| **byte == b'\n').count();
                let rest = body.len() - body.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                // Only the line feed is missing.
                let is_whole = text.get(cut) == Some(&b'\n') && rest > 0;
                let expected = Damage { lines: 0, torn_bytes: if is_whole { 0 } else { rest } };
                prop_assert_eq!((found.as_slice(), damage), (&entries[..lines + usize::from(is_whole)], expected));
            }
        }

        #[test]
        fn any_bytes_can_be_read(text in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = read_all(&text);
            let lines = text.iter().filter(|byte| **byte == b'\n').count() as u64;
            let (entries, damage) = read_all(&[written(&[]), text].concat()).unwrap();
            prop_assert_eq!(entries.len() as u64 + damage.lines, lines);
        }
    }
}
