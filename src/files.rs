//! Reads files that an operator names: configuration, secrets, certificates. Only regular files, and no more
//! than a limit: a FIFO would block its reader for ever, and a device may never end.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

use crate::system_error;

/// The largest file of certificate authorities: several times the bundle of a distribution.
pub const MAX_CA_FILE_BYTES: u64 = 4 << 20;

/// Why a file was not read. The text does not name the file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The error of the system.
    #[error("{}", system_error::describe(.0))]
    Io(#[from] io::Error),
    /// It is a directory, a FIFO, a socket or a device.
    #[error("it is {0}, not a regular file")]
    NotRegular(&'static str),
    /// It is larger than it may be.
    #[error("it is larger than {}", show_size(*.0))]
    TooLarge(u64),
    /// It is not text.
    #[error("it is not UTF-8 text")]
    NotText,
}

/// Reads a regular file of at most `max_bytes`. A symbolic link to one is followed.
///
/// # Errors
/// [`FileError`], within the time that the file system takes: there is no wait for a writer.
pub fn read_file(path: &Path, max_bytes: u64) -> Result<Vec<u8>, FileError> {
    let file = open_regular_file(path)?;
    let length = file.metadata()?.len();
    if length > max_bytes {
        return Err(FileError::TooLarge(max_bytes));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    // It may grow while it is read, and files of `/proc` have no length.
    file.take(max_bytes + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes { Err(FileError::TooLarge(max_bytes)) } else { Ok(bytes) }
}

/// Reads a regular file of UTF-8 text, as [`read_file`] does.
///
/// # Errors
/// [`FileError`], also if it is not UTF-8.
pub fn read_text_file(path: &Path, max_bytes: u64) -> Result<String, FileError> {
    String::from_utf8(read_file(path, max_bytes)?).map_err(|_| FileError::NotText)
}

/// Opens a regular file for reading, without a wait if it is something else.
///
/// # Errors
/// [`FileError`] if it cannot be opened or is not a regular file.
pub fn open_regular_file(path: &Path) -> Result<File, FileError> {
    // Non-blocking: opening a FIFO would wait for its writer. It makes no difference to a regular file.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    // Of the open file, not of the path, which may lead elsewhere by now.
    let kind = file.metadata()?.file_type();
    if kind.is_file() {
        return Ok(file);
    }
    Err(FileError::NotRegular(if kind.is_dir() { "a directory" } else { "a FIFO or a device" }))
}

fn show_size(bytes: u64) -> String {
    match bytes {
        _ if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => format!("{}MiB", bytes >> 20),
        _ if bytes >= 1 << 10 && bytes.is_multiple_of(1 << 10) => format!("{}KiB", bytes >> 10),
        _ => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn only_regular_files_of_a_bounded_size_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("fits"), [b'x'; 1024]).unwrap();
        std::fs::write(path("large"), [b'x'; 1025]).unwrap();
        std::fs::write(path("binary"), [0xff]).unwrap();
        mknodat(CWD, path("fifo"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        // Like the credentials of systemd and the secrets of Kubernetes.
        symlink(path("fits"), path("link")).unwrap();
        symlink(path("fifo"), path("link-to-fifo")).unwrap();
        symlink(path("circle"), path("circle")).unwrap();
        let _socket = UnixListener::bind(path("socket")).unwrap();
        for (name, problem) in [
            ("fits", None),
            ("link", None),
            ("large", Some("it is larger than 1KiB")),
            ("binary", Some("it is not UTF-8 text")),
            ("fifo", Some("it is a FIFO or a device, not a regular file")),
            ("link-to-fifo", Some("it is a FIFO or a device, not a regular file")),
            (".", Some("it is a directory, not a regular file")),
            ("/dev/zero", Some("it is a FIFO or a device, not a regular file")),
            ("none", Some("No such file")),
            ("circle", Some("Too many levels")),
            ("socket", Some("No such device")),
        ] {
            match (read_text_file(&path(name), 1024), problem) {
                (Ok(text), None) => assert_eq!(text.len(), 1024, "{name}"),
                (Err(error), Some(problem)) => {
                    assert!(error.to_string().contains(problem), "{name}: {error}");
                }
                (result, _) => panic!("{name}: {result:?}"),
            }
        }
    }

    #[test]
    fn a_file_without_a_length_is_read_to_its_end() {
        assert!(read_text_file(Path::new("/proc/self/status"), 1 << 20).unwrap().contains("Name:"));
        assert!(matches!(read_file(Path::new("/proc/self/status"), 10), Err(FileError::TooLarge(10))));
    }

    #[test]
    fn sizes_are_shown_with_their_unit() {
        let shown: Vec<String> = [16 << 20, 64 << 10, 1000].map(show_size).into();
        assert_eq!(shown, ["16MiB", "64KiB", "1000B"]);
    }
}
