//! Engines in processes of their own: every call over every path, mixed clusters, peers that die, freeze and come back, paths that
//! fail under traffic, a hand-over of a real model's KV cache, and random programs against a model.
//!
//! The test program starts itself again for each node ([`node::serve`]). Nodes on software EFA cards are hosts of their own.
#![allow(clippy::unwrap_used)] // a test fails by panicking

mod calls;
mod cluster;
mod failover;
mod handover;
mod lives;
mod model;
mod namespaces;
mod node;
mod order;

/// Not a test: a node's process, when the tests start it.
#[test]
fn node() {
    node::serve();
}

/// Clusters are started one at a time within this program: a few processes that wait for each other are enough for a small machine.
fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
