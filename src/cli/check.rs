//! `aoai-lb check`: reports the problems of a configuration file, and with `--live` those of its
//! backends.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Instant;

use super::cli_error::CliError;
use super::config_file::{ConfigArguments, print_warnings};
use super::runtime::start_background_runtime;
use crate::config::{CheckedConfig, Config, problem_report};
use crate::credentials::Keyring;
use crate::gateway::ProcessState;
use crate::proxy::upstream::dns::AddressBook;
use crate::proxy::upstream::live_check;
use crate::record::Recorder;
use crate::server::build_config::build_active_config;

pub(super) fn run(arguments: &ConfigArguments, live: bool) -> Result<(), CliError> {
    let path = arguments.file();
    let checked = arguments.load()?.checked;
    if !checked.unusable_paths.is_empty() {
        return Err(CliError(problem_report(&checked.unusable_paths, &checked.warnings)));
    }
    print_warnings(&checked)?;
    if live && !check_backends_live(checked)? {
        return Err(CliError(format!("{}: some checks failed", path.display())));
    }
    writeln!(io::stdout(), "{}: good", path.display())?;
    Ok(())
}

/// Checks every backend and prints the findings. Returns whether all checks passed.
fn check_backends_live(checked: CheckedConfig) -> Result<bool, CliError> {
    let background = start_background_runtime()?;
    let keyring = Keyring::new(background.handle());
    // These requests are not recorded.
    let checked = CheckedConfig { config: Config { record: None, ..checked.config }, ..checked };
    let recorder = Recorder::start(&checked.config, &keyring, background.handle())?;
    let process = Arc::new(ProcessState::new(Instant::now(), recorder, keyring));
    let findings = background.block_on(async {
        let active_config = build_active_config(&checked.config, &AddressBook::default(), &process).await?.0;
        Ok::<_, CliError>(live_check::check_backends(&active_config).await)
    })?;
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
