//! Loads a configuration: reads the file, parses the YAML and runs all checks.

use std::path::{Path, PathBuf};

use super::check;
use super::error::{ConfigError, ConfigProblem};
use super::schema::{AdminConfig, Config};
use super::yaml::{AllProblems, ProblemCollector, YamlNode, parse_document};
use crate::files::read_text_file;
use crate::yaml::MAX_BYTES;

/// A valid configuration, and the warnings about it.
#[derive(Clone, Debug)]
pub struct CheckedConfig {
    /// The configuration.
    pub config: Config,
    /// What is allowed but probably a mistake.
    pub warnings: Vec<ConfigProblem>,
    /// Paths for records that cannot be used now. `aoai-lb check` reports them as errors. The balancer starts
    /// without them and records as soon as they can be used.
    pub unusable_paths: Vec<ConfigProblem>,
    /// The SHA-256 of the file, in hexadecimal.
    pub file_sha256: String,
}

/// Loads and checks the file at `path`. Relative paths in it start at its directory. `env` looks up the
/// variables for `${NAME}`.
///
/// # Errors
/// All errors of the file at once, or the one that prevents reading it.
pub fn load_and_check_file(
    path: &Path,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<CheckedConfig, ConfigError> {
    check_text(&read_file(path)?, Some(path), ProblemCollector::new(base_directory(path), env))
}

/// Like [`load_and_check_file`], for a command that only needs to know how requests are routed: secrets may be
/// missing, and the files of certificates are not read.
///
/// # Errors
/// As [`load_and_check_file`].
pub fn load_and_check_without_secrets(
    path: &Path,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<CheckedConfig, ConfigError> {
    let problems = ProblemCollector::new(base_directory(path), env).without_secrets();
    check_text(&read_file(path)?, Some(path), problems)
}

fn read_file(path: &Path) -> Result<String, ConfigError> {
    read_text_file(path, MAX_BYTES)
        .map_err(|error| ConfigError::of_file(path, format!("cannot read the file: {error}")))
}

/// The directory that relative paths in a file start at.
fn base_directory(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// The value of `server.upgrade_socket`, even if the rest of the file has errors, so that the running
/// process can still be reached.
///
/// # Errors
/// If the file cannot be read, is not YAML, or the key has an invalid value.
pub fn load_upgrade_socket_path(
    path: &Path,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<PathBuf, ConfigError> {
    let text = read_file(path)?;
    let problems = ProblemCollector::new(base_directory(path), env);
    let root = parse_document(&text, &problems);
    let socket =
        root.as_ref().and_then(|root| check::read_upgrade_socket_path(&YamlNode::root(root, &problems)));
    let AllProblems { errors, warnings, .. } = problems.into_problems(Some(path), root.as_ref());
    socket.ok_or(ConfigError { errors, warnings })
}

/// The block `admin`, even if the rest of the file has errors, so that the running process can still be asked.
/// `None` if there is no such block. Its token is only read if it is needed.
///
/// # Errors
/// If the file cannot be read, is not YAML, or the block is invalid.
pub fn load_admin(
    path: &Path,
    needs_token: bool,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<AdminConfig>, ConfigError> {
    let text = read_file(path)?;
    let problems = ProblemCollector::new(base_directory(path), env);
    let root = parse_document(&text, &problems);
    let admin =
        root.as_ref().and_then(|root| check::read_admin_alone(&YamlNode::root(root, &problems), needs_token));
    let AllProblems { errors, warnings, .. } = problems.into_problems(Some(path), root.as_ref());
    admin.ok_or(ConfigError { errors, warnings })
}

/// Checks a configuration given as text. Relative paths in it start at `base`.
///
/// # Errors
/// All errors of the text at once. A YAML syntax error hides all others.
pub fn parse_and_check_yaml(
    text: &str,
    base: &Path,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<CheckedConfig, ConfigError> {
    check_text(text, None, ProblemCollector::new(base, env))
}

/// Checks the text of this file, or one that is not from a file.
pub(super) fn check_text(
    text: &str,
    file: Option<&Path>,
    problems: ProblemCollector<'_>,
) -> Result<CheckedConfig, ConfigError> {
    let root = parse_document(text, &problems);
    let config = root.as_ref().and_then(|root| check::read_config(&YamlNode::root(root, &problems)));
    let AllProblems { mut errors, warnings, unusable_paths } = problems.into_problems(file, root.as_ref());
    match config {
        Some(config) if errors.is_empty() => {
            let file_sha256 = openssl::sha::sha256(text.as_bytes());
            Ok(CheckedConfig {
                config,
                warnings,
                unusable_paths,
                file_sha256: file_sha256.iter().map(|byte| format!("{byte:02x}")).collect(),
            })
        }
        _ => {
            errors.extend(unusable_paths);
            Err(ConfigError { errors, warnings })
        }
    }
}
