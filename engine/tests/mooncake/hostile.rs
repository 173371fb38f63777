//! Peers that lie, on either side.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use engine::{Batch, Error, Status};

use crate::common::{Weft, ask, exchange, soon};

/// Whatever is sent, the engine goes on serving.
#[test]
fn nonsense_does_not_end_the_engine() {
    let weft = Weft::new();
    let name = weft.engine.name();
    let frame = |length: u64, rest: &[u8]| [&length.to_le_bytes()[..], rest].concat();
    for bytes in [
        frame(u64::MAX, b"\x01{\"a\":1}            "),
        frame(127 << 20, b"\x01{\"a\":1}            "),
        frame(0, b""),
        frame(3, b"\x01{]"),
        frame(4, b"\x02[1]"),
        frame(30, b"\x00{\"local_nic_path\":[[[[[[[[[[}"),
        frame(100_001, &[&b"\x01"[..], &[b'['; 100_000]].concat()),
        frame(70, b"\x02{\"name\":\"x\",\"notify_msg\":\"cut"),
    ] {
        let mut stream = TcpStream::connect(name).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert_eq!(ask(name, 3, "{}").0, 3);
    assert!(weft.engine.try_notification().is_none());
    // A name as long as a book is no name.
    let long = format!("{{\"name\":\"{}\",\"notify_msg\":\"x\"}}", "n".repeat(100_000));
    let bytes = frame(long.len() as u64 + 1, &[b"\x02", long.as_bytes()].concat());
    assert_eq!(exchange(name, &[&bytes]), b"");
    assert!(weft.engine.try_notification().is_none());
}

/// A daemon that answers every question with these bytes.
fn daemon(answer: impl Fn(&mut TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let name = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let mut head = [0; 9];
            if stream.read_exact(&mut head).is_ok() {
                let length = u64::from_le_bytes(head[..8].try_into().unwrap());
                if length < 1 << 20 {
                    let _ = stream.read_exact(&mut vec![0; length as usize - 1]);
                }
                answer(&mut stream);
            }
        }
    });
    name
}

fn say(stream: &mut TcpStream, kind: u8, json: &str) {
    let _ = stream.write_all(&(json.len() as u64 + 1).to_le_bytes());
    let _ = stream.write_all(&[kind]);
    let _ = stream.write_all(json.as_bytes());
}

#[test]
fn descriptors_that_make_no_sense_are_said_to() {
    let weft = Weft::new();
    for (json, word) in [
        ("{\"name\":\"x:1\",\"protocol\":\"rdma\",\"buffers\":[]}", "rdma"),
        ("{\"name\":\"x:1\",\"protocol\":\"tcp\",\"tcp_data_port\":0,\"buffers\":[]}", "TCP"),
        ("{\"name\":\"x:1\",\"protocol\":\"tcp\",\"tcp_data_port\":99999,\"buffers\":[]}", "descriptor"),
        (
            "{\"name\":\"x:1\",\"protocol\":\"tcp\",\"tcp_data_port\":1,\"buffers\":[{\"name\":\"b\",\"addr\":0,\"length\":1}]}",
            "0x0",
        ),
        ("[]", "descriptor"),
    ] {
        let name = daemon(move |stream| say(stream, 1, json));
        let error = weft.engine.open(&name, soon()).unwrap_err();
        assert!(matches!(error, Error::Mooncake { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(&name) && text.contains(word), "{text}");
    }
}

/// A daemon that promises a terabyte, stalls, or hangs up is taken for no Mooncake node, soon, and without the memory.
#[test]
fn daemons_that_stall_are_not_waited_for() {
    let weft = Weft::new();
    let endless = daemon(|stream| {
        let _ = stream.write_all(&(1_u64 << 40).to_le_bytes());
        while stream.write_all(&[b'{'; 65536]).is_ok() {}
    });
    let mute = daemon(|_| std::thread::sleep(Duration::from_secs(10)));
    let gone = daemon(|_| {});
    for name in [endless, mute, gone] {
        let begun = Instant::now();
        let error = weft.engine.open(&name, Instant::now() + Duration::from_secs(4)).unwrap_err();
        assert!(error.to_string().contains(&name), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    }
}

/// A node whose descriptor is fine and whose data port is not: requests end with an error that names it, at their deadline.
#[test]
fn requests_to_a_data_port_that_lies_end() {
    let weft = Weft::new();
    for behaviour in [0_u8, 1, 2] {
        let data = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = data.local_addr().unwrap().port();
        let serving = std::thread::spawn(move || {
            let Ok((mut stream, _)) = data.accept() else { return };
            let mut head = [0; 24];
            let _ = stream.read_exact(&mut head);
            match behaviour {
                // Says nothing.
                0 => std::thread::sleep(Duration::from_secs(3)),
                // No status.
                1 => drop(stream.write_all(&[0xee; 64])),
                // Half of what was asked for.
                _ => {
                    let _ = stream.write_all(&(0x4D43_5456_u64 << 32).to_le_bytes());
                    let _ = stream.write_all(&[1; 100]);
                }
            }
        });
        let name = daemon(move |stream| {
            say(
                stream,
                1,
                &format!(
                    "{{\"name\":\"x:1\",\"protocol\":\"tcp\",\"tcp_data_port\":{port},\"tcp_proto_version\":2,\
                     \"buffers\":[{{\"name\":\"b\",\"addr\":4096,\"length\":1048576}}]}}"
                ),
            );
        });
        let segment = weft.engine.open(&name, soon()).unwrap();
        let remote = segment.buffers().remove(0);
        let mut batch = Batch::new();
        batch.set_deadline(Duration::from_millis(800));
        batch.read(&weft.open, weft.open.range(0, 4096), &segment, remote.range(0, 4096)).unwrap();
        let begun = Instant::now();
        let handle = weft.engine.submit(&mut batch).unwrap();
        let error = handle.wait().unwrap_err();
        assert!(error.to_string().contains(&port.to_string()), "{behaviour}: {error}");
        assert!(matches!(handle.status(0), Status::Failed(_)));
        assert!(begun.elapsed() < Duration::from_secs(5), "{behaviour}: {:?}", begun.elapsed());
        assert!(handle.quiesced(soon()), "a read that has ended touches nothing more");
        serving.join().unwrap();
    }
}
