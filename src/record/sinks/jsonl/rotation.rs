//! Rotated files: their names, their compression, and the deletion of the oldest.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use flate2::Compression;
use flate2::write::GzEncoder;

/// A file is compressed this long after it was rotated, when no other process can still be writing to it.
pub(super) const COMPRESSION_DELAY: Duration = Duration::from_secs(3);
/// How much of a file is read, and written, at a time to compress it.
const COMPRESSION_BUFFER_BYTES: usize = 256 * 1024;

/// An unused name for the rotated file: `exchanges.jsonl` becomes `exchanges-20261123T080000.123Z.jsonl`, so
/// that names sort by time.
pub(super) fn new_rotated_path(path: &Path, now: SystemTime) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension =
        path.extension().map(|extension| format!(".{}", extension.to_string_lossy())).unwrap_or_default();
    let time = chrono::DateTime::<chrono::Utc>::from(now);
    (0..)
        .map(|added_millis| {
            let time = time + chrono::Duration::milliseconds(added_millis);
            path.with_file_name(format!("{stem}-{}{extension}", time.format("%Y%m%dT%H%M%S%.3fZ")))
        })
        .find(|name| !name.exists() && !gz_path(name).exists())
        .unwrap_or_else(|| path.with_extension("old"))
}

fn gz_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".gz");
    PathBuf::from(name)
}

/// The rotated files of the file at `path`, oldest first.
pub fn list_rotated_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let prefix = format!("{}-", path.file_stem().unwrap_or_default().to_string_lossy());
    let extension =
        path.extension().map(|extension| format!(".{}", extension.to_string_lossy())).unwrap_or_default();
    let is_rotated = |name: &str| {
        let time = name.strip_prefix(&prefix).map(|rest| rest.strip_suffix(".gz").unwrap_or(rest));
        time.and_then(|rest| rest.strip_suffix(&extension)).is_some_and(|time| {
            time.len() == "20261123T080000.123Z".len()
                && time.bytes().all(|b| b.is_ascii_digit() || b"TZ.".contains(&b))
        })
    };
    let mut names: Vec<PathBuf> = fs::read_dir(directory)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(is_rotated))
        .collect();
    names.sort();
    Ok(names)
}

/// Deletes the oldest rotated files beyond `max_files` and compresses the others.
pub(super) fn delete_and_compress_rotated_files(path: &Path, max_files: usize) -> io::Result<()> {
    for name in list_rotated_files(path)?.iter().filter(|name| gz_path(name).exists()) {
        // A process ended after it had compressed this file and before it could delete it.
        remove_if_present(name)?;
    }
    let names = list_rotated_files(path)?;
    let excess = names.len().saturating_sub(max_files);
    let (excess_files, kept_files) = names.split_at(excess);
    for name in excess_files {
        remove_if_present(name)?;
    }
    for name in kept_files.iter().filter(|name| name.extension().is_none_or(|extension| extension != "gz")) {
        let age = fs::metadata(name).and_then(|metadata| metadata.modified()).ok();
        let age = age.and_then(|modified| SystemTime::now().duration_since(modified).ok());
        if age.is_none_or(|age| age >= COMPRESSION_DELAY) {
            compress_file(name)?;
        }
    }
    Ok(())
}

/// Deletes a file. During an upgrade the other process may have deleted it already.
fn remove_if_present(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(problem) if problem.kind() != io::ErrorKind::NotFound => Err(problem),
        _ => Ok(()),
    }
}

/// Replaces a file by its compressed form.
fn compress_file(path: &Path) -> io::Result<()> {
    let mut source = match File::open(path) {
        Err(problem) if problem.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    // The name contains the process id: if two processes compress the same file, each completes its own copy.
    let partial_path = path.with_extension(format!("{}.partial", std::process::id()));
    let target =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&partial_path)?;
    let compressed = compress(&mut source, BufWriter::with_capacity(COMPRESSION_BUFFER_BYTES, target))
        .and_then(|()| fs::rename(&partial_path, gz_path(path)));
    match compressed {
        Ok(()) => remove_if_present(path),
        Err(problem) => {
            remove_if_present(&partial_path)?;
            Err(problem)
        }
    }
}

fn compress(source: &mut impl Read, target: impl Write) -> io::Result<()> {
    let mut encoder = GzEncoder::new(target, Compression::fast());
    let mut buffer = vec![0; COMPRESSION_BUFFER_BYTES];
    loop {
        let read = match source.read(&mut buffer) {
            Ok(0) => return encoder.finish()?.flush(),
            Err(problem) if problem.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        encoder.write_all(buffer.get(..read).unwrap_or_default())?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_old_file(path: &Path, name: &str, text: &str) -> PathBuf {
        let path = path.with_file_name(name);
        fs::write(&path, text).unwrap();
        let old = SystemTime::now() - 2 * COMPRESSION_DELAY;
        File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
        path
    }

    #[test]
    fn rotated_files_are_compressed_and_the_excess_deleted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("exchanges.jsonl");
        fs::write(&path, "now").unwrap();
        for minute in 10..16 {
            write_old_file(
                &path,
                &format!("exchanges-20261123T08{minute}00.000Z.jsonl"),
                &format!("{minute}\n"),
            );
        }
        let others = [
            "exchanges-notes.jsonl",
            "other-20261123T081000.000Z.jsonl",
            "exchanges-20261123T081000.000Z.txt",
        ];
        others.iter().for_each(|name| drop(write_old_file(&path, name, "mine")));
        delete_and_compress_rotated_files(&path, 3).unwrap();
        let names: Vec<String> = list_rotated_files(&path)
            .unwrap()
            .iter()
            .map(|p| p.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(
            names,
            [13, 14, 15].map(|minute| format!("exchanges-20261123T08{minute}00.000Z.jsonl.gz"))
        );
        let mut text = String::new();
        let file = File::open(path.with_file_name(&names[1])).unwrap();
        flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
        assert_eq!(text, "14\n");
        assert!(others.iter().all(|name| path.with_file_name(name).exists()));
        // A file that was rotated just now may still be written to.
        let recent = path.with_file_name("exchanges-20261123T082000.000Z.jsonl");
        fs::write(&recent, "recent").unwrap();
        delete_and_compress_rotated_files(&path, 3).unwrap();
        assert!(recent.exists() && list_rotated_files(&path).unwrap().len() == 3);
    }

    #[test]
    fn a_rotated_file_gets_an_unused_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.jsonl");
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_420_800);
        let first = new_rotated_path(&path, now);
        assert_eq!(first.file_name().unwrap(), "x-20261123T080000.000Z.jsonl");
        fs::write(gz_path(&first), "").unwrap();
        assert_eq!(new_rotated_path(&path, now).file_name().unwrap(), "x-20261123T080000.001Z.jsonl");
    }
}
