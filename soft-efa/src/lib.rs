//! EFA cards in software.
//!
//! AWS's Elastic Fabric Adapter exists only in AWS. This crate makes the unmodified `efa` provider of a stock libfabric believe that
//! the machine has EFA cards, so that code for EFA (a transport, libfabric's own tools, another project's engine) runs its real EFA code
//! paths on a laptop and in CI. It is a test device: it says what it models and what not (README.md), and is never a fallback in
//! production.
//!
//! How: two shared libraries take the place of `libibverbs.so.1` and `libefa.so.1` for one command. Behind the verbs is a [card
//! engine](crate#the-cards) that moves bytes between the memory of the processes of one run, reliably and out of order, as EFA's
//! SRD does, and checks keys, rights, bounds, queue depths and states on the way.
//!
//! ```no_run
//! use soft_efa::{Network, Profile};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Hosts with four cards each; every process is a host of its own.
//! let network = Network::new(4, Profile::p5())?;
//! let mut server = network.command("fi_pingpong").args(["-p", "efa"]).spawn()?;
//! let client = network.command("fi_pingpong").args(["-p", "efa", "127.0.0.1"]).status()?;
//! assert!(client.success() && server.wait()?.success());
//! # Ok(())
//! # }
//! ```
//!
//! # Chapters
//! For those who start programs: [`Network`] (a run), [`Libraries`] (how the shared libraries are built), [`profile`] (which cards there
//! are), [`settings`] (what can be asked for), [`clock`] (by which time), [`rules`] and [`control`] (what shall go wrong), [`status`] (how requests end), [`sysfs`] (what programs look up), [`scratch`] (what a run
//! leaves: nothing). The program `soft-efa` is a thin wrapper around them.
//!
//! # The cards
//! Compiled only with the feature `cards`, into the shared libraries: `verbs` (the C functions), `card` (the engine) and [`abi`] (the
//! structures that libfabric and the cards share).

pub mod abi;
#[cfg(feature = "cards")]
mod card;
pub mod clock;
pub mod control;
#[cfg_attr(not(feature = "cards"), allow(dead_code))] // the launcher reads what the cards count
mod counters;
pub mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod launcher;
pub mod libraries;
pub mod profile;
pub mod rules;
pub mod scratch;
pub mod settings;
#[cfg_attr(not(feature = "cards"), allow(dead_code))] // the launcher needs a part of it
mod shared;
pub mod status;
pub mod sysfs;
#[cfg(feature = "cards")]
mod verbs;

/// README.md's examples compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub use error::Error;
pub use launcher::Network;
pub use libraries::Libraries;
pub use profile::Profile;
