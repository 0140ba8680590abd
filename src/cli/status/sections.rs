//! The sections below the backends. Each is shown only if it has something to tell: pools that are an exception, who is
//! refused or close to a limit, where records go, what ends soon, the last failed reload; in detail also quotas and clients.

use super::affinity::{memory_lines, resource_table};
use super::backends::state_style;
use super::caches::cache_table;
use super::costs::{cost_notes, cost_table};
use super::fitted_table::{Cell, Column, Table};
use super::limits::{limit_notes, limit_table};
use super::pools::pool_exceptions;
use super::queue::{queue_note, queue_table};
use super::report_time::{ReportTime, in_whole_seconds};
use super::shared::{instance_table, probe_notes, shared_note};
use super::summary::spilling_backends;
use crate::admin::status::affinity::AffinityStatus;
use crate::admin::status::costs::CostsStatus;
use crate::admin::status::expiry::{CertificateStatus, CredentialStatus};
use crate::admin::status::limits::LimitsStatus;
use crate::admin::status::queue::QueueStatus;
use crate::admin::status::refusals::RefusedClient;
use crate::admin::status::shared::SharedStatus;
use crate::admin::status::sinks::SinkStatus;
use crate::admin::status::traces::TracesStatus;
use crate::admin::status::{BackendStatus, ClientStatus, StatusReport};
use crate::cli::text::{Line, Style, in_words, in_words_ms, or_unknown, printable};

/// What ends within this time is shown.
const EXPIRES_SOON_SECONDS: i64 = 30 * 86_400;
/// Beyond this, days are exact enough.
const EXACT_EXPIRY_SECONDS: u64 = 172_800;

/// A table, and sentences about it.
pub(super) struct Section {
    table: Table,
    notes: Vec<Line>,
}

impl Section {
    fn new(table: Table) -> Self {
        Self { table, notes: Vec::new() }
    }

    /// The section for a terminal of so many columns.
    pub(super) fn lines(&self, columns: Option<usize>) -> Vec<Line> {
        let table = if self.table.is_empty() { Vec::new() } else { self.table.lines(columns) };
        table.into_iter().chain(self.notes.iter().cloned()).collect()
    }

    fn is_empty(&self) -> bool {
        self.table.is_empty() && self.notes.is_empty()
    }
}

/// The sections of an overview.
pub(super) fn overview_sections(status: &StatusReport, time: ReportTime, is_verbose: bool) -> Vec<Section> {
    let sections = [
        pool_exceptions(&status.pools, &status.backends, &spilling_backends(&status.service)).into(),
        queue(status.queue.as_ref(), is_verbose),
        cache_table(&status.pools, is_verbose).into(),
        refused_clients(&status.refusals),
        limits(status.limits.as_ref(), is_verbose),
        shared(status.shared.as_ref()),
        sinks(&status.sinks, time),
        traces(status.traces.as_ref()),
        expiry(&status.certificates, &status.credentials),
        failed_reload(status.configuration.last_reload_error.as_deref()),
    ];
    sections.into_iter().filter(|section| !section.is_empty()).collect()
}

/// The sections that only `--verbose` shows.
pub(super) fn detail_sections(status: &StatusReport) -> Vec<Section> {
    let sections = [
        quotas(&status.backends),
        clients(&status.clients),
        costs(status.costs.as_ref()),
        affinity(status.affinity.as_ref()),
    ];
    sections.into_iter().filter(|section| !section.is_empty()).collect()
}

impl From<Table> for Section {
    fn from(table: Table) -> Self {
        Self::new(table)
    }
}

/// A count of what should not occur.
fn trouble_count(count: u64) -> Cell {
    Cell::new(count.to_string(), if count > 0 { Style::Warning } else { Style::Plain })
}

/// The clients whose requests were refused or failed.
fn refused_clients(clients: &[RefusedClient]) -> Section {
    let mut table = Table::new(&[
        Column::text("REFUSED CLIENT"),
        Column::number("401", 5),
        Column::number("403", 4),
        Column::number("404", 4),
        Column::number("429", 5),
        Column::number("OTHER", 3),
        Column::number("FAILED", 6),
        Column::number("REFUSED/MIN", 9),
        Column::number("FAILED/MIN", 8),
    ]);
    for client in clients {
        let (total, recent) = (&client.total, &client.last_minute);
        let mut row = vec![client.client.as_deref().map_or_else(|| "(unknown)".to_owned(), printable).into()];
        let counts = [
            total.refused.unauthorized,
            total.refused.forbidden,
            total.refused.not_found,
            total.refused.throttled,
            total.refused.other,
            total.failed,
        ];
        row.extend(counts.map(|count| count.to_string().into()));
        row.extend([recent.refused.total(), recent.failed].map(trouble_count));
        table.push(row);
    }
    Section::new(table)
}

/// Where records go; what does not work is first.
fn sinks(sinks: &[SinkStatus], time: ReportTime) -> Section {
    let mut table = Table::new(&[
        Column::text("RECORDS TO"),
        Column::number("BACKLOG", 9),
        Column::number("BYTES", 3),
        Column::number("OLDEST", 8),
        Column::number("DELIVERED", 7),
        Column::number("DROPPED", 5),
        Column::number("DROPPED/15 MIN", 6),
        Column::number("REJECTED", 4),
    ]);
    let mut notes = Vec::new();
    let (failing, delivering): (Vec<_>, Vec<_>) = sinks.iter().partition(|sink| sink.failing_since.is_some());
    for sink in failing.into_iter().chain(delivering) {
        let name = printable(&sink.sink);
        let delivered =
            time.age_of(sink.last_delivery.as_deref()).map(|age| format!("{} ago", in_words(age)));
        table.push(vec![
            Cell::new(&name, if sink.failing_since.is_some() { Style::Bad } else { Style::Plain }),
            or_unknown(sink.backlog_records.map(|count| count.to_string())).into(),
            sink.backlog_bytes.to_string().into(),
            or_unknown(sink.backlog_seconds.map(in_words)).into(),
            or_unknown(delivered).into(),
            sink.dropped.to_string().into(),
            trouble_count(sink.dropped_last_15_minutes),
            sink.dead_letters.to_string().into(),
        ]);
        if let (Some(since), Some(error)) = (&sink.failing_since, &sink.last_error) {
            let text = format!(
                "records do not reach {name} since {}: {}",
                in_whole_seconds(since),
                printable(error)
            );
            notes.push(Line::new(text, Style::Bad));
        }
    }
    Section { table, notes }
}

/// Why traces do not arrive.
fn traces(traces: Option<&TracesStatus>) -> Section {
    let note = traces.and_then(|traces| {
        let (since, error) = (traces.failing_since.as_deref()?, traces.last_error.as_deref()?);
        let lost = traces.dropped_spans;
        let text = format!(
            "traces do not reach the collector since {}: {}; {lost} spans were dropped",
            in_whole_seconds(since),
            printable(error)
        );
        Some(Line::new(text, Style::Warning))
    });
    Section { table: Table::new(&[]), notes: note.into_iter().collect() }
}

/// The certificates and credentials that end soon, and the credentials that cannot be renewed.
fn expiry(certificates: &[CertificateStatus], credentials: &[CredentialStatus]) -> Section {
    let mut table = Table::new(&[Column::text("EXPIRES"), Column::number("LEFT", 9), Column::text("WHAT")]);
    let mut notes = Vec::new();
    let is_soon = |seconds: i64| seconds < EXPIRES_SOON_SECONDS;
    for certificate in certificates.iter().filter(|certificate| is_soon(certificate.expires_in_seconds)) {
        let what = format!("{} of {}", certificate.certificate, certificate.used_by.join(", "));
        table.push(expiry_row(&certificate.expires, certificate.expires_in_seconds, &what));
    }
    for credential in credentials {
        if is_soon(credential.expires_in_seconds) || credential.renewal_error.is_some() {
            let what = format!("{} of backend {}", credential.part, credential.backend);
            table.push(expiry_row(&credential.expires, credential.expires_in_seconds, &what));
        }
        if let Some(error) = &credential.renewal_error {
            let backend = printable(&credential.backend);
            let text = format!("the credential of {backend} cannot be renewed: {}", printable(error));
            notes.push(Line::new(text, Style::Bad));
        }
    }
    Section { table, notes }
}

fn expiry_row(expires: &str, seconds: i64, what: &str) -> Vec<Cell> {
    let left = match u64::try_from(seconds) {
        Ok(seconds) if seconds >= EXACT_EXPIRY_SECONDS => {
            Cell::new(format!("{} days", seconds / 86_400), Style::Warning)
        }
        Ok(seconds) => Cell::new(in_words(seconds), Style::Bad),
        Err(_) => Cell::new("expired", Style::Bad),
    };
    vec![in_whole_seconds(expires).into(), left, printable(what).into()]
}

fn failed_reload(error: Option<&str>) -> Section {
    let mut notes = Vec::new();
    if let Some(error) = error {
        notes.push(Line::new("the last reload failed; the configuration before it is active:", Style::Bad));
        notes.extend(error.lines().map(|line| Line::plain(format!("  {}", printable(line)))));
    }
    Section { table: Table::new(&[]), notes }
}

/// What is left of the quotas of deployments, as far as it is known.
fn quotas(backends: &[BackendStatus]) -> Section {
    let mut table = Table::new(&[
        Column::text("BACKEND"),
        Column::text("DEPLOYMENT"),
        Column::text("STATE"),
        Column::number("LEFT", 6),
        Column::number("TOKENS LEFT", 8),
        Column::number("REQUESTS LEFT", 7),
        Column::number("LOAD", 7),
    ]);
    let quota = |remaining: Option<i64>, limit: Option<u64>| match (remaining, limit) {
        (Some(remaining), Some(limit)) => format!("{remaining} of {limit}"),
        (remaining, _) => or_unknown(remaining.map(|remaining| remaining.to_string())),
    };
    for backend in backends {
        for deployment in &backend.deployments {
            table.push(vec![
                printable(&backend.name).into(),
                printable(&deployment.name).into(),
                Cell::new(printable(&deployment.state), state_style(&deployment.state)),
                or_unknown(deployment.remaining_ms.map(in_words_ms)).into(),
                quota(deployment.remaining_tokens, deployment.limit_tokens).into(),
                quota(deployment.remaining_requests, deployment.limit_requests).into(),
                or_unknown(deployment.utilization.map(|load| format!("{:.0}%", load * 100.0))).into(),
            ]);
        }
    }
    Section::new(table)
}

/// Which resource has what; nothing from a process of an earlier version.
fn affinity(affinity: Option<&AffinityStatus>) -> Section {
    match affinity {
        Some(affinity) => Section { table: resource_table(affinity), notes: memory_lines(affinity) },
        None => Section::new(Table::new(&[])),
    }
}

/// How far clients use their limits; nothing from a process of an earlier version.
fn limits(limits: Option<&LimitsStatus>, shows_all: bool) -> Section {
    let Some(limits) = limits else { return Section::new(Table::new(&[])) };
    let table = limit_table(limits, shows_all);
    let notes = if table.is_empty() { Vec::new() } else { limit_notes(limits) };
    Section { table, notes }
}

/// What waits in the queue, if anything does, and always in detail; nothing if requests do not wait.
fn queue(queue: Option<&QueueStatus>, shows_always: bool) -> Section {
    let queue = queue.filter(|queue| shows_always || queue.waiting.total() > 0);
    let Some(queue) = queue else { return Section::new(Table::new(&[])) };
    Section { table: queue_table(queue), notes: vec![queue_note(queue)] }
}

/// What the responses to each client cost; nothing without prices.
fn costs(costs: Option<&CostsStatus>) -> Section {
    match costs {
        Some(costs) => Section { table: cost_table(costs), notes: cost_notes(costs) },
        None => Section::new(Table::new(&[])),
    }
}

/// The instances that act as one; nothing if this one is alone.
fn shared(shared: Option<&SharedStatus>) -> Section {
    match shared {
        Some(shared) => Section {
            table: instance_table(shared),
            notes: std::iter::once(shared_note(shared)).chain(probe_notes(shared)).collect(),
        },
        None => Section::new(Table::new(&[])),
    }
}

/// The requests and tokens of clients.
fn clients(clients: &[ClientStatus]) -> Section {
    let mut table = Table::new(&[
        Column::text("CLIENT"),
        Column::number("REQUESTS", 5),
        Column::number("INPUT TOKENS", 4),
        Column::number("OUTPUT TOKENS", 4),
        Column::number("REQUESTS/MIN", 6),
        Column::number("TOKENS/MIN", 6),
    ]);
    for client in clients {
        let (total, recent) = (&client.total, &client.last_minute);
        let mut row = vec![printable(&client.name).into()];
        let counts = [
            total.requests,
            total.input_tokens,
            total.output_tokens,
            recent.requests,
            recent.input_tokens.saturating_add(recent.output_tokens),
        ];
        row.extend(counts.map(|count| count.to_string().into()));
        table.push(row);
    }
    Section::new(table)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::text::Palette;

    #[test]
    fn only_what_ends_within_30_days_or_cannot_be_renewed_is_shown() {
        let day = 86_400;
        for (seconds, error, expected) in [
            (31 * day, None, None),
            (30 * day, None, None),
            (30 * day - 1, None, Some("29 days")),
            (2 * day, None, Some("2 days")),
            (2 * day - 60, None, Some("47h 59m")),
            (0, None, Some("0s")),
            (-1, None, Some("expired")),
            (90 * day, Some("AADSTS7000222: expired\nTrace ID: 1"), Some("90 days")),
        ] {
            let expires = "2026-01-01T00:00:00.000Z";
            let certificates: Vec<CertificateStatus> = serde_json::from_value(json!([{
                "certificate": "cert.pem", "expires": expires, "expires_in_seconds": seconds, "used_by": ["admin"],
            }]))
            .unwrap();
            let credentials: Vec<CredentialStatus> = serde_json::from_value(json!([{
                "backend": "west", "part": "token", "expires": expires, "expires_in_seconds": seconds,
                "renewal_error": error,
            }]))
            .unwrap();
            let certificates = if error.is_none() { certificates } else { Vec::new() };
            let section = expiry(&certificates, &credentials);
            let lines: Vec<String> =
                section.lines(None).iter().map(|line| line.render(Palette::Text)).collect();
            let Some(left) = expected else {
                assert!(section.is_empty(), "{lines:?}");
                continue;
            };
            let has_row = |what: &str| {
                lines.iter().any(|line| {
                    line.starts_with("2026-01-01T00:00:00Z") && line.ends_with(&format!("{left}  {what}"))
                })
            };
            assert!(has_row("token of backend west"), "{lines:?}");
            assert_eq!(has_row("cert.pem of admin"), error.is_none(), "{lines:?}");
            let note = "the credential of west cannot be renewed: AADSTS7000222: expired Trace ID: 1";
            assert_eq!(lines.iter().any(|line| line == note), error.is_some(), "{lines:?}");
        }
    }
}
