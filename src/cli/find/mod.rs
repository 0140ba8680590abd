//! `aoai-lb find`: the record of one request, wherever it is by now, as a story.

mod found;
mod line_scan;
mod not_found;
mod recent_trouble;
mod request_id;
mod search;
mod story;
mod time_spent;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::SystemTime;

use clap::Args;

use self::found::FoundRecords;
use self::not_found::{ConfiguredRecords, NotFound};
use self::recent_trouble::add_recent_requests;
use self::request_id::RequestId;
use self::search::{Search, Searched};
use self::story::story;
use super::cli_error::CliError;
use super::config_file::ConfigArguments;
use super::output::palette;
use super::progress::Progress;
use super::text::is_unsafe_in_terminal;
use crate::config::Config;

/// The arguments of `aoai-lb find`.
#[derive(Args)]
pub(super) struct FindArguments {
    /// The id of a request: x-aoai-lb-request-id, the client's own, Azure's apim-request-id, or the id of its trace.
    #[arg(value_name = "ID", value_parser = parse_id)]
    id: String,
    /// Record files (JSON Lines) to search, also compressed ones (.gz). Without any, the spool and the files of the
    /// configuration, rotated and compressed ones included.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    config: ConfigArguments,
    /// Also print the prompt and the completion.
    #[arg(long, conflicts_with = "json")]
    content: bool,
    /// Print the records as they are, one per line, with prompts and completions.
    #[arg(long)]
    json: bool,
    /// Print at most so many requests: the newest of those that have the id.
    #[arg(long, value_name = "COUNT", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
}

/// An id without blanks around it, as it may have been copied.
fn parse_id(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("expected the id of a request".to_owned()),
        id => Ok(id.to_owned()),
    }
}

/// Finds the records of an id and prints them.
pub(super) fn run(arguments: &FindArguments) -> Result<(), CliError> {
    let id = RequestId::new(&arguments.id);
    let is_configured = arguments.files.is_empty();
    let config = is_configured.then(|| arguments.config.load_without_secrets()).transpose()?;
    let config = config.map(|loaded| loaded.checked.config);
    let progress = Progress::start("reading records");
    let mut search = Search::new(&id, arguments.limit.into(), &progress);
    match &config {
        Some(Config { record: Some(record), server, .. }) => {
            search.search_configured(record, server.runtime_directory());
        }
        Some(_) => {}
        None => search.search_files(&arguments.files),
    }
    let Search { mut found, searched, .. } = search;
    let mut admin_problem = None;
    if found.is_empty() && config.as_ref().is_some_and(|config| config.admin.is_some()) {
        progress.set_text("asking the running process");
        admin_problem = add_recent_requests(&id, &arguments.config, &mut found).err();
    }
    drop(progress);
    if found.is_empty() {
        let configured = config.as_ref().map(|config| ConfiguredRecords {
            file: arguments.config.file().display().to_string(),
            record: config.record.as_ref(),
        });
        let admin_problem = admin_problem.map(|problem| problem.to_string());
        let now = SystemTime::now().into();
        let not_found = NotFound { id: id.as_str(), searched: &searched, configured, admin_problem, now };
        return Err(CliError(not_found.message()));
    }
    match print(&found, arguments) {
        // Such as `| head`.
        Err(problem) if problem.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => Ok(printed.and_then(|()| print_remarks(&found, &searched))?),
    }
}

fn print(found: &FoundRecords, arguments: &FindArguments) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let (is_terminal, palette) = (io::stdout().is_terminal(), palette());
    for (number, record) in found.records().enumerate() {
        if arguments.json {
            out.write_all(&if is_terminal {
                json_for_terminal(&record.bytes)
            } else {
                record.bytes.clone()
            })?;
            out.write_all(b"\n")?;
            continue;
        }
        if number > 0 {
            writeln!(out)?;
        }
        for line in story(record, arguments.content) {
            writeln!(out, "{}", line.fitted(None).render(palette))?;
        }
    }
    out.flush()
}

/// What makes the answer less than whole.
fn print_remarks(found: &FoundRecords, searched: &Searched) -> io::Result<()> {
    let mut out = io::stderr();
    if let Some(count) = found.left_out() {
        writeln!(out, "warning: {count} older requests with this id are left out")?;
    }
    for problem in &searched.problems {
        writeln!(out, "warning: not read: {}", super::text::printable(problem))?;
    }
    Ok(())
}

/// The same JSON without what a terminal would act on: JSON itself has only some of these characters escaped.
fn json_for_terminal(json: &[u8]) -> Vec<u8> {
    let mut out = String::with_capacity(json.len());
    for character in String::from_utf8_lossy(json).chars() {
        if character != '\t' && is_unsafe_in_terminal(character) {
            out += &format!("\\u{:04x}", u32::from(character));
        } else {
            out.push(character);
        }
    }
    out.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_on_a_terminal_has_the_same_value_and_no_command() {
        let json = "{\"prompt\":\"a\u{7f}b\u{9b}31m \u{202e}é \\n\",\t\"n\":1}";
        let shown = String::from_utf8(json_for_terminal(json.as_bytes())).unwrap();
        assert_eq!(shown, "{\"prompt\":\"a\\u007fb\\u009b31m \\u202eé \\n\",\t\"n\":1}");
        let [before, after] =
            [json, &shown].map(|json| serde_json::from_str::<serde_json::Value>(json).unwrap());
        assert_eq!(before, after);
    }
}
