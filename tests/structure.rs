//! The layout of `src/`: no circle of files, imports that run downwards, files of a readable length, and
//! Pingora only where it belongs, and a page about it, `docs/architecture.md`, that is true.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Most lines of a file.
const MAX_LINES: usize = 500;

/// The rooms from top to bottom. A room imports those in later lines; those of one line do not import
/// each other.
const LAYERS: [&[&str]; 12] = [
    &["main"],
    &["cli"],
    &["import_apim", "server"],
    &["admin"],
    &["proxy"],
    &["gateway"],
    &["record"],
    &["routing", "admission"],
    &["shared"],
    &["credentials"],
    &["outbound"],
    &["azure", "config", "demo", "files", "money", "names", "refusal", "state", "system_error", "yaml"],
];

/// What the lowest rooms import nevertheless: words that all rooms share, and how files are read.
const SHARED_WORDS: [&str; 6] = ["files", "money", "names", "refusal", "system_error", "yaml"];

/// Who imports Pingora, by the beginning of the path.
const PINGORA_USERS: [&str; 5] =
    ["src/proxy/", "src/admin/", "src/server/", "src/outbound.rs", "src/routing/weighted_round_robin.rs"];

type ModulePath = Vec<String>;

/// The source files and what they import from each other.
struct SourceTree {
    /// The file of each module.
    files: BTreeMap<ModulePath, String>,
    /// The text of each file, without comments and test modules.
    texts: BTreeMap<String, String>,
    /// What a `pub use` offers under another path.
    reexports: BTreeMap<ModulePath, ModulePath>,
}

impl SourceTree {
    fn read() -> Self {
        let mut paths = Vec::new();
        list_files(Path::new("src"), &["rs"], &mut paths);
        let mut tree = Self { files: BTreeMap::new(), texts: BTreeMap::new(), reexports: BTreeMap::new() };
        for path in paths {
            let name = path.to_string_lossy().into_owned();
            if name.ends_with("tests.rs") || name.contains("/tests/") {
                continue;
            }
            tree.files.insert(module_of(&name), name.clone());
            tree.texts.insert(name, production_code(&fs::read_to_string(&path).unwrap()));
        }
        for (name, text) in &tree.texts {
            let module = module_of(name);
            for (is_public, used) in use_statements(text) {
                for (path, alias) in is_public.then(|| expand(&used)).into_iter().flatten() {
                    let is_child = tree.files.contains_key(&child(&module, &path[0]));
                    let target = match absolute(&path, &module) {
                        Some(target) => target,
                        None if is_child => [module.clone(), path].concat(),
                        None => continue,
                    };
                    tree.reexports.insert(child(&module, &alias), target);
                }
            }
        }
        tree
    }

    /// The file that a path leads to, past re-exports.
    fn resolve(&self, path: &[String]) -> Option<&str> {
        let mut path = path.to_vec();
        'again: for _ in 0..8 {
            for length in (1..=path.len()).rev() {
                if let Some(target) = self.reexports.get(&path[..length]) {
                    path = [target.as_slice(), &path[length..]].concat();
                    continue 'again;
                }
                if let Some(file) = self.files.get(&path[..length]) {
                    return Some(file);
                }
            }
            return None;
        }
        None
    }

    /// The files that a file imports something of.
    fn imports(&self, file: &str) -> BTreeSet<&str> {
        let (module, text) = (module_of(file), &self.texts[file]);
        let used = use_statements(text).into_iter().filter(|(is_public, _)| !is_public);
        let used = used.flat_map(|(_, tree)| expand(&tree)).map(|(path, _)| path);
        let inline = inline_paths(text);
        let paths = used.chain(inline).filter_map(|path| absolute(&path, &module));
        let files: BTreeSet<&str> = paths.filter_map(|path| self.resolve(&path)).collect();
        files.into_iter().filter(|other| *other != file).collect()
    }
}

/// The files below a directory whose names end so.
fn list_files(directory: &Path, extensions: &[&str], into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            list_files(&path, extensions, into);
        } else if path.extension().is_some_and(|found| extensions.iter().any(|wanted| found == *wanted)) {
            into.push(path);
        }
    }
}

/// The module of a file, below the crate.
fn module_of(file: &str) -> ModulePath {
    let path = file.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    if path == "lib" { Vec::new() } else { path.split('/').map(str::to_owned).collect() }
}

/// The folder of a path below `src/`, with its last slash.
fn folder_of(path: &str) -> String {
    let path = path.trim_start_matches("src/");
    path.rfind('/').map_or_else(String::new, |at| path[..=at].to_owned())
}

fn child(module: &[String], name: &str) -> ModulePath {
    [module, &[name.to_owned()]].concat()
}

/// The text without comments and without what only tests see.
fn production_code(text: &str) -> String {
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    let text = lines.collect::<Vec<_>>().join("\n");
    text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().to_owned()
}

/// The `use` statements of a text: whether each is public, and its tree.
fn use_statements(text: &str) -> Vec<(bool, String)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("use ") {
        let before = text[..at].rsplit('\n').next().unwrap_or_default().trim();
        let is_statement = before.is_empty() || (before.starts_with("pub") && !before.contains(' '));
        let is_restricted = before.starts_with("pub(");
        if is_statement || is_restricted {
            let tree = text[at + 4..].split(';').next().unwrap_or_default();
            found.push((!before.is_empty(), tree.split_whitespace().collect::<Vec<_>>().join(" ")));
        }
    }
    found
}

/// The paths of a use tree, each with the name that it brings into scope.
fn expand(tree: &str) -> Vec<(ModulePath, String)> {
    if let Some((prefix, rest)) = tree.split_once('{') {
        let inner = &rest[..rest.rfind('}').unwrap_or(rest.len())];
        let parts = split_at_top_level(inner);
        return parts.iter().flat_map(|part| expand(&format!("{prefix}{}", part.trim()))).collect();
    }
    let (path, alias) = tree.split_once(" as ").unwrap_or((tree, ""));
    let mut path: ModulePath = path.split("::").map(|part| part.trim().to_owned()).collect();
    if path.len() > 1 && path.last().is_some_and(|last| last == "self" || last == "*") {
        path.pop();
    }
    let name =
        if alias.is_empty() { path.last().cloned().unwrap_or_default() } else { alias.trim().to_owned() };
    vec![(path, name)]
}

fn split_at_top_level(text: &str) -> Vec<String> {
    let (mut depth, mut parts) = (0, vec![String::new()]);
    for character in text.chars() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        match character {
            ',' if depth == 0 => parts.push(String::new()),
            _ => parts.last_mut().unwrap().push(character),
        }
    }
    parts.retain(|part| !part.trim().is_empty());
    parts
}

/// Paths within expressions and types, such as `super::wheel::Wheel`.
fn inline_paths(text: &str) -> Vec<ModulePath> {
    let is_part_of_path = |character: char| character.is_alphanumeric() || matches!(character, '_' | ':');
    let is_use = |statement: &str| {
        let statement = statement.trim_start();
        statement.starts_with("use ") || (statement.starts_with("pub") && statement.contains(" use "))
    };
    let statements: Vec<&str> = text.split(';').filter(|statement| !is_use(statement)).collect();
    // `pub(in crate::proxy)` says who may use something, not what is used.
    let text = statements.join(";").replace("pub(in crate::", "pub(in ");
    let words = text.split(|character: char| !is_part_of_path(character));
    let paths = words.filter(|word| {
        ["crate::", "super::", "self::"].iter().any(|root| word.starts_with(root)) && !word.ends_with(':')
    });
    paths.map(|path| path.split("::").map(str::to_owned).collect()).collect()
}

/// A path below the crate; `None` for one that begins elsewhere.
fn absolute(path: &[String], module: &[String]) -> Option<ModulePath> {
    match path.first()?.as_str() {
        "crate" => Some(path[1..].to_vec()),
        "self" => Some([module, &path[1..]].concat()),
        "super" => {
            let levels = path.iter().take_while(|part| *part == "super").count();
            let parent = module.get(..module.len().checked_sub(levels)?)?;
            Some([parent, &path[levels..]].concat())
        }
        _ => None,
    }
}

/// Sets of files that import each other, directly or not.
fn circles<'t>(imports: &BTreeMap<&'t str, BTreeSet<&'t str>>) -> Vec<BTreeSet<&'t str>> {
    let reachable = |from: &'t str| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(file) = open.pop() {
            open.extend(imports[file].iter().filter(|next| seen.insert(**next)));
        }
        seen
    };
    let reachable: BTreeMap<&str, BTreeSet<&str>> =
        imports.keys().map(|file| (*file, reachable(file))).collect();
    let mut circles = BTreeSet::new();
    for (file, others) in &reachable {
        if others.contains(file) {
            circles.insert(others.iter().copied().filter(|other| reachable[other].contains(file)).collect());
        }
    }
    circles.into_iter().collect()
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let tree = SourceTree::read();
    let imports = tree.texts.keys().map(|file| (file.as_str(), tree.imports(file))).collect();
    let found = circles(&imports);
    assert!(found.is_empty(), "give the type that both need a file of its own: {found:#?}");
    // The check itself sees what it is to see.
    let known = &imports["src/gateway/mod.rs"];
    assert!(known.contains("src/refusal.rs") && known.contains("src/routing/pool.rs"), "{known:?}");
    let made_up = BTreeMap::from([("a", BTreeSet::from(["b"])), ("b", BTreeSet::from(["a"]))]);
    assert_eq!(circles(&made_up).len(), 1);
}

#[test]
fn imports_run_downwards_from_room_to_room() {
    let tree = SourceTree::read();
    let room = |file: &str| module_of(file).first().cloned().unwrap_or_default();
    let layer = |room: &str| LAYERS.iter().position(|layer| layer.contains(&room));
    let mut upwards = Vec::new();
    for file in tree.texts.keys().filter(|file| *file != "src/lib.rs") {
        let own = room(file);
        let own_layer = layer(&own).unwrap_or_else(|| panic!("{file}: LAYERS does not have this room"));
        for other in tree.imports(file) {
            let imported = room(other);
            let is_downwards = layer(&imported).is_some_and(|layer| own_layer < layer);
            if imported != own && !is_downwards && !SHARED_WORDS.contains(&imported.as_str()) {
                upwards.push(format!("{file} imports {other}"));
            }
        }
    }
    assert!(upwards.is_empty(), "{upwards:#?}");
}

#[test]
fn only_the_adapters_import_pingora() {
    let tree = SourceTree::read();
    let users = tree.texts.iter().filter(|(_, text)| text.contains("pingora::")).map(|(file, _)| file);
    let others: Vec<_> =
        users.filter(|file| !PINGORA_USERS.iter().any(|user| file.starts_with(user))).collect();
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn no_file_is_longer_than_a_reader_can_hold() {
    let mut paths = Vec::new();
    list_files(Path::new("src"), &["rs", "html", "css", "js"], &mut paths);
    assert!(paths.iter().any(|path| path.ends_with("page.html")), "the page is among them");
    let lines = |path: &PathBuf| fs::read_to_string(path).unwrap().lines().count();
    let long: Vec<_> = paths.iter().filter(|path| lines(path) > MAX_LINES).collect();
    assert!(long.is_empty(), "look for a second idea in {long:?}");
}

#[test]
fn files_that_the_architecture_page_names_exist() {
    let page = fs::read_to_string("docs/architecture.md").unwrap();
    let mut missing = Vec::new();
    let mut count = 0;
    for line in page.lines() {
        // A name without a folder stands in the folder of the one before it.
        let mut folder = String::new();
        for name in line.split('`').skip(1).step_by(2) {
            let is_file = Path::new(name).extension().is_some_and(|extension| extension == "rs");
            if !is_file {
                continue;
            }
            count += 1;
            let candidates = [format!("src/{name}"), format!("src/{folder}{name}"), name.to_owned()];
            let Some(path) = candidates.iter().find(|path| Path::new(path).is_file()) else {
                missing.push(name.to_owned());
                continue;
            };
            folder = folder_of(path);
        }
    }
    assert!(count > 40 && missing.is_empty(), "{missing:?}");
}
