//! The new process's side: everything that can fail is done before the sockets are taken.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Channel, Message, STEP, control_path};
use crate::names::Deployment;
use crate::server::reload::Live;

/// Why nobody's sockets can be taken over.
#[derive(Debug, thiserror::Error)]
pub enum NoPredecessor {
    /// Nobody is there.
    #[error("--upgrade: no running process is reached at {path}; start without --upgrade: {problem}")]
    Nobody {
        /// Its control socket.
        path: PathBuf,
        /// The system's reason.
        problem: io::Error,
    },
    /// It did not go on.
    #[error("--upgrade: the running process broke off: {0}")]
    Broken(io::Error),
    /// It does not want to.
    #[error("--upgrade: the running process goes on: {0}")]
    Declined(String),
}

/// A process that is about to take over.
#[derive(Debug)]
pub struct Heir {
    channel: Channel,
    /// The addresses that it will get sockets of.
    pub addresses: Vec<String>,
    predecessors: Vec<u32>,
}

impl Heir {
    /// Introduces this process to the running one.
    ///
    /// # Errors
    /// [`NoPredecessor`].
    pub async fn introduce(upgrade_socket: &Path) -> Result<Self, NoPredecessor> {
        let path = control_path(upgrade_socket);
        let mut channel =
            Channel::connect(&path).await.map_err(|problem| NoPredecessor::Nobody { path, problem })?;
        let pid = std::process::id();
        channel.say(&Message::Succeed { pid }).await.map_err(NoPredecessor::Broken)?;
        match channel.hear(STEP).await.map_err(NoPredecessor::Broken)? {
            Message::Welcome { addresses, predecessors } => Ok(Self { channel, addresses, predecessors }),
            Message::Failed { why } => Err(NoPredecessor::Declined(why)),
            other => Err(NoPredecessor::Broken(io::Error::other(format!("it said {other:?}")))),
        }
    }

    /// Says that this process cannot serve.
    pub async fn decline(mut self, why: String) {
        let _ = self.channel.say(&Message::Failed { why }).await;
    }

    /// Takes over what is remembered; from then on the sockets may come.
    ///
    /// # Errors
    /// [`NoPredecessor`].
    pub async fn inherit(&mut self, live: &Live) -> Result<(), NoPredecessor> {
        self.channel.say(&Message::Prepared).await.map_err(NoPredecessor::Broken)?;
        match self.channel.hear(STEP).await.map_err(NoPredecessor::Broken)? {
            Message::Inheritance { remembered, learned } => {
                let now = Instant::now();
                remembered.tell(&live.process().memory, now);
                let learned: Vec<_> =
                    learned.iter().filter_map(|name| Deployment::parse(name).ok()).collect();
                live.learn_of(&learned, now);
            }
            Message::Failed { why } => return Err(NoPredecessor::Declined(why)),
            other => {
                return Err(NoPredecessor::Broken(io::Error::other(format!("it said {other:?}"))));
            }
        }
        self.channel.say(&Message::Ready).await.map_err(NoPredecessor::Broken)
    }

    /// Those before this one.
    pub fn predecessors(&self) -> Predecessors {
        Predecessors::new(&self.predecessors)
    }

    /// Says that this process serves.
    pub async fn serves(mut self) {
        let _ = self.channel.say(&Message::Serving { pid: std::process::id() }).await;
    }
}

/// Processes before this one, or the one after it, which finish what they have begun.
#[derive(Debug, Default)]
pub struct Predecessors {
    processes: Vec<(u32, OwnedFd)>,
}

impl Predecessors {
    /// Those of these ids.
    pub fn new(pids: &[u32]) -> Self {
        let open = |pid: &u32| {
            let raw = i32::try_from(*pid).ok().and_then(Pid::from_raw)?;
            Some((*pid, pidfd_open(raw, PidfdFlags::empty()).ok()?))
        };
        Self { processes: pids.iter().filter_map(open).collect() }
    }

    /// The ids of those that are still there.
    pub fn pids(&self) -> Vec<u32> {
        let there = self.processes.iter().filter(|(_, process)| !is_over(process));
        there.map(|(pid, _)| *pid).collect()
    }
}

/// Whether a process has ended: its descriptor is readable then (pidfd_open(2)).
fn is_over(process: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(process, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_predecessor_is_there_until_it_is_not() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let predecessors = Predecessors::new(&[child.id(), u32::MAX]);
        assert_eq!(predecessors.pids(), [child.id()]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(predecessors.pids().is_empty());
    }
}
