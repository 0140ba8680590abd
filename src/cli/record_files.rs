//! Opens record files for the commands that read them.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use super::progress::Progress;
use crate::system_error::describe;

/// How much of a compressed file is read at a time.
const COMPRESSED_BUFFER_BYTES: usize = 256 * 1024;

/// Opens a record file, and decompresses what is read from it if its name ends in `.gz`. Its own bytes count as
/// progress.
///
/// # Errors
/// If it cannot be opened.
pub(super) fn open_record_file(path: &Path, progress: &Progress) -> io::Result<Box<dyn Read>> {
    let file = progress.count_bytes(File::open(path)?);
    Ok(if path.extension().is_some_and(|ending| ending == "gz") {
        Box::new(MultiGzDecoder::new(BufReader::with_capacity(COMPRESSED_BUFFER_BYTES, file)))
    } else {
        Box::new(file)
    })
}

/// Why a record file cannot be read, in plain words.
pub(super) fn describe_read_problem(problem: &io::Error) -> String {
    match problem.kind() {
        io::ErrorKind::UnexpectedEof => "its compressed data are cut off".to_owned(),
        _ => describe(problem),
    }
}

/// The sizes of these files together. One whose size is not known counts as empty.
pub(super) fn total_bytes(files: &[PathBuf]) -> u64 {
    files.iter().filter_map(|path| fs::metadata(path).ok()).map(|metadata| metadata.len()).sum()
}
