//! Prefill with tensor parallelism 8 hands its KV cache over to decode with tensor parallelism 4.
//!
//! The geometry is Llama-3-70B's: 80 layers, 8 KV heads of 128 dimensions in bfloat16, pages of 16 tokens. A prefill rank has one
//! head, a decode rank two, so each head of a token goes between the heads of another rank: one strided request per layer.

use crate::alone;
use crate::cluster::{Cluster, Kind, LOCAL, Node, READ_WRITE};
use crate::order::{BatchOrder, Follow, Order, Request, Where, pattern};

const LAYERS: usize = 80;
const KV_HEADS: usize = 8;
/// Bytes of one head of one token: 128 dimensions of 2 bytes.
const HEAD: usize = 128 * 2;
const PAGE_TOKENS: usize = 16;
const PAGES: usize = 3;
/// Keys and values of all pages' tokens.
const ROWS: usize = PAGES * 2 * PAGE_TOKENS;
const PREFILL: usize = 8;
const DECODE: usize = 4;
/// Heads of a decode rank.
const HEADS: usize = KV_HEADS / DECODE;
/// Bytes of one layer at a prefill and at a decode rank.
const FROM: usize = ROWS * HEAD;
const TO: usize = ROWS * HEADS * HEAD;

fn handover(test: &str, kind: Kind) {
    let Some(cluster) = Cluster::new(test, kind) else { return };
    let _alone = alone();
    let mut prefill = cluster.node();
    let mut decode: Vec<Node> = (0..DECODE).map(|_| cluster.node()).collect();
    for rank in 0..PREFILL {
        prefill.register(&format!("rank-{rank}"), LAYERS * FROM, LOCAL, rank as u64);
    }
    for node in &mut decode {
        node.register("kv", LAYERS * TO, READ_WRITE, 99);
    }
    for rank in 0..PREFILL {
        let (target, head) = (&decode[rank / HEADS], rank % HEADS);
        let layer = |layer: usize| Request {
            write: true,
            local: (format!("rank-{rank}"), Where::Range { at: (layer * FROM) as u64, len: FROM as u64 }),
            segment: target.name.clone(),
            remote: (
                "kv".into(),
                Where::Strided {
                    at: (layer * TO + head * HEAD) as u64,
                    block_len: HEAD as u64,
                    stride: (HEADS * HEAD) as u64,
                    count: ROWS as u64,
                },
            ),
            tag: None,
        };
        let ended = prefill.batch(BatchOrder {
            requests: (0..LAYERS).map(layer).collect(),
            follow: Follow::Wait,
            deadline_ms: None,
            notify: Some(format!("rank {rank}").into_bytes()),
        });
        assert_eq!((ended.result, ended.statuses.len()), (Ok(()), LAYERS));
    }
    let ranks: Vec<Vec<u8>> = (0..PREFILL).map(|rank| pattern(LAYERS * FROM, rank as u64)).collect();
    for (d, node) in decode.iter_mut().enumerate() {
        for head in 0..HEADS {
            let told = node.note(20_000).map(|(_, payload)| String::from_utf8(payload).unwrap());
            assert_eq!(told, Some(format!("rank {}", d * HEADS + head)));
        }
        let mut expected = Vec::with_capacity(LAYERS * TO);
        for row in 0..LAYERS * ROWS {
            for rank in &ranks[d * HEADS..(d + 1) * HEADS] {
                expected.extend_from_slice(&rank[row * HEAD..(row + 1) * HEAD]);
            }
        }
        assert!(node.holds("kv", &expected), "decode rank {d}");
    }
    prefill.must(Order::Statistics);
}

#[test]
fn tp_8_to_tp_4_over_sockets() {
    handover("tp_8_to_tp_4_over_sockets", Kind::Tcp);
}

#[test]
fn tp_8_to_tp_4_within_the_host() {
    handover("tp_8_to_tp_4_within_the_host", Kind::Host);
}

#[test]
fn tp_8_to_tp_4_over_efa_direct() {
    handover("tp_8_to_tp_4_over_efa_direct", Kind::EfaDirect);
}
