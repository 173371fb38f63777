//! libweft: the engine for C and everything that can call it.
//!
//! The functions cover what Mooncake's C API does, under one prefix and with one convention: 0 or a negative number, and the reason in
//! words by [`weft_last_error`](error::weft_last_error). The header `include/weft.h` is generated from these sources and is the
//! documentation of the functions; a test compares it. All behaviour is [`weft_compat::Node`]'s.
//!
//! Panics never cross into C: [`guard`](error) turns them into an error. Handles are pointers to what this library allocated; ids of
//! segments and batches are numbers that are looked up, so a stale one is an error and not a crash.
//!
//! | module | functions |
//! |---|---|
//! | [`node`] | create, destroy, name, port |
//! | [`memory`] | register, unregister, allocate, free |
//! | [`segment`] | open, close, refresh, first buffer, warm up, probe |
//! | [`batch`] | allocate, submit, status, wait, free |
//! | [`notification`] | send, take |
//! | [`error`] | the reason of the last failure |

#![allow(non_camel_case_types)] // as they are called in C

pub mod batch;
pub mod error;
pub mod ids;
pub mod memory;
pub mod node;
pub mod notification;
pub mod segment;
