//! What can go wrong in starting software cards.

use std::fmt;
use std::path::PathBuf;

/// Why a run could not be started.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A tool that builds the libraries failed.
    Build {
        /// The tool.
        tool: String,
        /// What it said.
        said: String,
    },
    /// A file or directory could not be made, read or written.
    Io {
        /// What was attempted.
        what: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// A command of the control socket was refused.
    Control {
        /// What the run said.
        said: String,
    },
    /// There is no run in that directory.
    NoRun {
        /// The directory.
        dir: PathBuf,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Build { tool, said } => write!(
                to,
                "`{tool}` could not build the software cards (cargo and a C compiler are needed; set CC for another than cc): {}",
                said.trim()
            ),
            Error::Io { what, error } => write!(to, "cannot {what}: {error}"),
            Error::Control { said } => write!(to, "the run refused the command: {said}"),
            Error::NoRun { dir } => write!(
                to,
                "no software cards are running in {}: pass --dir, or run this inside the command that the launcher started",
                dir.display()
            ),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { error, .. } => Some(error),
            _ => None,
        }
    }
}
