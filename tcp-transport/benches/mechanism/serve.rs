//! Two of the mechanisms of the answering side: a blocking thread for each connection, and one thread that asks epoll which
//! connections are ready.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use crate::conn::Conn;

/// A thread for each connection.
pub(crate) fn blocking(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        thread::spawn(move || {
            let mut conn = Conn::new();
            // A benchmark that ends just closes its connections.
            let _ = stream.set_nodelay(true);
            while matches!((&stream).read(conn.room()), Ok(n) if n > 0 && {
                conn.received(n);
                flush(&stream, &mut conn).is_ok()
            }) {}
        });
    }
}

fn flush(mut stream: &TcpStream, conn: &mut Conn) -> io::Result<()> {
    while conn.has_unsent() {
        let mut parts = Vec::with_capacity(8);
        conn.gather(&mut parts);
        let sent = match parts.as_slice() {
            [one] => stream.write(one),
            many => stream.write_vectored(many),
        };
        drop(parts);
        conn.sent(sent?);
    }
    Ok(())
}

/// One thread, as many connections as come.
pub(crate) fn readiness(listener: &TcpListener) -> io::Result<()> {
    const LISTENER: u64 = u64::MAX;
    let poll = epoll::create(CreateFlags::CLOEXEC)?;
    listener.set_nonblocking(true)?;
    epoll::add(&poll, listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    let mut conns: Vec<Option<(TcpStream, Conn, bool)>> = Vec::new();
    let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; 64];
    loop {
        let count = epoll::wait(&poll, &mut events[..], None)?;
        for event in &events[..count] {
            let token = event.data.u64();
            if token == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    epoll::add(&poll, &stream, EventData::new_u64(conns.len() as u64), EventFlags::IN)?;
                    conns.push(Some((stream, Conn::new(), false)));
                }
                continue;
            }
            let slot = &mut conns[token as usize];
            let Some((stream, conn, waits)) = slot else { continue };
            match turn(stream, conn) {
                Ok(()) if conn.has_unsent() != *waits => {
                    *waits = conn.has_unsent();
                    let flags = EventFlags::IN | if *waits { EventFlags::OUT } else { EventFlags::empty() };
                    epoll::modify(&poll, &*stream, EventData::new_u64(token), flags)?;
                }
                Ok(()) => {}
                Err(_) => *slot = None,
            }
        }
    }
}

/// Moves what is possible without blocking.
fn turn(mut stream: &TcpStream, conn: &mut Conn) -> io::Result<()> {
    loop {
        let room = conn.room();
        let wanted = room.len();
        match stream.read(room) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                conn.received(n);
                if n < wanted {
                    break;
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            Err(e) => return Err(e),
        }
    }
    match flush(stream, conn) {
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(()),
        result => result,
    }
}
