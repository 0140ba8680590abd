//! What the balancer shows to other services in place of a key.

pub mod entra;
