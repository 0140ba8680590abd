//! Parts of `aoai-lb status` that are shown only if there is something to show: who is refused, where records go,
//! what expires.

use std::io::{self, Write};
use std::time::Duration;

use super::table::{format_remaining, unknown_placeholder, write_table};
use crate::admin::status::expiry::{CertificateStatus, CredentialStatus};
use crate::admin::status::refusals::RefusedClient;
use crate::admin::status::sinks::SinkStatus;

/// Writes the clients whose requests were refused or failed.
pub(super) fn write_refusals(clients: &[RefusedClient], out: &mut impl Write) -> io::Result<()> {
    if clients.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    write_table(&refusal_rows(clients), 1, out)
}

/// Writes where records go, and why they do not arrive.
pub(super) fn write_sinks(sinks: &[SinkStatus], out: &mut impl Write) -> io::Result<()> {
    if sinks.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    write_table(&sink_rows(sinks), 1, out)?;
    for sink in sinks {
        if let (Some(since), Some(error)) = (&sink.failing_since, &sink.last_error) {
            writeln!(out, "records do not reach {} since {since}: {error}", sink.sink)?;
        }
    }
    Ok(())
}

/// Writes which certificates and credentials expire, and which cannot be renewed.
pub(super) fn write_expiry(
    certificates: &[CertificateStatus],
    credentials: &[CredentialStatus],
    out: &mut impl Write,
) -> io::Result<()> {
    if certificates.is_empty() && credentials.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    write_table(&expiry_rows(certificates, credentials), 3, out)?;
    for credential in credentials {
        if let Some(error) = &credential.renewal_error {
            writeln!(out, "the credential of {} cannot be renewed: {error}", credential.backend)?;
        }
    }
    Ok(())
}

fn refusal_rows(clients: &[RefusedClient]) -> Vec<Vec<String>> {
    let head = ["REFUSED CLIENT", "401", "403", "404", "429", "OTHER", "FAILED", "REFUSED/MIN", "FAILED/MIN"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for client in clients {
        let (total, recent) = (&client.total, &client.last_minute);
        let name = client.client.clone().unwrap_or_else(|| "(unknown)".to_owned());
        let counts = [
            total.refused.unauthorized,
            total.refused.forbidden,
            total.refused.not_found,
            total.refused.throttled,
            total.refused.other,
            total.failed,
            recent.refused.total(),
            recent.failed,
        ];
        rows.push([name].into_iter().chain(counts.map(|count| count.to_string())).collect());
    }
    rows
}

fn sink_rows(sinks: &[SinkStatus]) -> Vec<Vec<String>> {
    let head = [
        "RECORDS TO",
        "BACKLOG",
        "BYTES",
        "OLDEST",
        "LAST DELIVERY",
        "DROPPED",
        "DROPPED/15 MIN",
        "REJECTED",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for sink in sinks {
        rows.push(vec![
            sink.sink.clone(),
            sink.backlog_records.map_or_else(unknown_placeholder, |count| count.to_string()),
            sink.backlog_bytes.to_string(),
            format_remaining(sink.backlog_seconds.map(|seconds| seconds.saturating_mul(1000))),
            sink.last_delivery.clone().unwrap_or_else(unknown_placeholder),
            sink.dropped.to_string(),
            sink.dropped_last_15_minutes.to_string(),
            sink.dead_letters.to_string(),
        ]);
    }
    rows
}

fn expiry_rows(certificates: &[CertificateStatus], credentials: &[CredentialStatus]) -> Vec<Vec<String>> {
    let head = ["EXPIRES", "TIME LEFT", "WHAT"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let row = |expires: &String, seconds: i64, what: String| {
        let left = match u64::try_from(seconds) {
            Ok(seconds) if seconds >= 172_800 => format!("{} days", seconds / 86_400),
            Ok(seconds) => humantime::format_duration(Duration::from_secs(seconds)).to_string(),
            Err(_) => "expired".to_owned(),
        };
        vec![expires.clone(), left, what]
    };
    for certificate in certificates {
        let what = format!("{} of {}", certificate.certificate, certificate.used_by.join(", "));
        rows.push(row(&certificate.expires, certificate.expires_in_seconds, what));
    }
    for credential in credentials {
        let what = format!("{} of backend {}", credential.part, credential.backend);
        rows.push(row(&credential.expires, credential.expires_in_seconds, what));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_in_days_unless_it_is_short() {
        let table = [
            (40 * 86_400 + 5, "40 days"),
            (172_800, "2 days"),
            (172_799, "1day 23h 59m 59s"),
            (0, "0s"),
            (-1, "expired"),
        ];
        for (seconds, expected) in table {
            let certificate = CertificateStatus {
                certificate: "cert.pem".to_owned(),
                expires: "2026-12-01T00:00:00.000Z".to_owned(),
                expires_in_seconds: seconds,
                used_by: vec!["admin".to_owned(), "listener [::]:443".to_owned()],
            };
            let rows = expiry_rows(&[certificate], &[]);
            let expected = ["2026-12-01T00:00:00.000Z", expected, "cert.pem of admin, listener [::]:443"];
            assert_eq!(rows.last().unwrap()[..], expected, "{seconds}");
        }
    }
}
