//! Where everything of a demo is, for its texts and commands.

use std::fs::DirBuilder;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

/// The part of the name of the directory that is random, in characters.
const RANDOM_CHARACTERS: usize = 8;

/// The addresses and files of a demo.
pub(super) struct Places {
    pub(super) listen: SocketAddr,
    pub(super) admin: SocketAddr,
    /// How this binary was called.
    pub(super) program: PathBuf,
    /// What this demo has written: its configuration, records and state.
    pub(super) directory: PathBuf,
}

impl Places {
    /// Creates the directory, which nobody else can read.
    ///
    /// # Errors
    /// The path of the directory and the reason.
    pub(super) fn create(listen: SocketAddr, admin: SocketAddr) -> Result<Self, (PathBuf, io::Error)> {
        let suffix: String = std::iter::repeat_with(fastrand::alphanumeric).take(RANDOM_CHARACTERS).collect();
        let directory = std::env::temp_dir().join(format!("aoai-lb-demo-{suffix}"));
        match DirBuilder::new().mode(0o700).create(&directory) {
            Ok(()) => {
                let program = std::env::args_os().next().unwrap_or_else(|| "aoai-lb".into());
                Ok(Self { listen, admin, program: program.into(), directory })
            }
            Err(problem) => Err((directory, problem)),
        }
    }

    pub(super) fn config_file(&self) -> PathBuf {
        self.directory.join("aoai-lb.yaml")
    }

    pub(super) fn record_file(&self) -> PathBuf {
        self.directory.join("exchanges.jsonl")
    }

    pub(super) fn state_directory(&self) -> PathBuf {
        self.directory.join("state")
    }
}
