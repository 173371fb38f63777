//! The bytes, by hand: what an engine says to Mooncake's nodes.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use engine::settings::Mooncake;
use engine::{Access, Engine, HostMemory, Path, Protocol};
use serde_json::Value;

use crate::common::{Weft, ask, exchange, soon};

#[test]
fn the_descriptor_says_what_may_be_used_and_where() {
    let weft = Weft::new();
    let name = weft.engine.name().to_owned();
    let (kind, json) = ask(&name, 1, "{\"name\":\"somebody\"}\n");
    assert_eq!(kind, 1);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["name"], name);
    assert_eq!(json["protocol"], "tcp");
    assert_eq!(json["tcp_proto_version"], 2);
    assert_eq!(json["tcp_data_port"], name.rsplit_once(':').unwrap().1.parse::<u16>().unwrap());
    let buffers = json["buffers"].as_array().unwrap();
    assert_eq!(buffers.len(), 1, "the private one is nobody's business: {json}");
    assert_eq!(buffers[0]["addr"], weft.open.addr());
    assert_eq!(buffers[0]["length"], weft.open.len());
    assert_eq!(buffers[0]["name"], "kv");
    let later = weft.engine.register("later", HostMemory::new(64).unwrap(), Access::READ).unwrap();
    assert!(ask(&name, 1, "{}").1.contains(&later.addr().to_string()));
    weft.engine.unregister(later).unwrap();
    assert!(!ask(&name, 1, "{}").1.contains("later"));
}

#[test]
fn probes_notifications_and_connections_are_answered() {
    let weft = Weft::new();
    let name = weft.engine.name().to_owned();
    // Even where there is nothing to say, and by peers of before there were types.
    for json in ["{}\n", "null\n", "{\"name\": \"a long enough name\"}"] {
        assert_eq!(ask(&name, 3, json), (3, "{\"status\":\"success\"}\n".into()));
    }
    let (kind, said) = ask(&name, 2, "{\"name\":\"decode-1\",\"notify_msg\":\"page 7 \\u00fc\"}\n");
    assert_eq!(
        (kind, serde_json::from_str::<Value>(&said).unwrap()["notify_msg"].as_str().unwrap()),
        (2, "success")
    );
    let note = weft.engine.notification(soon()).unwrap();
    assert_eq!((note.from.as_str(), note.payload), ("decode-1", "page 7 ü".as_bytes().to_vec()));

    let connection = "{\"local_nic_path\":\"a:1@efa_0\",\"peer_nic_path\":\"b:2@efa_1\",\"efa_addr\":\"00\",\"qp_num\":[],\"reply_msg\":\"\"}";
    let (kind, said) = ask(&name, 0, connection);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((kind, said["peer_nic_path"].as_str().unwrap()), (0, "a:1@efa_0"));
    assert!(said["reply_msg"].as_str().unwrap().contains("TCP"), "{said}");
    let mut old = (connection.len() as u64).to_le_bytes().to_vec();
    old.extend(connection.as_bytes());
    let answer = exchange(&name, &[&old]);
    assert_eq!(answer[8], b'{', "answered as asked, without a type");
    // The queue is the engine's own: native notifications come in the same order.
    let native = Engine::builder().protocol(Protocol::Tcp).build().unwrap();
    native.open(&name, soon()).unwrap().notify(b"native", soon()).unwrap();
    assert_eq!(weft.engine.notification(soon()).unwrap().payload, b"native");
}

/// Handshake, data and native protocol share the port, and an address that looks like the beginning of JSON is none.
#[test]
fn data_is_served_at_any_address() {
    let weft = Weft::new();
    let start = weft.open.addr();
    weft.pool.write(0, &vec![0x5a; 1 << 20]).unwrap();
    // Low bytes 00 7b: a type and a brace.
    let looks_like_json = (start | 0xffff) + 1 + 0x7b00;
    for address in [looks_like_json, looks_like_json - 0x7b00 + 0x6e01, start] {
        let mut head = 64_u64.to_le_bytes().to_vec();
        head.extend(address.to_le_bytes());
        head.extend([0x80, 0, 0, 0, 0, 0, 0, 0]);
        let mut stream = TcpStream::connect(weft.engine.name()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(&head).unwrap();
        let mut answer = [0; 72];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(u64::from_le_bytes(answer[..8].try_into().unwrap()), 0x4D43_5456 << 32);
        assert_eq!(answer[8..], [0x5a; 64]);
    }
}

#[test]
fn engines_of_this_crate_know_each_other() {
    let (weft, other) = (Weft::new(), Weft::new());
    let segment = weft.engine.open(other.engine.name(), soon()).unwrap();
    assert!(matches!(segment.path(), Path::Tcp(_)), "{}", segment.path());
    // Also one that does not speak Mooncake's protocols.
    let plain = Engine::builder().protocol(Protocol::Tcp).build().unwrap();
    let segment = weft.engine.open(plain.name(), soon()).unwrap();
    assert!(matches!(segment.path(), Path::Tcp(_)), "{}", segment.path());
}

#[test]
fn it_is_off_unless_asked_for_and_never_beside_a_secret_by_accident() {
    let secret = "a secret of the whole cluster";
    let build = |mooncake, secret: Option<&str>| {
        let builder = Engine::builder().protocol(Protocol::Tcp).mooncake(mooncake);
        match secret {
            Some(secret) => builder.secret(secret).build(),
            None => builder.build(),
        }
    };
    let error = build(Mooncake::On, Some(secret)).unwrap_err().to_string();
    assert!(error.contains("secret") && error.contains("authentication"), "{error}");
    let off = build(Mooncake::Off, None).unwrap();
    let probe = [&5_u64.to_le_bytes()[..], b"\x03{}\n\n"].concat();
    assert_eq!(exchange(off.name(), &[&probe]), b"");
    let even = build(Mooncake::EvenWithSecret, Some(secret)).unwrap();
    assert_eq!(ask(even.name(), 3, "{}").0, 3);
}
