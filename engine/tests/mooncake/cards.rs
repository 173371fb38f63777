//! Mooncake's EFA wheel and this engine on the same cards.

use engine::settings::Mooncake;
use engine::{Engine, Path, Protocol};

use crate::common::{Weft, soon};
use crate::real::{Node, both_ways};

#[test]
fn both_systems_read_and_write_each_other_over_efa() {
    let test = "both_systems_read_and_write_each_other_over_efa";
    if std::env::var_os("SOFT_EFA_DIR").is_none() && !std::path::Path::new("/dev/infiniband/uverbs0").exists()
    {
        eprintln!("SKIP: {test}: no EFA card; `cargo xtask soft-efa -- …` runs it on software cards");
        return;
    }
    let Some(mut node) =
        Node::start_with(test, "WEFT_MOONCAKE_EFA_PYTHON", "127.0.0.1", "P2PHANDSHAKE", "efa")
    else {
        return;
    };
    let engine = Engine::builder().protocol(Protocol::Efa).mooncake(Mooncake::On).build().unwrap();
    let weft = Weft::around(engine);
    let segment = weft.engine.open(&node.name, soon()).unwrap();
    assert!(matches!(segment.path(), Path::Fabric(_)), "{}", segment.path());
    segment.warm_up(soon()).unwrap();
    both_ways(&weft, &mut node, &segment);
    segment.notify(b"over-the-handshake", soon()).unwrap();
    assert!(node.tell("notifies").contains("over-the-handshake"));
}
