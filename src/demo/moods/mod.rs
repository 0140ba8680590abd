//! Moods: the ways in which a simulated resource can be told to misbehave.

pub(in crate::demo) mod mood;
pub(in crate::demo) mod mood_selector;
pub(in crate::demo) mod simulated_error;
