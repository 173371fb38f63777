//! The engine's errors as exceptions of `weft._errors`, with the engine's words.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

/// A class of `weft._errors`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `Error` itself.
    Other,
    /// `SettingError`
    Setting,
    /// `PeerError`
    Peer,
    /// `RefusedError`
    Refused,
    /// `RangeError`
    Range,
    /// `UnavailableError`
    Unavailable,
    /// `InUseError`
    InUse,
    /// `TimeoutError`
    Timeout,
    /// `CancelledError`
    Cancelled,
    /// `ClosedError`
    Closed,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Other => "Error",
            Self::Setting => "SettingError",
            Self::Peer => "PeerError",
            Self::Refused => "RefusedError",
            Self::Range => "RangeError",
            Self::Unavailable => "UnavailableError",
            Self::InUse => "InUseError",
            Self::Timeout => "TimeoutError",
            Self::Cancelled => "CancelledError",
            Self::Closed => "ClosedError",
        }
    }

    /// The class that says what an error is about.
    pub(crate) fn of(error: &engine::Error) -> Self {
        use engine::Error as E;
        match error {
            E::Setting(_) => Self::Setting,
            E::Restarted { .. } | E::Mooncake { .. } | E::Metadata { .. } => Self::Peer,
            E::Name { .. } | E::Control { .. } => Self::Peer,
            E::NotInSegment { .. } => Self::Range,
            E::Unavailable { .. } => Self::Unavailable,
            E::InUse { .. } => Self::InUse,
            E::Tcp(error) => of_tcp(error),
            E::Fabric(error) => of_fabric(error),
            E::BothPaths { first, .. } => Self::of(first),
            E::Batch { source, .. } => Self::of(source),
            _ => Self::Other,
        }
    }
}

fn of_tcp(error: &tcp_transport::Error) -> Kind {
    use tcp_transport::Error as E;
    match error {
        E::Setting(_) => Kind::Setting,
        E::OutOfBounds { .. } | E::Request(_) => Kind::Range,
        E::AccessDenied { .. } | E::Refused { .. } => Kind::Refused,
        E::Timeout { .. } => Kind::Timeout,
        E::Disconnected { .. }
        | E::PeerRestarted { .. }
        | E::Authentication { .. }
        | E::Protocol { .. }
        | E::Call { .. }
        | E::AnswerLost { .. } => Kind::Peer,
        E::Cancelled => Kind::Cancelled,
        E::ShutDown => Kind::Closed,
        E::Batch { source, .. } => of_tcp(source),
        _ => Kind::Other,
    }
}

fn of_fabric(error: &efa_transport::Error) -> Kind {
    use efa_transport::Error as E;
    match error {
        E::NoLibrary(_) | E::NoProvider { .. } => Kind::Unavailable,
        E::Setting { .. } => Kind::Setting,
        E::Request(_) | E::OutOfBounds { .. } | E::NotRegistered { .. } => Kind::Range,
        E::AccessDenied { .. } => Kind::Refused,
        E::StillInUse { .. } => Kind::InUse,
        E::Timeout { .. } => Kind::Timeout,
        E::UnknownPeer(_)
        | E::Descriptor(_)
        | E::Incompatible { .. }
        | E::NoRail { .. }
        | E::PeerStale { .. }
        | E::PeerDown { .. }
        | E::Failed { .. } => Kind::Peer,
        E::Cancelled => Kind::Cancelled,
        E::ShutDown => Kind::Closed,
        E::Batch { source, .. } => of_fabric(source),
        _ => Kind::Other,
    }
}

/// An exception of this kind with these words.
pub(crate) fn exception(py: Python<'_>, kind: Kind, message: String) -> PyErr {
    match class(py, kind) {
        Ok(class) => PyErr::from_type(class, message),
        Err(error) => error,
    }
}

/// The engine's error as an exception. One of a batch says how many requests failed, too.
pub(crate) fn raise(py: Python<'_>, error: &engine::Error) -> PyErr {
    let exception = exception(py, Kind::of(error), error.to_string());
    if let engine::Error::Batch { failed, total, index, .. } = error {
        let value = exception.value(py);
        let attributes = [("failed", *failed), ("total", *total), ("index", *index)];
        for (name, number) in attributes {
            if let Err(error) = value.setattr(name, number) {
                return error;
            }
        }
    }
    exception
}

fn class(py: Python<'_>, kind: Kind) -> PyResult<Bound<'_, PyType>> {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let module = MODULE.get_or_try_init(py, || py.import("weft._errors").map(Bound::unbind))?;
    let class = module.bind(py).getattr(kind.name())?;
    Ok(class.cast_into::<PyType>()?)
}

/// For what can only go wrong if this package itself is broken.
pub(crate) fn broken(what: &str) -> PyErr {
    PyRuntimeError::new_err(format!("weft is broken: {what}; please report it"))
}

/// `?` for engine calls made while the GIL was free.
pub(crate) trait OrRaise<T> {
    /// The value, or the exception.
    fn or_raise(self, py: Python<'_>) -> PyResult<T>;
}

impl<T> OrRaise<T> for Result<T, engine::Error> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|error| raise(py, &error))
    }
}
