//! Options of endpoints, each with its type: [`Endpoint::set`](crate::Endpoint::set) and
//! [`Endpoint::get`](crate::Endpoint::get).
//!
//! ```no_run
//! # fn show(endpoint: fabric_safe::Endpoint<fabric_safe::Opened>) -> Result<(), fabric_safe::Error> {
//! use fabric_safe::option;
//!
//! endpoint.set(option::EFA_RNR_RETRY, 7)?; // 7: for ever
//! if endpoint.get(option::EFA_EMULATED_WRITE)? {
//!     println!("writes are emulated with messages: slow");
//! }
//! # Ok(())
//! # }
//! ```

use core::ffi::c_int;
use core::marker::PhantomData;

use fabric_sys as sys;

/// An option whose value is a `T`.
#[derive(Debug)]
pub struct EndpointOption<T> {
    pub(crate) number: c_int,
    value: PhantomData<fn() -> T>,
}

impl<T> Clone for EndpointOption<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for EndpointOption<T> {}

impl<T> EndpointOption<T> {
    const fn new(number: c_int) -> Self {
        EndpointOption { number, value: PhantomData }
    }
}

/// A type that options can have: `bool`, `usize` or `i32`.
pub trait OptionValue: Copy + sealed::Value {}

impl OptionValue for bool {}
impl OptionValue for usize {}
impl OptionValue for i32 {}

pub(crate) mod sealed {
    /// How a value looks in memory.
    pub trait Value: Copy {
        /// The same size, with all bit patterns allowed.
        type Raw: Copy + Default;
        fn to_raw(self) -> Self::Raw;
        fn from_raw(raw: Self::Raw) -> Self;
    }

    impl Value for bool {
        type Raw = u8;
        fn to_raw(self) -> u8 {
            self.into()
        }
        fn from_raw(raw: u8) -> bool {
            raw != 0
        }
    }

    impl Value for usize {
        type Raw = usize;
        fn to_raw(self) -> usize {
            self
        }
        fn from_raw(raw: usize) -> usize {
            raw
        }
    }

    impl Value for i32 {
        type Raw = i32;
        fn to_raw(self) -> i32 {
            self
        }
        fn from_raw(raw: i32) -> i32 {
            raw
        }
    }
}

macro_rules! options {
    ($($(#[$doc:meta])* $name:ident: $value:ty = $number:ident;)*) => {
        $($(#[$doc])* pub const $name: EndpointOption<$value> = EndpointOption::new(sys::$number);)*
    };
}

options! {
    /// Bytes of user data that a connection request can carry.
    CM_DATA_BYTES: usize = FI_OPT_CM_DATA_SIZE;
    /// Longest message in bytes.
    MAX_MESSAGE_BYTES: usize = FI_OPT_MAX_MSG_SIZE;
    /// Longest tagged message in bytes.
    MAX_TAGGED_BYTES: usize = FI_OPT_MAX_TAGGED_SIZE;
    /// Longest read or write in bytes.
    MAX_RMA_BYTES: usize = FI_OPT_MAX_RMA_SIZE;
    /// Longest atomic operation in bytes.
    MAX_ATOMIC_BYTES: usize = FI_OPT_MAX_ATOMIC_SIZE;
    /// Longest injected message in bytes.
    INJECT_MESSAGE_BYTES: usize = FI_OPT_INJECT_MSG_SIZE;
    /// Longest injected tagged message in bytes.
    INJECT_TAGGED_BYTES: usize = FI_OPT_INJECT_TAGGED_SIZE;
    /// Longest injected write in bytes.
    INJECT_RMA_BYTES: usize = FI_OPT_INJECT_RMA_SIZE;
    /// Whether the provider may call CUDA itself.
    CUDA_API_PERMITTED: bool = FI_OPT_CUDA_API_PERMITTED;
    /// Whether the provider may use shared memory between endpoints on one host.
    SHARED_MEMORY_PERMITTED: bool = FI_OPT_SHARED_MEMORY_PERMITTED;
    /// Whether the card accesses device memory itself: 0 where it can, 1 always, 2 if possible, 3 never.
    HMEM_PEER_TO_PEER: i32 = FI_OPT_FI_HMEM_P2P;
    /// EFA: how often the card retries while the peer has no receive posted; 7 is for ever.
    EFA_RNR_RETRY: usize = FI_OPT_EFA_RNR_RETRY;
    /// EFA: whether reads are emulated with messages. Read only.
    EFA_EMULATED_READ: bool = FI_OPT_EFA_EMULATED_READ;
    /// EFA: whether writes are emulated with messages. Read only.
    EFA_EMULATED_WRITE: bool = FI_OPT_EFA_EMULATED_WRITE;
    /// EFA: whether atomic operations are emulated with messages. Read only.
    EFA_EMULATED_ATOMICS: bool = FI_OPT_EFA_EMULATED_ATOMICS;
    /// EFA: whether the card's own reads and writes are used.
    EFA_USE_DEVICE_RDMA: bool = FI_OPT_EFA_USE_DEVICE_RDMA;
    /// EFA: whether aligned pieces of 128 bytes of a message arrive in order.
    EFA_SENDRECV_IN_ORDER: bool = FI_OPT_EFA_SENDRECV_IN_ORDER_ALIGNED_128_BYTES;
    /// EFA: whether aligned pieces of 128 bytes of a write arrive in order.
    EFA_WRITE_IN_ORDER: bool = FI_OPT_EFA_WRITE_IN_ORDER_ALIGNED_128_BYTES;
    /// EFA: whether all peers run the same software on the same platform, which shortens handshakes (2.2 and later).
    EFA_HOMOGENEOUS_PEERS: bool = FI_OPT_EFA_HOMOGENEOUS_PEERS;
    /// EFA: whether writes with immediate values use up no receive (2.5 and later).
    EFA_UNSOLICITED_WRITE_RECV: bool = FI_OPT_EFA_USE_UNSOLICITED_WRITE_RECV;
}
