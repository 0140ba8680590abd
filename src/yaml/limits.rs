//! How large a text, and what it stands for, may be.

/// The largest file. It is checked before the text is parsed.
pub const MAX_BYTES: u64 = 16 << 20;
/// The deepest nesting of lists and mappings.
pub const MAX_DEPTH: usize = 64;
/// The most keys and values, with those that aliases repeat: eighty thousand clients.
pub(super) const MAX_VALUES: usize = 1_000_000;
/// The most text of all keys and values, with what aliases repeat.
pub(super) const MAX_TEXT_BYTES: usize = 2 * MAX_BYTES as usize;

pub(super) fn too_many_values() -> String {
    format!("the file has more than {MAX_VALUES} keys and values, with those that aliases repeat")
}

pub(super) fn too_much_text() -> String {
    format!("the file has more than {}MiB of text, with what aliases repeat", MAX_TEXT_BYTES >> 20)
}

pub(super) fn too_deep() -> String {
    format!("lists and mappings are nested deeper than {MAX_DEPTH} levels")
}
