//! Peers that lie: what they say is bounded before it is believed.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use engine::{Engine, Protocol};
use tcp_transport::{Caller, Limits, Transport};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn engine() -> Engine {
    Engine::builder().protocol(Protocol::Tcp).build().unwrap()
}

/// Most memory that this process has had, in bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// A peer that answers every call with the same bytes.
fn liar(answer: impl Fn() -> Vec<u8> + Send + Sync + 'static) -> (Transport, String, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let transport = Transport::builder()
        .listen(([127, 0, 0, 1], 0).into())
        .limits(Limits { message: usize::MAX >> 1, ..Limits::default() })
        .same_process(false)
        .handler(move |_: Caller, _: &[u8]| {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(answer())
        })
        .build()
        .unwrap();
    let addr = transport.local_addrs()[0].to_string();
    (transport, addr, asked)
}

/// A gigabyte of metadata is refused when its length is announced, and never held in memory. (The liar lives in this process, too;
/// its zeroes are pages that nobody has touched, so they are not there.)
#[test]
fn a_gigabyte_of_metadata_is_refused_and_not_held() {
    let (liar, addr, asked) = liar(|| vec![0; 1 << 30]);
    let before = peak();
    let error = engine().open(&addr, Instant::now() + Duration::from_secs(10)).unwrap_err().to_string();
    assert!(asked.load(Ordering::Relaxed) > 0, "it was never asked: {error}");
    assert!(error.contains(&addr), "{error}");
    let grown = peak() - before;
    assert!(grown < 256 << 20, "{} MiB were held: {error}", grown >> 20);
    drop(liar);
}

/// Bytes of every kind instead of an answer: an error that names the peer, and the engine goes on.
#[test]
fn nonsense_instead_of_an_answer_is_refused_by_name() {
    let engine = engine();
    let huge_count = [1, 0, 1, b'x', 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    for answer in
        [vec![], vec![9; 40], vec![1, 1], vec![1, 0xff, 0xff], huge_count.to_vec(), vec![0; 1 << 20]]
    {
        let said = answer.clone();
        let (liar, addr, _) = liar(move || said.clone());
        let error = engine.open(&addr, soon()).unwrap_err().to_string();
        assert!(error.contains(&addr), "{answer:?}: {error}");
        drop(liar);
    }
    let other = self::engine();
    assert!(engine.open(other.name(), soon()).is_ok());
}

/// Questions of every kind: each gets an error, and the engine goes on serving.
#[test]
fn nonsense_instead_of_a_question_is_refused() {
    let engine = engine();
    let liar = Transport::builder().same_process(false).build().unwrap();
    let peer = liar.peer(engine.name().parse().unwrap()).unwrap();
    for question in [vec![], vec![7], vec![1], vec![1, 0, 0xff], vec![1, 200], vec![0xff; 100_000]] {
        let answer = peer.call(&question, soon());
        assert!(answer.is_err(), "{question:?}: {answer:?}");
    }
    // Notifications that are none are dropped; real ones come through.
    peer.notify(&[0xff; 10], soon()).unwrap();
    let other = self::engine();
    other.open(engine.name(), soon()).unwrap().notify(b"real", soon()).unwrap();
    assert_eq!(engine.notification(soon()).unwrap().payload, b"real");
}
