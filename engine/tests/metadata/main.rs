//! Metadata servers: real ones of the distribution, started here on loopback, and hostile ones.
#![cfg(all(feature = "etcd", feature = "redis", feature = "http", feature = "http-server"))]
#![allow(clippy::unwrap_used)] // tests

mod contract;
mod etcd;
mod harness;
mod hostile;
mod http;
mod redis;
mod tls;
