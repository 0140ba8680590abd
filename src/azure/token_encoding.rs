//! How a model encodes text as tokens, derived from its name.

/// An encoding of text as tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenEncoding {
    /// `o200k_base`: that of GPT-4o and everything newer.
    O200k,
    /// `cl100k_base`: that of GPT-4, GPT-3.5 and the embeddings.
    Cl100k,
}

/// How the names of newer models begin. `gpt-5` and later are found by their number.
const O200K_NAMES: [&str; 8] = [
    "gpt-4o",
    "gpt4o",
    "gpt-4.",
    "chatgpt-4o",
    "gpt-oss",
    "gpt-realtime",
    "codex-mini",
    "computer-use-preview",
];
/// The same of older models.
const CL100K_NAMES: [&str; 8] =
    ["gpt-4", "gpt-35", "gpt-3.5", "gpt4", "gpt35", "text-embedding-", "davinci-002", "babbage-002"];

impl TokenEncoding {
    /// The encoding of a model, or of a deployment that is named after one, such as `team-a-gpt-4o`. `None` if the
    /// name is not known.
    pub fn of_model(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let is_start = |at: usize| {
            name.get(..at).is_some_and(|before| !before.ends_with(|c: char| c.is_ascii_alphanumeric()))
        };
        name.char_indices()
            .filter(|(at, _)| is_start(*at))
            .find_map(|(at, _)| name.get(at..).and_then(encoding_of_name_start))
    }
}

/// The encoding of the model whose name is at the start of a text.
fn encoding_of_name_start(name: &str) -> Option<TokenEncoding> {
    let begins_with = |model: &&str| {
        // `gpt-42` does not begin with `gpt-4`.
        name.strip_prefix(*model).is_some_and(|rest| {
            model.ends_with(['-', '.']) || !rest.starts_with(|c: char| c.is_ascii_digit())
        })
    };
    if is_numbered_newer_model(name) || O200K_NAMES.iter().any(begins_with) {
        return Some(TokenEncoding::O200k);
    }
    CL100K_NAMES.iter().any(begins_with).then_some(TokenEncoding::Cl100k)
}

/// Whether a name begins like `o3`, `o4-mini` or `gpt-5.1`.
fn is_numbered_newer_model(name: &str) -> bool {
    if let Some((generation, rest)) = name.strip_prefix('o').and_then(split_number) {
        return (1..10).contains(&generation) && (rest.is_empty() || rest.starts_with('-'));
    }
    let numbered = name.strip_prefix("gpt").map(|rest| rest.strip_prefix('-').unwrap_or(rest));
    numbered.and_then(split_number).is_some_and(|(generation, _)| (5..30).contains(&generation))
}

/// The number that a text begins with, and the rest.
fn split_number(text: &str) -> Option<(u32, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at_checked(end)?;
    Some((digits.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::TokenEncoding::{self, Cl100k, O200k};

    #[test]
    fn the_encoding_is_derived_from_the_name() {
        for (name, expected) in [
            ("gpt-4o", Some(O200k)),
            ("gpt-4o-mini-2024-07-18", Some(O200k)),
            ("GPT-4.1-nano", Some(O200k)),
            ("gpt-4.5-preview", Some(O200k)),
            ("chatgpt-4o-latest", Some(O200k)),
            ("gpt-5", Some(O200k)),
            ("gpt-5.6-sol", Some(O200k)),
            ("gpt-5-codex", Some(O200k)),
            ("gpt5-mini", Some(O200k)),
            ("gpt-6", Some(O200k)),
            ("gpt-oss-120b", Some(O200k)),
            ("o1", Some(O200k)),
            ("o3-mini", Some(O200k)),
            ("o4-mini-2025-04-16", Some(O200k)),
            ("codex-mini-latest", Some(O200k)),
            ("gpt-4", Some(Cl100k)),
            ("gpt-4-turbo-2024-04-09", Some(Cl100k)),
            ("gpt-4-0613", Some(Cl100k)),
            ("gpt-35-turbo-16k", Some(Cl100k)),
            ("gpt-3.5-turbo", Some(Cl100k)),
            ("text-embedding-3-large", Some(Cl100k)),
            ("text-embedding-ada-002", Some(Cl100k)),
            ("team-a-gpt-4o", Some(O200k)),
            ("prod_gpt-35-turbo", Some(Cl100k)),
            ("gpt-42", None),
            ("mygpt-4o", None),
            ("foo3", None),
            ("o3d-model", None),
            ("o", None),
            ("gpt", None),
            ("mistral-large-2411", None),
            ("Llama-3.3-70B-Instruct", None),
            ("chat", None),
            ("gpt-é", None),
            ("", None),
        ] {
            assert_eq!(TokenEncoding::of_model(name), expected, "{name}");
        }
    }
}
