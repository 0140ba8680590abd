//! Imports policies of Azure API Management, and its backends, pools and circuit breakers: they become a configuration of
//! ours, with a comment for each statement that has no counterpart.
//!
//! What is imported is untrusted: reading takes linear time and is limited in depth and number, and every value that is
//! written is escaped. Secrets become variables. `reading` reads the dialect, `backends` the JSON, `recognise` decides what
//! statements mean, `render` writes the result.

mod backends;
mod plan;
mod reading;
mod recognise;
mod render;
mod report;
mod source;
#[cfg(test)]
mod tests;
mod text;
mod variables;
mod yaml;

pub use report::Counts;
pub use source::{ImportError, InputFile};

use self::backends::BackendResources;
use self::reading::{MAX_ELEMENTS, read_policy};
use self::recognise::{Fragments, fragment_key};
use self::report::Report;
use self::source::SourceText;
use self::variables::Variables;

/// A configuration that was made of policies.
pub struct Imported {
    /// Its text.
    pub yaml: String,
    /// What became of the statements.
    pub counts: Counts,
    /// The variables that have to be set, with what each is: a URL, a secret and so on.
    pub variables: Vec<(String, &'static str)>,
}

/// Makes a configuration of policies and fragments, and of files with backends.
///
/// # Errors
/// [`ImportError`] if a file cannot be read: it is not a policy, or exceeds a limit.
pub fn import(policies: &[InputFile], backend_files: &[InputFile]) -> Result<Imported, ImportError> {
    let mut budget = MAX_ELEMENTS;
    let (mut documents, mut fragments) = (Vec::new(), Fragments::new());
    for (index, file) in policies.iter().enumerate() {
        let source = SourceText::new(index, file)?;
        let root = read_policy(&source, &mut budget)?;
        match root.name.as_str() {
            "policies" => documents.push(root),
            "fragment" => {
                fragments.insert(fragment_key(source.stem()), root);
            }
            _ => {
                let problem = "is not a policy: its root must be policies or fragment";
                return Err(ImportError::new(root.place, problem));
            }
        }
    }
    // Fragments alone are read as policies.
    if documents.is_empty() {
        documents = std::mem::take(&mut fragments).into_values().collect();
    }
    let mut resources = BackendResources::default();
    for (index, file) in backend_files.iter().enumerate() {
        resources.read(&SourceText::new(policies.len() + index, file)?)?;
    }
    let (mut variables, mut report) = (Variables::default(), Report::default());
    let plan = recognise::plan(&documents, &fragments, &resources, &mut variables, &mut report)?;
    let names: Vec<String> = policies.iter().chain(backend_files).map(|file| file.name.clone()).collect();
    let counts = report.counts;
    let yaml = render::render(&plan, &variables, &report.comments(), &names);
    let variables =
        variables.list.into_iter().map(|variable| (variable.name, variable.kind.description())).collect();
    Ok(Imported { yaml, counts, variables })
}
