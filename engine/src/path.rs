//! Which way the bytes of a segment's requests go.

use std::fmt;

/// Which way the bytes of a segment's requests go.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Path {
    /// TCP, or the copy within the host that the TCP peers have agreed on.
    Tcp(tcp_transport::Path),
    /// libfabric, by its provider; EFA with its fabric, `efa/efa-direct` or `efa/efa`.
    Fabric(String),
    /// The data protocol of Mooncake's TCP transport, to one of its nodes, in this version.
    Mooncake(u8),
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(path) => write!(f, "tcp/{path}"),
            Self::Fabric(what) => f.write_str(what),
            Self::Mooncake(version) => write!(f, "tcp/mooncake-v{version}"),
        }
    }
}

#[cfg(feature = "mooncake")]
impl Chosen {
    /// The Mooncake node that it leads to, if it is one.
    pub(crate) fn mooncake(&self) -> Option<crate::mooncake::Remote> {
        match self {
            Self::Mooncake(remote) => Some(*remote),
            #[cfg(feature = "efa")]
            Self::MooncakeFabric(_, remote) => Some(*remote),
            _ => None,
        }
    }
}

/// The transport that carries this segment's requests.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Chosen {
    Tcp,
    #[cfg(feature = "efa")]
    Fabric(efa_transport::PeerId),
    #[cfg(feature = "mooncake")]
    Mooncake(crate::mooncake::Remote),
    /// A Mooncake node over libfabric; it has no other path to move to.
    #[cfg(all(feature = "mooncake", feature = "efa"))]
    MooncakeFabric(efa_transport::PeerId, crate::mooncake::Remote),
}
