//! Realtime sessions, which are tunnels of bytes: what the backend sends is observed as it passes, and a record is
//! made of each response.

pub mod frame_follower;
mod observer;
mod session_facts;
mod turns;

pub(in crate::proxy) use self::observer::RealtimeObserver;
