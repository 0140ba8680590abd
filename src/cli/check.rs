//! `aoai-lb check`: reports the problems of a configuration file, and with `--live` those of what it names: its
//! addresses, the sinks of records, the server of `shared`, and the backends.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Instant;

use super::cli_error::CliError;
use super::config_file::{ConfigArguments, print_warnings};
use super::progress::Progress;
use super::runtime::start_background_runtime;
use crate::config::{CheckedConfig, Config, problem_report};
use crate::credentials::Keyring;
use crate::gateway::ProcessState;
use crate::proxy::upstream::dns::AddressBook;
use crate::proxy::upstream::live_check::{CheckFinding, check_backends};
use crate::record::Recorder;
use crate::record::sink_check::{SinkFinding, check_sinks};
use crate::record::traces::send_empty_request;
use crate::server::build_config::build_active_config;
use crate::server::check_addresses;
use crate::shared::{check_server, find_secret};

pub(super) fn run(arguments: &ConfigArguments, live: bool) -> Result<(), CliError> {
    let path = arguments.file();
    let checked = arguments.load()?.checked;
    if !checked.unusable_paths.is_empty() {
        return Err(CliError(problem_report(&checked.unusable_paths, &checked.warnings)));
    }
    print_warnings(&checked)?;
    if live && !run_live_checks(checked)? {
        return Err(CliError(format!("{}: some checks failed", path.display())));
    }
    writeln!(io::stdout(), "{}: good", path.display())?;
    Ok(())
}

/// Checks addresses, sinks, the server of `shared` and backends, and prints the findings. Returns whether all checks passed.
fn run_live_checks(checked: CheckedConfig) -> Result<bool, CliError> {
    let background = start_background_runtime()?;
    let keyring = Keyring::new(background.handle());
    let progress = Progress::start("checking addresses");
    let mut findings = background.block_on(check_addresses(&checked.config));
    if let Some(record) = &checked.config.record {
        progress.set_text("checking where records go");
        let sinks = background.block_on(check_sinks(record, &checked.config.key_vault, &keyring));
        findings.extend(sinks.into_iter().map(|SinkFinding { key, checked_item, result }| CheckFinding {
            subject: key.to_owned(),
            checked_item: checked_item.to_owned(),
            result,
        }));
    }
    if let Some(traces) = &checked.config.traces {
        let accepted = background.block_on(send_empty_request(traces));
        findings.push(CheckFinding {
            subject: "traces".to_owned(),
            checked_item: "collector".to_owned(),
            result: accepted.map(|status| format!("an empty request was accepted ({status})")),
        });
    }
    if let Some(redis) = &checked.config.shared {
        progress.set_text("checking shared.redis");
        let password = find_secret(redis, &checked.config.key_vault, &keyring);
        let server = background.block_on(check_server(redis, password));
        findings.extend(server.into_iter().map(|(checked_item, result)| CheckFinding {
            subject: "shared.redis".to_owned(),
            checked_item: checked_item.to_owned(),
            result,
        }));
    }
    // The requests to backends are not recorded.
    let checked =
        CheckedConfig { config: Config { record: None, traces: None, ..checked.config }, ..checked };
    let recorder = Recorder::start(&checked.config, &keyring, background.handle())?;
    let process = Arc::new(ProcessState::new(Instant::now(), recorder, keyring));
    progress.set_text("checking backends");
    findings.extend(background.block_on(async {
        let active_config = build_active_config(&checked.config, &AddressBook::default(), &process).await?.0;
        Ok::<_, CliError>(check_backends(&active_config).await)
    })?);
    drop(progress);
    let mut out = io::stdout().lock();
    for finding in &findings {
        writeln!(out, "{finding}")?;
    }
    for backend in &checked.config.disabled_backends {
        writeln!(out, "----  {}: disabled, not checked", backend.name)?;
    }
    process.recorder.shut_down();
    Ok(findings.iter().all(|finding| finding.result.is_ok()))
}
