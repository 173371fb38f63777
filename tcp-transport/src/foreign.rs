//! Other protocols on the same port: a connection that does not begin with this crate's preface can be somebody else's.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Connections of foreign protocols that are served at a time.
const MAX_SERVED: usize = 64;

/// What the first bytes of a connection say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recognition {
    /// It is this protocol.
    Yes,
    /// It is not, whatever follows.
    No,
    /// More bytes are needed to tell; at most [`MAX_HEAD`] are shown.
    Undecided,
}

/// Most bytes that a [`Foreign`] protocol is shown before it has to decide.
pub const MAX_HEAD: usize = 24;

/// A protocol that shares the port with this crate's, such as Mooncake's handshake. Note that the cluster's secret protects
/// this crate's protocol only: whoever can connect reaches a foreign one.
pub trait Foreign: Send + Sync + 'static {
    /// Looks at the first bytes. Called on an I/O thread, so it must not block.
    fn recognise(&self, head: &[u8]) -> Recognition;

    /// Serves a connection on a thread of its own. The socket blocks; `head` are the bytes that have been taken off it.
    fn serve(&self, stream: TcpStream, head: &[u8], from: SocketAddr);
}

/// The foreign protocols of a transport.
#[derive(Default, Clone)]
pub(crate) struct Foreigners {
    list: Vec<Arc<dyn Foreign>>,
    served: Arc<AtomicUsize>,
}

impl Foreigners {
    pub(crate) fn add(&mut self, protocol: Arc<dyn Foreign>) {
        self.list.push(protocol);
    }

    /// The one that the bytes belong to; `None` in an `Ok` while that is open, an error if nobody wants them.
    pub(crate) fn recognise(&self, head: &[u8]) -> Result<Option<Arc<dyn Foreign>>, ()> {
        let mut open = false;
        for protocol in &self.list {
            match protocol.recognise(head) {
                Recognition::Yes => return Ok(Some(Arc::clone(protocol))),
                Recognition::No => {}
                Recognition::Undecided => open = true,
            }
        }
        if open && head.len() < MAX_HEAD { Ok(None) } else { Err(()) }
    }

    /// Hands a connection over; false if too many are being served.
    pub(crate) fn serve(
        &self,
        protocol: Arc<dyn Foreign>,
        stream: TcpStream,
        head: Vec<u8>,
        from: SocketAddr,
    ) -> bool {
        if self.served.fetch_add(1, Ordering::AcqRel) >= MAX_SERVED || stream.set_nonblocking(false).is_err()
        {
            self.served.fetch_sub(1, Ordering::AcqRel);
            return false;
        }
        let served = Served(Arc::clone(&self.served));
        let thread = std::thread::Builder::new().name("weft-foreign".into());
        thread
            .spawn(move || {
                let _served = served;
                protocol.serve(stream, &head, from);
            })
            .is_ok()
    }
}

/// Counts a connection until its thread ends, however it ends.
struct Served(Arc<AtomicUsize>);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
