//! Reading a provider's errors: what kind of failure was it?

use fabric_safe::{ErrorKind, EventError, OperationError};

use crate::scheduler::retry::Failure;

/// Errno values of Linux, which libfabric uses for its first 256.
mod errno {
    pub(super) const EIO: i32 = 5;
    pub(super) const EACCES: i32 = 13;
    pub(super) const EFAULT: i32 = 14;
    pub(super) const EINVAL: i32 = 22;
    pub(super) const EPERM: i32 = 1;
    pub(super) const EMSGSIZE: i32 = 90;
    pub(super) const ENETDOWN: i32 = 100;
    pub(super) const ENETUNREACH: i32 = 101;
    pub(super) const ECONNABORTED: i32 = 103;
    pub(super) const ECONNRESET: i32 = 104;
    pub(super) const ENOTCONN: i32 = 107;
    pub(super) const ESHUTDOWN: i32 = 108;
    pub(super) const ETIMEDOUT: i32 = 110;
    pub(super) const ECONNREFUSED: i32 = 111;
    pub(super) const EHOSTDOWN: i32 = 112;
    pub(super) const EHOSTUNREACH: i32 = 113;
    pub(super) const EREMOTEIO: i32 = 121;
    pub(super) const ECANCELED: i32 = 125;
    pub(super) const EKEYREJECTED: i32 = 129;
}

/// Completion status of an EFA card, as its driver's header numbers them (`EFA_IO_COMP_STATUS_…`). The `efa` provider adds 4096
/// and more for errors of its own.
mod card {
    pub(super) const FLUSHED: i32 = 1;
    pub(super) const QUEUE_PAIR: i32 = 2;
    pub(super) const UNSUPPORTED: i32 = 3;
    pub(super) const ADDRESS_HANDLE: i32 = 4;
    pub(super) const LOCAL_KEY: i32 = 5;
    pub(super) const TOO_LONG: i32 = 6;
    pub(super) const REMOTE_BAD_ADDRESS: i32 = 7;
    pub(super) const REMOTE_ABORT: i32 = 8;
    pub(super) const REMOTE_BAD_DESTINATION_QP: i32 = 9;
    pub(super) const REMOTE_RNR: i32 = 10;
    pub(super) const REMOTE_UNRESPONSIVE: i32 = 13;
    pub(super) const UNKNOWN_PEER: i32 = 14;
    pub(super) const UNREACHABLE: i32 = 15;
}

/// Whether the queue pair has stopped working, so that only a new endpoint helps.
pub(crate) fn is_flushed(provider: &str, error: &OperationError) -> bool {
    provider.contains("efa") && error.provider_errno() == card::FLUSHED
}

/// The same of a message of the provider's own, which no completion tells of. EFA's provider sends such ones to begin with a peer, and
/// does not send them again: if the queue pair is to blame, both sides wait for each other until there is another one.
pub(crate) fn has_lost_a_message(error: &EventError) -> bool {
    matches!(error.provider_errno, card::FLUSHED | card::QUEUE_PAIR)
}

/// The kind of an operation's failure.
pub(crate) fn classify(provider: &str, error: &OperationError) -> Failure {
    if error.kind() == ErrorKind::Aborted {
        return Failure::Aborted;
    }
    let of = |errno: i32, provider_errno: i32| numbers(provider.contains("efa"), errno, provider_errno);
    of(error.errno().raw(), error.provider_errno())
}

fn numbers(efa: bool, errno: i32, provider_errno: i32) -> Failure {
    if efa {
        match provider_errno {
            card::REMOTE_BAD_ADDRESS => return Failure::Key,
            card::UNSUPPORTED | card::LOCAL_KEY | card::TOO_LONG => return Failure::Operation,
            card::REMOTE_BAD_DESTINATION_QP | card::REMOTE_UNRESPONSIVE | card::UNREACHABLE => {
                return Failure::Peer;
            }
            card::UNKNOWN_PEER => return Failure::Stranger,
            card::FLUSHED
            | card::QUEUE_PAIR
            | card::ADDRESS_HANDLE
            | card::REMOTE_ABORT
            | card::REMOTE_RNR => return Failure::Rail,
            _ => {}
        }
    }
    match errno {
        errno::EKEYREJECTED | errno::EACCES | errno::EPERM | errno::EINVAL => Failure::Key,
        errno::EFAULT | errno::EMSGSIZE => Failure::Operation,
        errno::ECONNABORTED
        | errno::ECONNRESET
        | errno::ENOTCONN
        | errno::ESHUTDOWN
        | errno::ECONNREFUSED
        | errno::EHOSTDOWN
        | errno::EHOSTUNREACH
        | errno::ETIMEDOUT
        | errno::ECANCELED => Failure::Peer,
        errno::EIO | errno::EREMOTEIO | errno::ENETDOWN | errno::ENETUNREACH => Failure::Rail,
        // Whatever else it is: another rail is worth an attempt, and attempts are counted.
        _ => Failure::Rail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_on_efa_is_read_right() {
        // Errno and provider errno as the `efa` provider has reported them for each cause.
        assert_eq!(numbers(true, 22, 7), Failure::Key, "bad key, bad range, deregistered");
        assert_eq!(numbers(true, 107, 9), Failure::Peer, "queue pair closed");
        assert_eq!(numbers(true, 103, 13), Failure::Peer, "process has exited");
        assert_eq!(numbers(true, 103, 4124), Failure::Peer, "the same, found by the provider");
        assert_eq!(numbers(true, 5, 10), Failure::Rail, "receiver not ready");
        assert_eq!(numbers(true, 107, 14), Failure::Stranger, "no address handle there");
        assert_eq!(numbers(true, 22, 2), Failure::Rail, "our own card is dead");
        assert_eq!(numbers(true, 125, 1), Failure::Rail, "flushed");
    }

    #[test]
    fn tcp_has_errnos_only() {
        assert_eq!(numbers(false, errno::EKEYREJECTED, 7), Failure::Key);
        assert_eq!(numbers(false, errno::ECONNREFUSED, 9), Failure::Peer);
        assert_eq!(numbers(false, 9999, 0), Failure::Rail);
    }
}
