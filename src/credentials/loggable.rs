//! Text of other services, made safe to log.

/// The first 64 printable ASCII characters, without blanks.
pub(super) fn loggable_word(text: &str) -> String {
    text.chars().filter(char::is_ascii_graphic).take(64).collect()
}
