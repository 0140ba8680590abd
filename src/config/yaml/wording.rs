//! Wording of messages: lists of words, and "did you mean" suggestions.

/// The word of `known` that is closest to `word`, if it is close enough to be what was meant.
pub(crate) fn closest_match<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let normalize = |word: &str| word.to_ascii_lowercase().replace('-', "_");
    let max_distance = match word.chars().count() {
        0..=3 => 1,
        4..=8 => 2,
        9..=64 => 3,
        _ => return None,
    };
    let word = normalize(word);
    let distance = |known: &str| strsim::osa_distance(&word, &normalize(known));
    known
        .into_iter()
        .map(|k| (distance(k), k))
        .filter(|(d, _)| *d <= max_distance)
        .min_by_key(|(d, _)| *d)
        .map(|(_, k)| k)
}

/// `a`, `a or b`, `a, b or c`.
pub(crate) fn join_with_or(words: &[&str]) -> String {
    join_words(words, "or")
}

/// `a`, `a and b`, `a, b and c`.
pub(crate) fn join_with_and(words: &[&str]) -> String {
    join_words(words, "and")
}

fn join_words(words: &[&str], last: &str) -> String {
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
    fn only_close_words_are_suggested() {
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
            assert_eq!(closest_match(word, keys), expected, "{word}");
        }
    }

    #[test]
    fn lists_are_joined_as_in_a_sentence() {
        assert_eq!(
            (join_with_or(&["a"]), join_with_or(&["a", "b", "c"])),
            ("a".to_owned(), "a, b or c".to_owned())
        );
        assert_eq!((join_with_and(&[]), join_with_and(&["a", "b"])), (String::new(), "a and b".to_owned()));
    }
}
