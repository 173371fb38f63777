//! The cards: what happens behind the verbs.
//!
//! From the outside in: [`process`] (this process among the others), [`device`] (one card), [`queue_pair`], [`completion`], [`region`]
//! (what a program makes on a card), [`remote`] and [`peer`] (whom it reaches), [`request`] and [`engine`] (what carries requests out: [`rdma`],
//! [`message`]), [`receiver`] (what comes in), [`thread`] and [`pace`] (who runs the engine, and by which time), [`ring`], [`copy`] and [`shared`](crate::shared) (how bytes get to another process), [`faults`], [`trace`].

pub(crate) mod completion;
pub(crate) mod copy;
pub(crate) mod device;
pub(crate) mod engine;
pub(crate) mod faults;
pub(crate) mod message;
pub(crate) mod pace;
pub(crate) mod peer;
pub(crate) mod process;
pub(crate) mod queue_pair;
pub(crate) mod rdma;
pub(crate) mod receiver;
pub(crate) mod region;
pub(crate) mod remote;
pub(crate) mod request;
pub(crate) mod ring;
pub(crate) mod thread;
pub(crate) mod trace;
