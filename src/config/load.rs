//! From a file to a checked configuration.

use std::path::{Path, PathBuf};

use super::check;
use super::error::{ConfigError, ConfigProblem};
use super::schema::Config;
use super::yaml::{ProblemCollector, YamlNode, parse_document};

/// A good configuration, and what is worth a second look in it.
#[derive(Clone, Debug)]
pub struct CheckedConfig {
    /// The configuration.
    pub config: Config,
    /// What is allowed but unlikely to be meant.
    pub warnings: Vec<ConfigProblem>,
    /// SHA-256 of the text, in hexadecimal.
    pub file_sha256: String,
}

/// A variable of the process's environment, which is what it was at the start.
pub fn environment_variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Reads and checks the file at `path`. Relative paths in it start at its own directory.
///
/// `env` is the environment for `${NAME}`; a reload passes that of the process start.
///
/// # Errors
/// Every problem of the file at once, or the one that keeps it from being read.
pub fn load_file(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<CheckedConfig, ConfigError> {
    parse_yaml(&read_file(path)?, base_directory(path), env)
}

fn read_file(path: &Path) -> Result<String, ConfigError> {
    let refused = |reason: String| ConfigError {
        errors: vec![ConfigProblem {
            key_path: String::new(),
            message: format!("cannot read {}: {reason}", path.display()),
        }],
        warnings: Vec::new(),
    };
    let bytes = std::fs::read(path).map_err(|e| refused(e.to_string()))?;
    String::from_utf8(bytes).map_err(|_| refused("it is not UTF-8 text".to_owned()))
}

/// Where relative paths of a file start.
fn base_directory(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// Where the process of this file listens for upgrades, also if the rest of the file is bad.
///
/// # Errors
/// When the file cannot be read, or what it says of the socket is no path.
pub fn load_upgrade_socket_path(
    path: &Path,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<PathBuf, ConfigError> {
    let text = read_file(path)?;
    let problems = ProblemCollector::new(base_directory(path), env);
    let root = parse_document(&text, &problems);
    let socket = root.and_then(|root| check::read_upgrade_socket_path(&YamlNode::root(&root, &problems)));
    let (errors, warnings) = problems.into_problems();
    socket.ok_or(ConfigError { errors, warnings })
}

/// Checks a configuration that is at hand as text; `base` is where relative paths start.
///
/// # Errors
/// Every problem of the text at once; a YAML syntax error hides all others.
pub fn parse_yaml(
    text: &str,
    base: &Path,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<CheckedConfig, ConfigError> {
    let problems = ProblemCollector::new(base, env);
    let root = parse_document(text, &problems);
    let config = root.and_then(|root| check::read_config(&YamlNode::root(&root, &problems)));
    let (errors, warnings) = problems.into_problems();
    match config {
        Some(config) if errors.is_empty() => {
            let file_sha256 = openssl::sha::sha256(text.as_bytes());
            Ok(CheckedConfig {
                config,
                warnings,
                file_sha256: file_sha256.iter().map(|byte| format!("{byte:02x}")).collect(),
            })
        }
        _ => Err(ConfigError { errors, warnings }),
    }
}
