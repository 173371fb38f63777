//! How a work request can end: the statuses of an EFA card, as rdma-core and libfabric number them.
//!
//! The number is what libfabric shows as `prov_errno`. Source: `enum efa_io_comp_status` in rdma-core's `efa_io_defs.h`; the
//! verbs status beside each is what rdma-core's efa provider translates it to.

/// Status of a completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Thrown out because its queue pair was put into the error state.
    Flushed = 1,
    /// The queue pair failed inside the card.
    QpInternalError = 2,
    /// The card cannot do that operation.
    UnsupportedOp = 3,
    /// The address handle is not valid.
    InvalidAh = 4,
    /// The local key is unknown, or does not cover the bytes, or lacks the access.
    InvalidLkey = 5,
    /// The message is longer than the card takes.
    BadLength = 6,
    /// The remote key is unknown, or does not cover the bytes, or lacks the access.
    RemoteBadAddress = 7,
    /// The remote side reset the connection.
    RemoteAbort = 8,
    /// The remote queue pair does not exist or is not ready.
    RemoteBadDestQpn = 9,
    /// The remote side has posted no receive.
    RemoteRnr = 10,
    /// The posted receive is too short.
    RemoteBadLength = 11,
    /// The remote side answered nonsense.
    RemoteBadStatus = 12,
    /// The remote side has answered before and does not any more.
    UnresponsiveRemote = 13,
    /// The remote side has no address handle for us, which RDMA needs.
    RemoteUnknownPeer = 14,
    /// The remote side has never answered.
    UnreachableRemote = 15,
    /// The two sides' features do not go together.
    FeatureMismatch = 18,
}

/// All statuses, in the order of their numbers.
pub const ALL: [Status; 17] = [
    Status::Ok,
    Status::Flushed,
    Status::QpInternalError,
    Status::UnsupportedOp,
    Status::InvalidAh,
    Status::InvalidLkey,
    Status::BadLength,
    Status::RemoteBadAddress,
    Status::RemoteAbort,
    Status::RemoteBadDestQpn,
    Status::RemoteRnr,
    Status::RemoteBadLength,
    Status::RemoteBadStatus,
    Status::UnresponsiveRemote,
    Status::RemoteUnknownPeer,
    Status::UnreachableRemote,
    Status::FeatureMismatch,
];

impl Status {
    /// The card's number for it, libfabric's `prov_errno`.
    pub const fn vendor(self) -> u32 {
        self as u32
    }

    /// The status with that number.
    pub fn from_vendor(number: u32) -> Option<Status> {
        ALL.into_iter().find(|status| status.vendor() == number)
    }

    /// `enum ibv_wc_status`, as rdma-core translates it.
    pub const fn wc_status(self) -> u32 {
        match self {
            Status::Ok => 0,
            Status::Flushed => 5,
            Status::QpInternalError | Status::UnsupportedOp | Status::InvalidAh => 2,
            Status::InvalidLkey => 4,
            Status::BadLength => 1,
            Status::RemoteBadAddress => 10,
            Status::RemoteAbort => 16,
            Status::RemoteBadDestQpn => 15,
            Status::RemoteRnr => 13,
            Status::RemoteBadLength | Status::FeatureMismatch => 9,
            Status::RemoteBadStatus => 7,
            Status::UnresponsiveRemote | Status::UnreachableRemote => 20,
            Status::RemoteUnknownPeer => 11,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_there_and_back() {
        for status in ALL {
            assert_eq!(Status::from_vendor(status.vendor()), Some(status));
        }
        assert_eq!(Status::from_vendor(16), None);
    }
}
