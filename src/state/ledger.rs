//! The file in the state directory with the name under which a shared server counts what this instance has used.

use log::warn;
use serde::{Deserialize, Serialize};

use super::StateDirectory;

/// The name of the file.
const FILE_NAME: &str = "ledger.json";
/// The version of its format.
const VERSION: u64 = 1;
/// What follows if the file cannot be used.
const SET_ASIDE: &str = "what this instance has used so far may count twice in limits that instances share";

#[derive(Serialize, Deserialize)]
struct LedgerFile {
    version: u64,
    id: String,
}

/// A new id: 16 hexadecimal digits.
pub fn new_id() -> String {
    format!("{:016x}", fastrand::u64(..))
}

/// The id that the directory has, or a new one that it has from now on; `None` if it cannot be written. Blocks.
pub fn find_or_create(directory: &StateDirectory) -> Option<String> {
    let text = directory.read(FILE_NAME).unwrap_or_else(|problem| {
        directory.set_aside_and_log(FILE_NAME, SET_ASIDE, &problem);
        None
    });
    if let Some(text) = text {
        match parse(&text) {
            Ok(id) => return Some(id),
            Err(problem) => directory.set_aside_and_log(FILE_NAME, SET_ASIDE, &problem),
        }
    }
    replace(directory)
}

/// A new id, which the directory has from now on; `None` if it cannot be written. Blocks.
pub fn replace(directory: &StateDirectory) -> Option<String> {
    let file = LedgerFile { version: VERSION, id: new_id() };
    // Numbers and strings alone cannot fail.
    let text = serde_json::to_string(&file).unwrap_or_default() + "\n";
    match directory.replace(FILE_NAME, text.as_bytes()) {
        Ok(()) => Some(file.id),
        Err(problem) => {
            warn!("server.state_directory: {FILE_NAME} cannot be written: {problem}");
            None
        }
    }
}

fn parse(text: &str) -> Result<String, String> {
    let LedgerFile { version, id } = serde_json::from_str(text).map_err(|problem| problem.to_string())?;
    let is_id = id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    match version {
        VERSION if is_id => Ok(id),
        VERSION => Err("its id is not 16 hexadecimal digits".to_owned()),
        version => Err(format!("it has version {version}, and this binary knows version {VERSION}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_kept_and_one_that_cannot_be_read_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let id = find_or_create(&state).unwrap();
        assert_eq!(find_or_create(&state).unwrap(), id);
        for text in ["", "{}", r#"{"version":1,"id":"x"}"#, r#"{"version":2,"id":"0123456789abcdef"}"#] {
            state.replace(FILE_NAME, text.as_bytes()).unwrap();
            let new = find_or_create(&state).unwrap();
            assert!(new != id && find_or_create(&state).unwrap() == new, "{text}");
        }
        let before = find_or_create(&state).unwrap();
        let new = replace(&state).unwrap();
        assert!(new != before && find_or_create(&state).unwrap() == new);
    }
}
