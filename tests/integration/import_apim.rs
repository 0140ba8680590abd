//! The command `import-apim`: policies of API Management become configurations that pass `check`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The folder with the policies, and what becomes of each.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/integration/import_apim")
}

/// Runs a command of the binary in a folder. Returns exit code, standard output and standard error.
fn run(
    directory: &Path,
    arguments: &[&str],
    environment: &BTreeMap<String, String>,
) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
    command.current_dir(directory).args(arguments).envs(environment);
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// The variables that a configuration names in its first comments, each with a value of its kind.
fn variables(yaml: &str) -> BTreeMap<String, String> {
    let lines = yaml.lines().take_while(|line| line.starts_with('#')).filter_map(|line| {
        let (name, kind) = line.strip_prefix("# ")?.split_once(": a")?;
        let is_name = !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
        is_name.then(|| (name.to_owned(), kind.split(';').next().unwrap_or_default().trim().to_owned()))
    });
    let value = |(index, (name, kind)): (usize, (String, String))| {
        let value = match kind.as_str() {
            "URL" => format!("https://host-{index}.openai.azure.com"),
            "SHA-256" => format!("{:064x}", index + 1),
            "n id" => format!("00000000-0000-0000-0000-{index:012}"),
            "version" => "2024-10-21".to_owned(),
            "number" => "1000".to_owned(),
            "secret" | "text" => format!("value-{index}"),
            other => panic!("{other}"),
        };
        (name, value)
    };
    lines.enumerate().map(value).collect()
}

/// Writes a configuration to a directory of its own, with what has to be in its environment.
fn write_config(yaml: &str) -> (tempfile::TempDir, String, BTreeMap<String, String>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("aoai-lb.yaml");
    std::fs::write(&path, yaml).unwrap();
    let mut environment = variables(yaml);
    for name in ["LOGS_DIRECTORY", "STATE_DIRECTORY"] {
        environment.insert(name.to_owned(), directory.path().to_str().unwrap().to_owned());
    }
    let path = path.to_str().unwrap().to_owned();
    (directory, path, environment)
}

fn assert_passes_check(yaml: &str) {
    let (directory, path, environment) = write_config(yaml);
    let (code, _, problems) = run(directory.path(), &["check", "-c", &path], &environment);
    assert_eq!((code, problems.as_str()), (0, ""), "{yaml}");
}

/// The arguments for each configuration that is kept, by its name.
const KEPT: [(&str, &[&str], &str); 5] = [
    ("cached-counter", &["cached-counter.xml"], "10 mapped, 11 implied, 1 without"),
    ("priority-list", &["priority-list.xml"], "5 mapped, 15 implied, 0 without"),
    ("pool", &["pool.xml", "--backends", "pool.json"], "8 mapped, 4 implied, 6 without"),
    ("clients", &["clients.xml"], "10 mapped, 4 implied, 4 without"),
    ("including", &["including.xml", "frag-backend-key.xml"], "4 mapped, 6 implied, 2 without"),
];

/// With `UPDATE_KEPT=1`, what is kept is written anew.
#[test]
fn policies_become_the_configurations_that_are_kept() {
    for (name, arguments, summary) in KEPT {
        let (code, yaml, stderr) = run(&folder(), &[&["import-apim"], arguments].concat(), &BTreeMap::new());
        assert_eq!(code, 0, "{stderr}");
        let kept = folder().join(format!("{name}.yaml"));
        if std::env::var_os("UPDATE_KEPT").is_some() {
            std::fs::write(&kept, &yaml).unwrap();
        }
        assert_eq!(yaml, std::fs::read_to_string(&kept).unwrap(), "{name}");
        assert!(stderr.contains(summary), "{name}: {stderr}");
        assert_passes_check(&yaml);
    }
}

#[test]
fn explain_shows_both_backends_of_a_cached_counter() {
    let (_, yaml, _) = run(&folder(), &["import-apim", "cached-counter.xml"], &BTreeMap::new());
    let (directory, path, environment) = write_config(&yaml);
    let request = "/openai/deployments/gpt-4o/chat/completions";
    let (code, text, stderr) =
        run(directory.path(), &["explain", "-c", &path, "POST", request, "--verbose"], &environment);
    assert_eq!(code, 0, "{stderr}");
    for part in [
        "contoso-east: tier 1",
        "contoso-west: tier 1",
        "POST contoso-east.openai.azure.com/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21",
        "POST contoso-west.openai.azure.com/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21",
        "content-type: application/json",
    ] {
        assert!(text.contains(part), "expected {part:?} in:\n{text}");
    }
}

#[test]
fn what_cannot_be_imported_is_an_error_with_its_file_and_line() {
    let directory = tempfile::tempdir().unwrap();
    let deep = format!("<policies>{}", "<a>".repeat(100_000));
    for (text, expected) in [
        (&b"<policies>\n<inbound>"[..], "p.xml:2: an element begins here that does not end"),
        (b"<policies>\n<a b=\"@(x\"/>", "p.xml:2: an expression begins here that does not end"),
        (b"<policies>\n\0", "p.xml:2: has a control character"),
        (b"<policies>\n\xff", "p.xml:2: is not UTF-8 text; save the file as UTF-8"),
        (deep.as_bytes(), "p.xml:1: elements are nested deeper than 64 levels"),
        (
            b"<!DOCTYPE x [<!ENTITY a \"b\"><!ENTITY c \"&a;&a;\">]><policies>&c;</policies>",
            "p.xml:1: has a document type; a policy has none, and no entities",
        ),
        (b"<html/>", "p.xml:1: is not a policy: its root must be policies or fragment"),
        (
            b"<policies>\n<outbund/></policies>",
            "p.xml:2: is not a section of a policy: inbound, backend, outbound or on-error",
        ),
    ] {
        std::fs::write(directory.path().join("p.xml"), text).unwrap();
        let (code, out, stderr) = run(directory.path(), &["import-apim", "p.xml"], &BTreeMap::new());
        assert_eq!((code, out.as_str()), (1, ""), "{stderr}");
        assert!(stderr.contains(expected), "expected {expected:?} in {stderr:?}");
    }
    let (code, _, stderr) = run(directory.path(), &["import-apim", "none.xml"], &BTreeMap::new());
    assert_eq!(code, 1);
    assert!(stderr.contains("none.xml: cannot read the file: No such file"), "{stderr}");
    let (code, _, _) = run(directory.path(), &["import-apim"], &BTreeMap::new());
    assert_eq!(code, 2);
}

#[test]
fn a_reader_that_ends_early_is_no_panic() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_aoai-lb"))
        .current_dir(folder())
        .args(["import-apim", "cached-counter.xml"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut stderr = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut stderr).unwrap();
    child.wait().unwrap();
    assert!(!stderr.contains("panicked"), "{stderr}");
}
