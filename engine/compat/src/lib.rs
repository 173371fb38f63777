//! Mooncake's conventions on the engine: memory by address, peers by session name, one status code for everything.
//!
//! Programs that were written for Mooncake's transfer engine register plain addresses, name a peer by `host:port`, hand over lists of
//! local addresses, remote addresses and lengths, and look at one integer. [`Node`] offers exactly that on an
//! [`engine::Engine`]; the C ABI (`weft-capi`) and the Python drop-in (`weft.mooncake`) are translations of it. It moves no bytes and
//! speaks no protocol of its own; new programs should use the engine.
//!
//! | | |
//! |---|---|
//! | [`Node`] | the whole: memory, transfers, notifications |
//! | [`Setup`] | Mooncake's arguments and variables as settings of the engine |
//! | [`Transfer`] | a started transfer and how it stands |
//! | [`Table`] | which addresses are registered; overlaps are refused |
//! | [`Note`] | notifications with a name and a message |
//! | [`Fault`] | what can go wrong, and Mooncake's number for it |
//!
//! ```
//! use weft_compat::{Node, Op, Setup};
//!
//! # fn main() -> Result<(), weft_compat::Fault> {
//! // Two nodes; in life they are on two machines. The empty environment stands for that of the process.
//! let start = || Node::start(&Setup::new("127.0.0.1", "P2PHANDSHAKE", "tcp"), &|_| None);
//! let (target, initiator) = (start()?, start()?);
//! let there = target.allocate(4096)?;
//! let here = initiator.allocate(4096)?;
//! initiator.copy_in(here, b"keys and values")?;
//! initiator.transfer(Op::Write, &target.session(), &[here], &[there + 100], &[15])?.wait()?;
//! let mut bytes = [0; 15];
//! target.copy_out(there + 100, &mut bytes)?;
//! assert_eq!(&bytes, b"keys and values");
//! # Ok(())
//! # }
//! ```

mod fault;
mod node;
mod note;
mod setup;
mod table;
mod transfer;

pub use engine::Access;
pub use fault::Fault;
pub use node::Node;
pub use note::Note;
pub use setup::{Look, Setup};
pub use table::Table;
pub use transfer::{Op, Progress, Transfer};
