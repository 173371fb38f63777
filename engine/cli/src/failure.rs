//! How a command can end badly, and the exit status that says so.

use std::path::{Path, PathBuf};

/// Why a command did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// A transfer or its verification failed. Status 1.
    #[error("{0}")]
    Transfer(String),
    /// The arguments, or the environment's settings, make no sense. Status 2.
    #[error("{0}")]
    Usage(String),
    /// A file cannot be read or written. Status 2.
    #[error("cannot {action} {path:?}: {source}")]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A transport or a peer is not there. Status 3.
    #[error("{0}")]
    Unavailable(String),
    /// Everything has been said already; only the exit status is left.
    #[error("exit status {0}")]
    Quiet(u8),
}

impl Failure {
    /// The exit status.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::Transfer(_) => 1,
            Self::Usage(_) | Self::File { .. } => 2,
            Self::Unavailable(_) => 3,
            Self::Quiet(status) => *status,
        }
    }

    pub(crate) fn reading(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::File { action: "read", path: path.to_owned(), source }
    }

    pub(crate) fn writing(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::File { action: "write", path: path.to_owned(), source }
    }

    /// An engine's error while something was set up: peers and transports that are not there.
    pub(crate) fn opening(error: &engine::Error) -> Self {
        match error {
            engine::Error::Setting(_) => Self::Usage(error.to_string()),
            // Not even of the form host:port.
            engine::Error::Name { name, .. } if !has_port(name) => Self::Usage(error.to_string()),
            _ => Self::Unavailable(error.to_string()),
        }
    }

    /// An engine's error while bytes were on their way.
    pub(crate) fn transferring(error: &engine::Error) -> Self {
        Self::Transfer(error.to_string())
    }
}

fn has_port(name: &str) -> bool {
    name.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_those_of_the_manual() {
        let name = |name: &str| engine::Error::Name {
            name: name.into(),
            reason: "it resolves to no address".into(),
        };
        assert_eq!(Failure::opening(&name("nowhere")).status(), 2);
        assert_eq!(Failure::opening(&name("nowhere.invalid:7420")).status(), 3);
        assert_eq!(Failure::opening(&engine::Error::Setting("x".into())).status(), 2);
        assert_eq!(Failure::transferring(&engine::Error::Setting("x".into())).status(), 1);
        assert_eq!(Failure::Quiet(1).status(), 1);
        let missing = Failure::reading(Path::new("/x"))(std::io::ErrorKind::NotFound.into());
        assert!(missing.status() == 2 && missing.to_string().contains("/x"), "{missing}");
    }
}
