//! Why a request did not go to the first backend of its key.

/// Why a request did not go to the first backend of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveReason {
    /// That backend is unavailable, or has refused or failed this request.
    Rest,
    /// It holds more than its share of the tokens in flight.
    Load,
    /// The key is asked so often that it is spread.
    Hot,
    /// The request refers to what another resource has.
    Home,
    /// The class of the request leaves that backend to more urgent ones.
    Shed,
}

impl MoveReason {
    /// All reasons.
    pub const ALL: [Self; 5] = [Self::Rest, Self::Load, Self::Hot, Self::Home, Self::Shed];

    /// Its name in records and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rest => "rest",
            Self::Load => "load",
            Self::Hot => "hot",
            Self::Home => "home",
            Self::Shed => "shed",
        }
    }
}
