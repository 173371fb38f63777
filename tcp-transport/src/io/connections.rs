//! Connections on their way up: accepted ones and our own, until each has become a lane or has been turned away.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use super::{ACCEPTS, Interest, IoThread, Message, Source};
use crate::accepting::{Accepted, Accepting};
use crate::dialling::Dialling;
use crate::error::Error;
use crate::peer::PeerInner;
use crate::seldom::Seldom;

impl IoThread {
    // ---- connections from peers ----------------------------------------------------------------------------------

    pub(super) fn accept(&mut self, token: u64) {
        for _ in 0..ACCEPTS {
            let Some(Source::Listener(listener)) = self.get(token) else { return };
            match listener.accept() {
                Ok((stream, from)) => {
                    self.context.counters.accepted.add(1);
                    let open = self.context.counters.connections.get();
                    if open >= self.context.settings.limits.connections as u64 {
                        self.context.counters.turned_away.add(1);
                        continue; // dropping it closes it
                    }
                    self.context.counters.connections.up();
                    let io = self.context.next_io();
                    if Arc::ptr_eq(&io, &self.shared) {
                        self.begin_accepting(stream, from);
                    } else {
                        io.send(Message::Accepted(stream, from));
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                    // Without a free descriptor the connection cannot even be refused; the oldest handshake makes room.
                    static FULL: Seldom = Seldom::new();
                    if let Some(nth) = FULL.again() {
                        tracing::warn!(
                            "cannot accept a connection ({nth} so far): {e}; raise the limit of open files"
                        );
                    }
                    match self.handshakes.pop_front() {
                        Some(oldest) => self.drop_accepting(oldest, "too many connections"),
                        None => return std::thread::sleep(Duration::from_millis(1)),
                    }
                }
                Err(e) => tracing::debug!("a connection ended before it was accepted: {e}"),
            }
        }
    }

    pub(super) fn begin_accepting(&mut self, stream: TcpStream, from: SocketAddr) {
        let token = self.reserve();
        let begun = Accepting::begin(&self.context, stream, from)
            .and_then(|a| self.shared.add(a.socket(), token, Interest::READ).map(|()| a));
        match begun {
            Ok(accepting) => {
                self.put(token, Source::Accepting(Box::new(accepting)));
                self.handshakes.push_back(token);
                let limit = self.context.settings.limits.handshakes.div_ceil(self.context.io_threads());
                while self.handshakes.len() > limit.max(1) {
                    if let Some(oldest) = self.handshakes.pop_front() {
                        self.drop_accepting(oldest, "too many handshakes at once");
                    }
                }
                self.serve_accepting(token);
            }
            Err(e) => {
                self.free.push(token as u32);
                self.context.turned_away(from, &e.to_string());
            }
        }
    }

    pub(super) fn serve_accepting(&mut self, token: u64) {
        let context = Arc::clone(&self.context);
        let Some(Source::Accepting(accepting)) = self.get(token) else { return };
        match accepting.go_on(&context) {
            Ok(None) => {}
            Ok(Some(_)) => self.finish_accepting(token),
            Err(cause) => {
                self.handshakes.retain(|&t| t != token);
                self.drop_accepting(token, &cause);
            }
        }
    }

    pub(super) fn finish_accepting(&mut self, token: u64) {
        self.handshakes.retain(|&t| t != token);
        let Some(Source::Accepting(accepting)) = self.take(token) else { return };
        let socket_token = self.reserve();
        self.shared.remove(accepting.socket());
        match accepting.finish(&self.context, &self.shared, socket_token) {
            Ok(Accepted::Lane(lane)) => {
                match self.shared.add_changes(lane.socket(), socket_token, Interest::READ) {
                    Ok(()) => {
                        self.put(socket_token, Source::Server(lane));
                    }
                    Err(_) => self.free.push(socket_token as u32),
                }
            }
            #[cfg(feature = "mooncake")]
            Ok(Accepted::Mooncake(session)) => {
                match self.shared.add(session.socket(), socket_token, session.interest()) {
                    Ok(()) => {
                        self.put(socket_token, Source::Mooncake(Box::new(session)));
                        self.serve_mooncake(socket_token);
                    }
                    Err(_) => self.free.push(socket_token as u32),
                }
            }
            Ok(Accepted::Gone) => {
                self.free.push(socket_token as u32);
                self.context.counters.connections.down();
            }
            Err((from, cause)) => {
                self.free.push(socket_token as u32);
                self.context.turned_away(from, &cause);
            }
        }
    }

    pub(super) fn drop_accepting(&mut self, token: u64, cause: &str) {
        if let Some(Source::Accepting(accepting)) = self.take(token) {
            self.shared.remove(accepting.socket());
            self.context.turned_away(accepting.from(), cause);
        }
    }

    // ---- connections to peers ------------------------------------------------------------------------------------

    pub(super) fn begin_dialling(&mut self, peer: &Arc<PeerInner>) {
        let token = self.reserve();
        let begun = Dialling::begin(&self.context, peer).and_then(|d| {
            self.shared
                .add(d.socket(), token, Interest::WRITE)
                .map_err(|e| Error::io("waiting for a connection", e))
                .map(|()| d)
        });
        match begun {
            Ok(dialling) => {
                self.context.counters.connections.up();
                self.put(token, Source::Dialling(Box::new(dialling)));
            }
            Err(e) => {
                self.free.push(token as u32);
                peer.dial_failed(e);
            }
        }
    }

    pub(super) fn serve_dialling(&mut self, token: u64) {
        let shared = Arc::clone(&self.shared);
        let Some(Source::Dialling(dialling)) = self.get(token) else { return };
        match dialling.go_on() {
            Ok(None) => {
                let interest = Interest { read: true, write: dialling.has_unsent() };
                shared.watch_steadily(dialling.socket(), token, interest);
            }
            Ok(Some(agreed)) => {
                let Some(Source::Dialling(dialling)) = self.take(token) else { return };
                // The socket keeps its registration under a new token.
                let lane_token = self.reserve();
                let lane = dialling.finish(agreed, &self.context, &self.shared, lane_token);
                match lane {
                    Some(lane) => {
                        self.shared.rearm(lane.socket(), lane_token, Interest::NONE);
                        self.put(lane_token, Source::Client(Arc::clone(&lane)));
                        PeerInner::lane_ready(&lane);
                    }
                    None => {
                        self.free.push(lane_token as u32);
                        self.context.counters.connections.down();
                    }
                }
            }
            Err(error) => self.drop_dialling(token, error),
        }
    }

    pub(super) fn drop_dialling(&mut self, token: u64, error: Error) {
        if let Some(Source::Dialling(dialling)) = self.take(token) {
            self.shared.remove(dialling.socket());
            self.context.counters.connections.down();
            dialling.peer().dial_failed(error);
        }
    }
}
