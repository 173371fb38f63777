//! Sockets and their options.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};

use crate::settings::{LocalPath, SocketOptions};

/// Connections that the kernel completes before we accept them.
const BACKLOG: i32 = 4096;

/// Binds and listens, without blocking. IPv6 addresses serve IPv6 alone, so that both can share a port.
pub(crate) fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Begins to connect, without blocking: the socket is writable when it has succeeded or failed.
pub(crate) fn dial(addr: SocketAddr, path: &LocalPath, options: &SocketOptions) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(interface) = &path.interface {
        socket.bind_device(Some(interface.as_bytes()))?;
    }
    if let Some(source) = path.source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    // Buffers count for the window that is offered in the first segment, so they come before the connection.
    apply(&socket, options)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::from(addr)) {
        Ok(()) => {}
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(e) => return Err(e),
    }
    Ok(socket.into())
}

/// Options of an accepted connection.
pub(crate) fn accepted(stream: TcpStream, options: &SocketOptions) -> io::Result<TcpStream> {
    let socket = Socket::from(stream);
    apply(&socket, options)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn apply(socket: &Socket, options: &SocketOptions) -> io::Result<()> {
    // We send whole frames in one call, so there is nothing to wait for.
    socket.set_tcp_nodelay(true)?;
    // A vanished peer of an idle lane is noticed within about a minute and a half.
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    if let Some(n) = options.send_buffer {
        socket.set_send_buffer_size(n)?;
    }
    if let Some(n) = options.receive_buffer {
        socket.set_recv_buffer_size(n)?;
    }
    if let Some(name) = &options.congestion_control {
        socket.set_tcp_congestion(name.as_bytes())?;
    }
    if let Some(class) = options.traffic_class {
        if socket.domain()? == Domain::IPV6 {
            socket.set_tclass_v6(class.into())?;
        } else {
            socket.set_tos_v4(class.into())?;
        }
    }
    if let Some(us) = options.busy_poll_us {
        crate::seam::set_socket_option(socket, libc::SO_BUSY_POLL, us)?;
    }
    if let Some(rate) = options.max_pacing_rate {
        // The 32-bit form of the option saturates; all ones would mean "unlimited".
        let rate = u32::try_from(rate).unwrap_or(u32::MAX - 1);
        crate::seam::set_socket_option(socket, libc::SO_MAX_PACING_RATE, rate)?;
    }
    Ok(())
}
