//! What is read of a file, for the reference of all keys, which is made from the readers themselves.

/// What kind of value a key has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ValueKind {
    /// A mapping with these keys.
    Mapping(Vec<String>),
    /// A mapping whose keys are names.
    NamedEntries,
    /// A list.
    List,
    /// Any string.
    Text,
    /// The path of a file or directory.
    Path,
    /// One of these words.
    Choice(Vec<String>),
    /// A whole number from the first to the last.
    Integer(u64, u64),
    /// A number from 0 to this one, with or without decimals.
    Decimal(String),
    /// true or false.
    Bool,
    /// A duration with its unit.
    Duration,
    /// A percentage.
    Percentage,
    /// A size with its unit.
    ByteSize,
}

/// Learns how the values of a file are read.
pub(crate) trait ReadObserver {
    /// The value at this path was read as one of this kind. A value may be read as several.
    fn on_read(&self, key_path: &str, kind: ValueKind);
}
