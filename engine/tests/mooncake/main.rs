//! Mooncake's nodes and this engine's, in both directions.
//!
//! `wire` speaks the protocols by hand; `hostile` speaks them wrong; `real` needs Mooncake's own wheel: `WEFT_MOONCAKE_PYTHON` is
//! a Python that can `import mooncake.engine` (`cargo xtask interop` sets one up).
#![cfg(feature = "mooncake")]
#![allow(clippy::unwrap_used)] // tests

mod common;
#[cfg(feature = "etcd")]
#[path = "../metadata/harness.rs"]
mod harness;
mod hostile;
mod real;
#[cfg(feature = "http-server")]
mod stores;
mod wire;
