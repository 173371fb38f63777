//! Mooncake's nodes and this engine's, in both directions.
//!
//! `wire` speaks the protocols by hand; `hostile` speaks them wrong; `real` needs Mooncake's own wheel: `WEFT_MOONCAKE_PYTHON` is
//! a Python that can `import mooncake.engine` (`cargo xtask interop` sets one up). `cards` needs the wheel that was built for EFA,
//! `WEFT_MOONCAKE_EFA_PYTHON`, and cards: `cargo xtask soft-efa` runs it on software ones.
#![cfg(feature = "mooncake")]
#![allow(clippy::unwrap_used)] // tests

#[cfg(feature = "efa")]
mod cards;
mod common;
#[cfg(feature = "etcd")]
#[path = "../metadata/harness.rs"]
mod harness;
mod hostile;
mod real;
#[cfg(feature = "http-server")]
mod stores;
mod wire;
