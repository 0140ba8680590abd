//! Lists of words as sentences have them, and the word that was probably meant.

/// The closest of `known` to `word`, if one is close enough to be what was meant.
pub(super) fn near<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let plain = |word: &str| word.to_ascii_lowercase().replace('-', "_");
    let allowed = match word.chars().count() {
        0..=3 => 1,
        4..=8 => 2,
        9..=64 => 3,
        _ => return None,
    };
    let word = plain(word);
    let distance = |known: &str| strsim::osa_distance(&word, &plain(known));
    known
        .into_iter()
        .map(|k| (distance(k), k))
        .filter(|(d, _)| *d <= allowed)
        .min_by_key(|(d, _)| *d)
        .map(|(_, k)| k)
}

/// `a`, `a or b`, `a, b or c`.
pub(super) fn either(words: &[&str]) -> String {
    join(words, "or")
}

/// `a`, `a and b`, `a, b and c`.
pub(super) fn all(words: &[&str]) -> String {
    join(words, "and")
}

fn join(words: &[&str], last: &str) -> String {
    match words {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., end] => format!("{} {last} {end}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        let keys = ["name", "endpoint", "tier", "weight", "api_version"];
        for (word, expected) in [
            ("wieght", Some("weight")),
            ("Tier", Some("tier")),
            ("api-version", Some("api_version")),
            ("endpoints", Some("endpoint")),
            ("breaker", None),
            ("", None),
            (&"n".repeat(100), None),
        ] {
            assert_eq!(near(word, keys), expected, "{word}");
        }
    }

    #[test]
    fn lists_read_as_sentences() {
        assert_eq!((either(&["a"]), either(&["a", "b", "c"])), ("a".to_owned(), "a, b or c".to_owned()));
        assert_eq!((all(&[]), all(&["a", "b"])), (String::new(), "a and b".to_owned()));
    }
}
