//! Why the tokens of a response are not known.

/// The reason, which a record tells in its field `usage_missing`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsageMissing {
    /// The request or the response has a picture, whose size or whose price in tokens is not known.
    Image,
    /// The request or the response has audio.
    Audio,
    /// The name of the model does not tell how it encodes text.
    EncodingUnknown,
    /// The response broke off before any content.
    BrokenOff,
    /// Nobody has told the tokens, and the text that they could be counted from is not all there.
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
