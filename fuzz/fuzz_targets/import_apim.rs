//! Any bytes are imported as a policy and as backends without a panic, and what comes out passes the check of
//! configurations. A NUL byte separates the two files; the policy may have a fragment after another.
#![no_main]

use std::path::Path;

use aoai_lb::config::parse_and_check_yaml;
use aoai_lb::import_apim::{InputFile, import};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.split(|byte| *byte == 0);
    let file = |name: &str, bytes: &[u8]| InputFile { name: name.to_owned(), bytes: bytes.to_vec() };
    let policy = file("policy.xml", parts.next().unwrap_or_default());
    let backends: Vec<_> = parts.next().map(|bytes| file("backends.json", bytes)).into_iter().collect();
    let fragments = parts.next().map(|bytes| file("fragment-a.xml", bytes));
    let policies: Vec<_> = std::iter::once(policy).chain(fragments).collect();
    let Ok(imported) = import(&policies, &backends) else { return };
    let variable = |name: &str| {
        let index = imported.variables.iter().position(|(known, _)| known == name)?;
        Some(match imported.variables[index].1 {
            "a URL" => format!("https://host-{index}.openai.azure.com"),
            "a SHA-256" => format!("{:064x}", index + 1),
            "an id" => format!("00000000-0000-0000-0000-{index:012}"),
            "a version" => "2024-10-21".to_owned(),
            "a number" => "1000".to_owned(),
            _ => format!("value-{index}"),
        })
    };
    if let Err(problems) = parse_and_check_yaml(&imported.yaml, Path::new("/nonexistent"), &variable) {
        panic!("{problems}\n{}", imported.yaml);
    }
});
