//! The running simulator: it listens, reads requests, and sends responses.

pub(in crate::demo) mod simulator;

mod connection_loop;
mod request_handler;
mod respond;
