//! Both systems on one metadata server.

use engine::metadata::http_server::{Options, serve};
use engine::{Access, Engine, HostMemory};

use crate::common::{Weft, soon};
#[cfg(feature = "etcd")]
use crate::harness;
use crate::real::{Node, both_ways};

/// What an engine publishes for Mooncake's nodes: their keys, their JSON, up to date, and gone when it goes.
#[test]
fn an_engine_publishes_itself_under_mooncakes_keys() {
    let server = serve("127.0.0.1:0".parse().unwrap(), Options::default()).unwrap();
    let weft = Weft::of(Engine::builder().name("prefill-7").metadata(server.url()));
    let directory = engine::metadata::open(&server.url()).unwrap().unwrap();
    let get = |key: &str| {
        let value = directory.store().lookup(key).unwrap()?;
        Some(serde_json::from_slice::<serde_json::Value>(&value).unwrap())
    };
    let place = get("mooncake/rpc_meta/prefill-7").unwrap();
    assert_eq!(place["ip_or_host_name"], "127.0.0.1");
    let segment = get("mooncake/ram/prefill-7").unwrap();
    assert_eq!((&segment["name"], &segment["protocol"]), (&"prefill-7".into(), &"tcp".into()));
    assert_eq!(segment["tcp_data_port"], place["rpc_port"]);
    assert_eq!(segment["buffers"].as_array().unwrap().len(), 1);
    let more = weft.engine.register("more", HostMemory::new(4096).unwrap(), Access::READ).unwrap();
    assert_eq!(get("mooncake/ram/prefill-7").unwrap()["buffers"].as_array().unwrap().len(), 2);
    weft.engine.unregister(more).unwrap();
    assert_eq!(get("mooncake/ram/prefill-7").unwrap()["buffers"].as_array().unwrap().len(), 1);
    drop(weft);
    assert_eq!(server.entries(), 0, "all leases are gone with the engine");
}

/// One store, both kinds of nodes; the engines find each other natively.
#[test]
fn both_systems_find_each_other_in_a_store() {
    let test = "both_systems_find_each_other_in_a_store";
    let server = serve("127.0.0.1:0".parse().unwrap(), Options::default()).unwrap();
    let weft = Weft::of(Engine::builder().name("prefill-7").metadata(server.url()));
    let other = Weft::of(Engine::builder().name("prefill-8").metadata(server.url()));
    let native = weft.engine.open("prefill-8", soon()).unwrap();
    assert!(matches!(native.path(), engine::Path::Tcp(_)), "{}", native.path());
    drop(other);
    let error = weft.engine.open("nobody", soon()).unwrap_err().to_string();
    assert!(error.contains("nobody") && error.contains(&server.url()), "{error}");
    // Mooncake's nodes are told their port; this one was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let Some(mut node) = Node::start(test, &format!("127.0.0.1:{port}"), &server.url()) else { return };
    let segment = weft.engine.open(&node.name, soon()).unwrap();
    both_ways(&weft, &mut node, &segment);
}

/// The wheel brings etcd's own client along, so what it reads and writes there is what it really does.
#[cfg(feature = "etcd")]
#[test]
fn both_systems_find_each_other_in_etcd() {
    let test = "both_systems_find_each_other_in_etcd";
    let Some(server) = harness::etcd(test) else { return };
    let url = format!("etcd://127.0.0.1:{}", server.port);
    let weft = Weft::of(Engine::builder().name("prefill-9").metadata(&url));
    let Some(mut node) = Node::start(test, &format!("127.0.0.1:{}", harness::free_port()), &url) else {
        return;
    };
    let segment = weft.engine.open(&node.name, soon()).unwrap();
    both_ways(&weft, &mut node, &segment);
}
