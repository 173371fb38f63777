//! Engines that speak Mooncake's protocols, and the control protocol by hand.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use engine::settings::Mooncake;
use engine::{Access, Engine, HostMemory, Protocol, Region};

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

/// An engine with one buffer that peers may use and one that they may not.
pub(crate) struct Weft {
    pub(crate) engine: Engine,
    pub(crate) pool: HostMemory,
    pub(crate) open: Region,
    pub(crate) private: Region,
}

pub(crate) const POOL: usize = 8 << 20;

impl Weft {
    pub(crate) fn new() -> Self {
        Self::of(Engine::builder())
    }

    pub(crate) fn of(builder: engine::Builder) -> Self {
        Self::around(builder.protocol(Protocol::Tcp).mooncake(Mooncake::On).build().unwrap())
    }

    pub(crate) fn around(engine: Engine) -> Self {
        let pool = HostMemory::new(POOL).unwrap();
        let open = engine.register("kv", pool.clone(), Access::READ_WRITE).unwrap();
        let private = engine.register("scratch", HostMemory::new(4096).unwrap(), Access::LOCAL).unwrap();
        Self { engine, pool, open, private }
    }

    pub(crate) fn bytes(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.pool.read(offset, &mut bytes).unwrap();
        bytes
    }
}

/// Sends raw bytes; everything that is answered until the other side has done.
pub(crate) fn exchange(addr: &str, parts: &[&[u8]]) -> Vec<u8> {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    for part in parts {
        // It may have seen enough already.
        if stream.write_all(part).is_err() {
            break;
        }
    }
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("no end after 20 s"),
        _ => answer,
    }
}

/// A message of the control protocol in its parts, as Mooncake's nodes write them: one packet each.
pub(crate) fn ask(addr: &str, kind: u8, json: &str) -> (u8, String) {
    let length = (json.len() as u64 + 1).to_le_bytes();
    let answer = exchange(addr, &[&length, &[kind], json.as_bytes()]);
    assert!(answer.len() > 9, "no answer to {json:?}: {answer:?}");
    let length = u64::from_le_bytes(answer[..8].try_into().unwrap());
    assert_eq!(answer.len() as u64, 8 + length);
    (answer[8], String::from_utf8(answer[9..].to_vec()).unwrap())
}
