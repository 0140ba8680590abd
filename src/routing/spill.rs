//! Why a lower tier has answered: the record's field `spilled`.

/// Why no backend of a higher tier has answered. Of several backends it is the reason of the one that was closest to it:
/// the smaller reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpillReason {
    /// It is left to more urgent classes, or another request went first.
    Shed,
    /// It answered 429, or sent `retry-after`.
    Throttled,
    /// It was tried, and failed or could not serve the request.
    Failed,
    /// Its circuit is open, it does not respond, or its credential is refused.
    Unavailable,
    /// It does not have the deployment.
    Absent,
    /// The operator drains it.
    Drained,
    /// What the request refers to is on another resource.
    Home,
}

impl SpillReason {
    /// The value of the record's field.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shed => "shed",
            Self::Throttled => "throttled",
            Self::Failed => "failed",
            Self::Unavailable => "unavailable",
            Self::Absent => "absent",
            Self::Drained => "drained",
            Self::Home => "home",
        }
    }
}
