//! On what kind of file system records are kept.

use std::io;
use std::path::Path;

/// The types of file systems that are on another machine or in another process (`statfs(2)`): NFS, SMB, SMB2, CIFS, FUSE,
/// Ceph, 9P, AFS.
const REMOTE_FILE_SYSTEMS: [u64; 8] =
    [0x6969, 0x517b, 0xfe53_4d42, 0xff53_4d42, 0x6573_5546, 0x00c3_6400, 0x0102_1997, 0x5346_414f];

/// File systems in memory: tmpfs, ramfs (`statfs(2)`).
const MEMORY_FILE_SYSTEMS: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// Whether a directory is on a file system in memory, which never waits for a disk.
///
/// # Errors
/// If that cannot be found out, such as if the directory is missing.
pub(super) fn is_in_memory(directory: &Path) -> io::Result<bool> {
    let file_system = rustix::fs::statfs(directory)?;
    Ok(MEMORY_FILE_SYSTEMS.contains(&u64::from(file_system.f_type as u32)))
}

/// Whether a directory is on a file system that hangs for as long as another machine or process is away.
pub(super) fn is_remote(directory: &Path) -> bool {
    let file_system = rustix::fs::statfs(directory);
    file_system.is_ok_and(|found| REMOTE_FILE_SYSTEMS.contains(&u64::from(found.f_type as u32)))
}
