//! What is packaged: the Debian package and the tarball, which are reproducible, what `make install` installs and removes, the
//! manual pages and completions.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const BINARY: &str = env!("CARGO_BIN_EXE_aoai-lb");

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Whether a tool that `make test` installs is there; only a run of a test alone may be without.
fn has_tool(tool: &str) -> bool {
    let is_there = Command::new(tool).arg("--version").output().is_ok();
    assert!(is_there || std::env::var_os("CI").is_none(), "{tool} is not installed");
    if !is_there {
        println!("NOT CHECKED: {tool} is not installed; `sh .ci/packages test` installs it");
    }
    is_there
}

fn succeed(command: &mut Command) -> String {
    let output: Output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}:\n{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// What the binary prints.
fn printed(arguments: &[&str]) -> String {
    succeed(Command::new(BINARY).args(arguments))
}

/// Runs a script of the source with `sh`, after commands that change its surroundings.
fn script(before: &str, path: &str, arguments: &[&Path]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{before}; exec sh \"$@\""), "sh"]).arg(source(path)).args(arguments);
    command
}

/// Every file and directory below a directory with its mode, and for files the content.
fn tree_of(directory: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut open = vec![directory.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(directory).unwrap().to_str().unwrap().to_owned();
            let mode = path.symlink_metadata().unwrap().permissions().mode() & 0o7777;
            let content = if path.is_dir() { Vec::new() } else { fs::read(&path).unwrap() };
            found.insert(name, (mode, content));
            if path.is_dir() {
                open.push(path);
            }
        }
    }
    found
}

#[test]
fn the_package_has_the_same_bytes_whenever_and_wherever_it_is_built() {
    if !has_tool("dpkg-deb") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let build = |name: &str, before: &str| {
        let output = directory.path().join(name);
        fs::create_dir(&output).unwrap();
        // A copy with a new time, of which the package must know nothing.
        let binary = output.join("the-program");
        fs::copy(BINARY, &binary).unwrap();
        let mut command = script(before, "systemd/deb/build", &[&binary, &output]);
        let package = succeed(command.env("COMPRESSION", "none"));
        fs::read(package.trim()).unwrap()
    };
    let first = build("one", "umask 077; export TZ=Pacific/Kiritimati LC_ALL=C");
    let second = build("two", "umask 002; export TZ=America/Adak LC_ALL=C.UTF-8 HOME=/nonexistent");
    assert!(first == second, "two builds of the package differ");
    let path = directory.path().join("package.deb");
    fs::write(&path, first).unwrap();
    let conffiles = succeed(Command::new("dpkg-deb").arg("--info").arg(&path).arg("conffiles"));
    assert_eq!(conffiles, "/etc/aoai-lb/aoai-lb.yaml\n/etc/aoai-lb/environment\n");
    let contents = succeed(Command::new("dpkg-deb").arg("--contents").arg(&path));
    assert!(contents.lines().all(|line| line.contains(" root/root ")), "{contents}");
    let mode = |file: &str| {
        let line = contents.lines().find(|line| line.ends_with(&format!(" .{file}")));
        line.unwrap_or_else(|| panic!("no {file} in\n{contents}")).split(' ').next().unwrap().to_owned()
    };
    for (file, expected) in [
        ("/usr/bin/aoai-lb", "-rwxr-xr-x"),
        ("/etc/aoai-lb/aoai-lb.yaml", "-rw-r-----"),
        ("/etc/aoai-lb/environment", "-rw-r-----"),
        ("/usr/share/man/man8/aoai-lb.8.gz", "-rw-r--r--"),
        ("/usr/share/man/man5/aoai-lb.yaml.5.gz", "-rw-r--r--"),
        ("/usr/share/bash-completion/completions/aoai-lb", "-rw-r--r--"),
        ("/usr/share/zsh/vendor-completions/_aoai-lb", "-rw-r--r--"),
        ("/usr/share/fish/vendor_completions.d/aoai-lb.fish", "-rw-r--r--"),
        ("/usr/share/doc/aoai-lb/examples/azure/log-analytics.bicep", "-rw-r--r--"),
        ("/usr/share/doc/aoai-lb/examples/grafana/aoai-lb.json", "-rw-r--r--"),
        ("/usr/share/doc/aoai-lb/examples/prometheus/alerts.yml", "-rw-r--r--"),
    ] {
        assert_eq!(mode(file), expected, "{file}");
    }
}

#[test]
fn the_tarball_is_reproducible_and_uninstall_removes_what_it_has_installed() {
    let directory = tempfile::tempdir().unwrap();
    // A small program in place of the binary, which would take seconds to compress.
    let program = fs::canonicalize("/bin/true").unwrap();
    let build = |name: &str, before: &str| {
        let mut command = script(before, "systemd/tarball", &[&program, &directory.path().join(name)]);
        let path = succeed(command.env("GENERATOR", BINARY).env("SOURCE_DATE_EPOCH", "1700000000"));
        PathBuf::from(path.trim())
    };
    let tarball = build("one", "umask 077; export TZ=Pacific/Kiritimati");
    assert_eq!(fs::read(&tarball).unwrap(), fs::read(build("two", "umask 002")).unwrap());
    let unpacked = directory.path().join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    succeed(Command::new("tar").arg("-xf").arg(&tarball).arg("-C").arg(&unpacked));
    let top = fs::read_dir(&unpacked).unwrap().next().unwrap().unwrap().path();
    assert_eq!(fs::metadata(top.join("usr/bin/aoai-lb")).unwrap().mtime(), 1_700_000_000);

    // What is there already stays as it is.
    let root = directory.path().join("root");
    for (file, text) in [("usr/bin/other", "program"), ("etc/aoai-lb/environment", "KEY=mine\n")] {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let before = tree_of(&root);
    let install = |arguments: &[&str]| {
        succeed(Command::new("sh").arg(top.join("install")).args(arguments).arg(&root));
        tree_of(&root)
    };
    let installed = install(&[]);
    for (name, (mode, content)) in tree_of(&top).iter().filter(|(name, _)| name.starts_with("usr/")) {
        assert_eq!(installed.get(name), Some(&(*mode, content.clone())), "{name}");
    }
    assert_eq!(installed.get("etc/aoai-lb/environment"), before.get("etc/aoai-lb/environment"));
    assert_eq!(installed["etc/aoai-lb/aoai-lb.yaml"].0, 0o640);
    assert_eq!(install(&[]), installed, "a second installation changes something");
    // A later version without one of the files.
    fs::remove_file(top.join("usr/share/doc/aoai-lb/SECURITY.md")).unwrap();
    assert!(!install(&[]).contains_key("usr/share/doc/aoai-lb/SECURITY.md"));

    let mut left = install(&["--uninstall"]);
    assert!(left.remove("etc/aoai-lb/aoai-lb.yaml").is_some(), "the configuration is kept");
    assert_eq!(left, before);
}

#[test]
fn the_manual_pages_have_their_sections_and_render_without_warnings() {
    let sections = |page: &str| -> Vec<String> {
        page.lines().filter_map(|line| line.strip_prefix(".SH ")).map(str::to_owned).collect()
    };
    let (program, file) = (printed(&["man"]), printed(&["reference", "manual"]));
    for wanted in ["SIGNALS", "FILES", "ENVIRONMENT", "EXIT STATUS", "EXAMPLES"] {
        assert!(sections(&program).iter().any(|section| section == wanted), "{wanted}");
    }
    for wanted in ["KEYS", "FILES", "EXAMPLES"] {
        assert!(sections(&file).iter().any(|section| section == wanted), "{wanted}");
    }
    let directory = tempfile::tempdir().unwrap();
    for (name, page) in [("aoai-lb.8", program), ("aoai-lb.yaml.5", file)] {
        assert!(page.is_ascii(), "{name}");
        if has_tool("groff") {
            let path = directory.path().join(name);
            fs::write(&path, page).unwrap();
            let output = Command::new("groff").args(["-man", "-ww", "-Tascii"]).arg(&path).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{name}");
        }
    }
}

#[test]
fn the_example_of_the_manual_page_passes_check() {
    let page = printed(&["reference", "manual"]).replace("\\-", "-");
    let (_, example) = page.split_once(".SH EXAMPLES").unwrap();
    let example = example.split_once(".nf\n").unwrap().1.split_once(".fi").unwrap().0;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("aoai-lb.yaml");
    fs::write(&path, example).unwrap();
    let hash = crate::support::sha256_hex("a key");
    succeed(
        Command::new(BINARY)
            .args(["check", "-c"])
            .arg(&path)
            .env("EASTUS_KEY", "an-azure-key")
            .env("TEAM_A_SHA256", hash),
    );
}

#[test]
fn every_shell_has_its_completions() {
    for (shell, expected) in
        [("bash", "complete -F _aoai__lb"), ("zsh", "#compdef aoai-lb"), ("fish", "complete -c aoai-lb")]
    {
        let text = printed(&["completions", shell]);
        assert!(text.contains(expected), "{shell}: {}", &text[..300.min(text.len())]);
    }
}
