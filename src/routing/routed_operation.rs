//! What a request would have a backend do, as far as it decides which backends are available to it.

use crate::azure::Operation;

/// An operation, and the tier of service that it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoutedOperation {
    /// The operation.
    pub operation: Operation,
    /// Whether the request asks for flex processing, whose capacity can be used up while other requests are served.
    pub is_flex: bool,
}

impl From<Operation> for RoutedOperation {
    fn from(operation: Operation) -> Self {
        Self { operation, is_flex: false }
    }
}
