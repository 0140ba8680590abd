//! Why the tokens of a response are missing from its record.

/// The reason, which is the field `usage_missing` of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsageMissing {
    /// The request or the response has an image, whose size or price in tokens is unknown.
    Image,
    /// The request or the response has audio.
    Audio,
    /// The encoding of the model cannot be derived from its name.
    EncodingUnknown,
    /// The response broke off before any content.
    BrokenOff,
    /// The backend has reported no usage, and the text to count the tokens from is incomplete.
    NotTold,
}

impl UsageMissing {
    /// The value of the record's field.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Audio => "audio",
            Self::EncodingUnknown => "encoding_unknown",
            Self::BrokenOff => "broken_off",
            Self::NotTold => "not_told",
        }
    }
}
