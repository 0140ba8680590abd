//! Tells which of a set of processes are still running.

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Processes that this one does not supervise: its predecessors, or its successor. A pidfd is kept of
/// each, so that a reused process id does not mislead.
#[derive(Debug, Default)]
pub struct ProcessSet {
    pidfds_by_pid: Vec<(u32, OwnedFd)>,
}

impl ProcessSet {
    /// The processes of these ids. Those that have exited are left out.
    pub fn from_pids(pids: &[u32]) -> Self {
        let open_pidfd = |pid: &u32| {
            let raw = i32::try_from(*pid).ok().and_then(Pid::from_raw)?;
            Some((*pid, pidfd_open(raw, PidfdFlags::empty()).ok()?))
        };
        Self { pidfds_by_pid: pids.iter().filter_map(open_pidfd).collect() }
    }

    /// The ids of the processes that are still running.
    pub fn running_pids(&self) -> Vec<u32> {
        let running = self.pidfds_by_pid.iter().filter(|(_, pidfd)| !has_exited(pidfd));
        running.map(|(pid, _)| *pid).collect()
    }
}

/// Whether a process has exited: its pidfd is readable then (pidfd_open(2)).
fn has_exited(pidfd: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn an_exited_process_is_no_longer_listed() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let processes = ProcessSet::from_pids(&[child.id(), u32::MAX]);
        assert_eq!(processes.running_pids(), [child.id()]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(processes.running_pids().is_empty());
    }
}
