//! `aoai-lb import-apim`: a configuration from policies of API Management.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::cli_error::CliError;
use crate::files::read_file;
use crate::import_apim::{Counts, InputFile, import};

/// The largest file.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// The arguments of `import-apim`.
#[derive(Args)]
pub(super) struct ImportArguments {
    /// Policies as XML, in the order in which they apply: global, product, API, operation. Fragments that they include
    /// are given in the same way.
    #[arg(required = true, value_name = "POLICY.xml")]
    policies: Vec<PathBuf>,
    /// Backends, pools and circuit breakers as JSON: an ARM template, what `az bicep build` makes of Bicep, or what the
    /// REST API answers. May be given more than once.
    #[arg(long, value_name = "FILE")]
    backends: Vec<PathBuf>,
}

/// Prints the configuration, and on standard error what became of the policies.
pub(super) fn run(arguments: &ImportArguments) -> Result<(), CliError> {
    let policies = read_files(&arguments.policies)?;
    let backends = read_files(&arguments.backends)?;
    let imported = import(&policies, &backends)?;
    io::stdout().write_all(imported.yaml.as_bytes())?;
    let Counts { mapped, implied, left } = imported.counts;
    writeln!(
        io::stderr(),
        "{mapped} mapped, {implied} implied, {left} without a counterpart: see the comments; variables to set: {}",
        imported.variables.len()
    )?;
    Ok(())
}

fn read_files(paths: &[PathBuf]) -> Result<Vec<InputFile>, CliError> {
    let read = |path: &PathBuf| {
        let name = Path::display(path).to_string();
        match read_file(path, MAX_FILE_BYTES) {
            Ok(bytes) => Ok(InputFile { name, bytes }),
            Err(error) => Err(CliError(format!("{name}: cannot read the file: {error}"))),
        }
    };
    paths.iter().map(read).collect()
}
