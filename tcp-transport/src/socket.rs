//! Sockets and their options.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use crate::settings::{LocalPath, SocketOptions};

/// Connections that the kernel completes before we accept them.
const BACKLOG: i32 = 4096;
/// Unacknowledged bytes on a connection within this host, where no wire has to be kept full: what waits in the buffers should still
/// be in a core's cache when the other side takes it out (1 to 2 MiB on today's server cores, and the kernel keeps twice this).
/// Left to itself, the kernel lets several MiB wait, and the bytes are fetched from memory again; see `docs/tcp-measurements.md`.
const SEND_BUFFER_WITHIN_HOST: usize = 512 << 10;

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
    let stream = socket.into();
    connected(&stream, options);
    Ok(stream)
}

/// Sets what depends on where the other end is. To be called once both ends are known.
pub(crate) fn connected(stream: &TcpStream, options: &SocketOptions) {
    let (Ok(here), Ok(there)) = (stream.local_addr(), stream.peer_addr()) else { return };
    let within_host = here.ip() == there.ip() || (here.ip().is_loopback() && there.ip().is_loopback());
    if within_host && options.send_buffer.is_none() {
        // Not worth a connection if it fails.
        let _ = SockRef::from(stream).set_send_buffer_size(SEND_BUFFER_WITHIN_HOST);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> SocketOptions {
        SocketOptions {
            send_buffer: Some(100_000),
            receive_buffer: Some(90_000),
            congestion_control: Some("reno".into()), // built into every kernel
            busy_poll_us: Some(17),
            traffic_class: Some(0x28),
            max_pacing_rate: Some(123_456_789),
        }
    }

    fn check(stream: &TcpStream, v6: bool) {
        let socket = SockRef::from(stream);
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(10));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
        // The kernel keeps twice what it was asked for.
        assert_eq!(socket.send_buffer_size().unwrap(), 200_000);
        assert_eq!(socket.recv_buffer_size().unwrap(), 180_000);
        let name = socket.tcp_congestion().unwrap();
        assert_eq!(name.split(|&b| b == 0).next(), Some(&b"reno"[..]));
        let class = if v6 { socket.tclass_v6() } else { socket.tos_v4() };
        assert_eq!(class.unwrap(), 0x28);
        assert_eq!(crate::seam::socket_option(stream, libc::SO_BUSY_POLL).unwrap(), 17);
        assert_eq!(crate::seam::socket_option(stream, libc::SO_MAX_PACING_RATE).unwrap(), 123_456_789);
    }

    /// Each option is what it was set to, on connections that were made and on those that were accepted.
    #[test]
    fn every_option_is_set() {
        for ip in ["127.0.0.1:0", "[::1]:0"] {
            if let (true, Err(why)) = (ip.contains("::1"), TcpListener::bind(ip)) {
                return eprintln!("SKIP: every_option_is_set: its IPv6 half, IPv4 passed: {why}");
            }
            let addr: SocketAddr = ip.parse().unwrap();
            let listener = listen(addr).unwrap();
            let made = dial(listener.local_addr().unwrap(), &LocalPath::default(), &options()).unwrap();
            listener.set_nonblocking(false).unwrap();
            let taken = accepted(listener.accept().unwrap().0, &options()).unwrap();
            check(&made, addr.is_ipv6());
            check(&taken, addr.is_ipv6());
        }
    }

    #[test]
    fn without_options_the_system_decides() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let options = SocketOptions::default();
        let made = dial(listener.local_addr().unwrap(), &LocalPath::default(), &options).unwrap();
        let plain = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        assert_eq!(SockRef::from(&made).tcp_congestion().unwrap(), plain.tcp_congestion().unwrap());
        assert_eq!(SockRef::from(&made).tos_v4().unwrap(), 0);
    }

    /// What waits between two processes of one host stays small, on both ends, unless it is set or the other end is elsewhere.
    #[test]
    fn the_send_buffer_within_a_host_is_bounded() {
        for ip in ["127.0.0.1:0", "[::1]:0"] {
            if let (true, Err(why)) = (ip.contains("::1"), TcpListener::bind(ip)) {
                return eprintln!(
                    "SKIP: the_send_buffer_within_a_host_is_bounded: its IPv6 half, IPv4 passed: {why}"
                );
            }
            let listener = listen(ip.parse().unwrap()).unwrap();
            listener.set_nonblocking(false).unwrap();
            for set in [None, Some(90_000)] {
                let options = SocketOptions { send_buffer: set, ..SocketOptions::default() };
                let made = dial(listener.local_addr().unwrap(), &LocalPath::default(), &options).unwrap();
                let taken = accepted(listener.accept().unwrap().0, &options).unwrap();
                connected(&made, &options);
                // The kernel keeps twice what it was asked for, and may have been told to give less.
                let most: usize =
                    std::fs::read_to_string("/proc/sys/net/core/wmem_max").unwrap().trim().parse().unwrap();
                let want = 2 * set.unwrap_or(SEND_BUFFER_WITHIN_HOST).min(most);
                assert_eq!(SockRef::from(&made).send_buffer_size().unwrap(), want);
                assert_eq!(SockRef::from(&taken).send_buffer_size().unwrap(), want);
            }
        }
    }

    #[test]
    fn an_unknown_congestion_control_is_an_error() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let options =
            SocketOptions { congestion_control: Some("nonesuch".into()), ..SocketOptions::default() };
        let addr = listener.local_addr().unwrap();
        assert!(dial(addr, &LocalPath::default(), &options).is_err());
    }

    #[test]
    fn a_path_chooses_source_and_interface() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        listener.set_nonblocking(false).unwrap();
        let addr = listener.local_addr().unwrap();
        let path = LocalPath { source: Some("127.0.0.9".parse().unwrap()), interface: Some("lo".into()) };
        let made = match dial(addr, &path, &SocketOptions::default()) {
            Ok(made) => made,
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                return eprintln!("SKIP: a_path_chooses_source_and_interface: {e}");
            }
            Err(e) => panic!("{e}"),
        };
        assert_eq!(listener.accept().unwrap().1.ip().to_string(), "127.0.0.9");
        assert_eq!(SockRef::from(&made).device().unwrap().unwrap(), b"lo");

        let elsewhere = LocalPath { source: Some("192.0.2.1".parse().unwrap()), interface: None };
        assert!(dial(addr, &elsewhere, &SocketOptions::default()).is_err(), "not an address of this machine");
        let absent = LocalPath { source: None, interface: Some("nonesuch0".into()) };
        assert!(dial(addr, &absent, &SocketOptions::default()).is_err());
    }
}
