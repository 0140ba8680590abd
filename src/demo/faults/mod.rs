//! What a mood does to a correct response: `response_faults` changes its content, `delivery` its sending.

pub(in crate::demo) mod delivery;
pub(in crate::demo) mod response_faults;
