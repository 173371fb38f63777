//! What a metadata server has to be able to do.

use std::fmt;
use std::time::Duration;

use crate::error::Error;

/// Longest key in bytes.
pub const MAX_KEY_BYTES: usize = 1024;

/// Longest value in bytes that is written, and that is accepted from a server. A record takes some 100; a Mooncake segment of
/// 10,000 buffers on 32 NICs takes about 10 MB.
pub const MAX_VALUE_BYTES: usize = 16 << 20;

/// What a renewal found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// The value was there and stays for another lease.
    Kept,
    /// The server had lost it; it is there again.
    Restored,
    /// Somebody else has put another value there since, which is left alone.
    Taken,
}

/// A key-value server whose entries end when nobody renews them. Calls block, each for a bounded time; threads share a store.
///
/// Implement it for a server that this crate does not know and hand it to [`Directory::new`](super::Directory::new).
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// Kind and address of the server, for messages; never with credentials.
    fn server(&self) -> &str;

    /// The value under `key`, at most [`MAX_VALUE_BYTES`] of it; an error if there is more.
    ///
    /// # Errors
    /// [`Error::Metadata`].
    fn lookup(&self, key: &str) -> Result<Option<Vec<u8>>, Error>;

    /// Puts `value` under `key` whatever was there, for `ttl` unless it is renewed.
    ///
    /// # Errors
    /// [`Error::Metadata`].
    fn publish(&self, key: &str, value: &[u8], ttl: Duration) -> Result<(), Error>;

    /// Lets `value` stay under `key` for another `ttl`, puts it back if there is none, and leaves another value alone.
    ///
    /// # Errors
    /// [`Error::Metadata`].
    fn renew(&self, key: &str, value: &[u8], ttl: Duration) -> Result<Renewal, Error>;

    /// Removes `key` if `value` is what it holds.
    ///
    /// # Errors
    /// [`Error::Metadata`].
    fn remove(&self, key: &str, value: &[u8]) -> Result<(), Error>;
}

/// Refuses keys and values that no server should see.
pub(super) fn check(server: &str, key: &str, value: &[u8]) -> Result<(), Error> {
    let refused =
        |reason: String| Err(Error::Metadata { store: server.into(), action: "publishing".into(), reason });
    if key.len() > MAX_KEY_BYTES || key.chars().any(char::is_control) {
        return refused(format!(
            "the key {:?} has {} bytes or control characters; at most {MAX_KEY_BYTES} printable ones are allowed",
            key.chars().take(64).collect::<String>(),
            key.len()
        ));
    }
    if value.len() > MAX_VALUE_BYTES {
        return refused(format!(
            "the value of {key} has {} bytes, more than {MAX_VALUE_BYTES}; register fewer, larger buffers",
            value.len()
        ));
    }
    Ok(())
}
