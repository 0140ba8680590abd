//! Makes text of other services safe to log.

/// The first 64 characters of the text that are printable ASCII and not blank.
pub(super) fn loggable_word(text: &str) -> String {
    text.chars().filter(char::is_ascii_graphic).take(64).collect()
}
