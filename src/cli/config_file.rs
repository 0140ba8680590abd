//! The configuration file of a command, and the environment that it is expanded with.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::cli_error::CliError;
use crate::config::{self, CheckedConfig, ConfigError, ConfigProblem, Environment, problem_report};

/// The configuration file of the installed service.
pub(super) const DEFAULT_CONFIG_FILE: &str = "/etc/aoai-lb/aoai-lb.yaml";

/// The arguments of every command that reads the configuration.
#[derive(Args)]
pub(super) struct ConfigArguments {
    /// The configuration file.
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_CONFIG_FILE)]
    config: PathBuf,
    /// A file of variables for `${NAME}`, in the syntax of systemd's EnvironmentFile=. A variable of the process
    /// wins over one of the file. [default: the file `environment` beside the configuration, if it may be read]
    #[arg(long, value_name = "FILE")]
    environment: Option<PathBuf>,
}

/// Reads and checks a file with these variables.
type LoadFunction = fn(&Path, &dyn Fn(&str) -> Option<String>) -> Result<CheckedConfig, ConfigError>;

/// A configuration that has no errors, and what it was read from.
pub(super) struct LoadedConfig {
    pub(super) checked: CheckedConfig,
    pub(super) environment: Environment,
}

impl ConfigArguments {
    /// The configuration file, as it was given.
    pub(super) fn file(&self) -> &Path {
        &self.config
    }

    /// The environment file, if it was given.
    pub(super) fn environment_file(&self) -> Option<&Path> {
        self.environment.as_deref()
    }

    /// These arguments with absolute paths, for a process that reads the files again later.
    ///
    /// # Errors
    /// If the working directory is not known.
    pub(super) fn with_absolute_paths(&self) -> io::Result<Self> {
        let environment = self.environment.as_deref().map(std::path::absolute).transpose()?;
        Ok(Self { config: std::path::absolute(&self.config)?, environment })
    }

    /// Reads the environment file. Warnings about it are returned.
    ///
    /// # Errors
    /// If the file was given and cannot be read.
    pub(super) fn load_environment(&self) -> Result<(Environment, Vec<ConfigProblem>), ConfigError> {
        Environment::load(self.environment.as_deref(), &self.config)
    }

    /// Reads and checks the file. Its warnings include those about the environment file.
    ///
    /// # Errors
    /// All problems of the file, warnings included, with their count.
    pub(super) fn load(&self) -> Result<LoadedConfig, CliError> {
        self.load_with(config::load_and_check_file)
    }

    /// Like [`ConfigArguments::load`], but secrets may be missing.
    pub(super) fn load_without_secrets(&self) -> Result<LoadedConfig, CliError> {
        self.load_with(config::load_and_check_without_secrets)
    }

    fn load_with(&self, load: LoadFunction) -> Result<LoadedConfig, CliError> {
        let (environment, mut warnings) = self.load_environment()?;
        match load(&self.config, &|name| environment.variable(name)) {
            Ok(mut checked) => {
                checked.warnings.splice(0..0, warnings);
                Ok(LoadedConfig { checked, environment })
            }
            Err(problems) => {
                warnings.extend(problems.warnings);
                Err(CliError(problem_report(&problems.errors, &warnings)))
            }
        }
    }
}

/// Prints the warnings about a configuration, and how many there are.
pub(super) fn print_warnings(checked: &CheckedConfig) -> io::Result<()> {
    match problem_report(&[], &checked.warnings) {
        report if report.is_empty() => Ok(()),
        report => writeln!(io::stderr(), "{report}"),
    }
}
