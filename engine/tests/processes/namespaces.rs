//! Two network namespaces with a wire between them that is cut and mended. Needs root, `ip` and `nft`.

use std::process::Command;

use crate::alone;
use crate::cluster::{Kind, LOCAL, Node, READ_WRITE, eventually, filled, request_to};
use crate::order::{BatchOrder, Follow, Order, Setup};

const LEN: usize = 1 << 20;

fn run(command: &str) -> Result<(), String> {
    let output = Command::new("sh").args(["-c", command]).output().map_err(|e| e.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("`{command}`: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

/// Two namespaces, removed in the end.
struct Namespaces {
    near: String,
    far: String,
}

impl Namespaces {
    fn new() -> Result<Self, String> {
        let id = std::process::id();
        let this = Self { near: format!("weften{id}"), far: format!("weftef{id}") };
        run("command -v ip && command -v nft")?;
        let (near, far) = (&this.near, &this.far);
        run(&format!("ip netns add {near} && ip netns add {far}"))?;
        run(&format!("ip link add wn netns {near} type veth peer name wf netns {far}"))?;
        for (name, link, ip) in [(near, "wn", "10.98.0.1/24"), (far, "wf", "10.98.0.2/24")] {
            run(&format!("ip -n {name} addr add {ip} dev {link} && ip -n {name} link set {link} up"))?;
            run(&format!("ip -n {name} link set lo up"))?;
        }
        Ok(this)
    }

    fn node(&self, name: &str, ip: &str) -> Node {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", name]).arg(std::env::current_exe().unwrap());
        for variable in ["WEFT_PROTOCOL", "MOONCAKE_PROTOCOL", "MC_FORCE_TCP", "WEFT_CONFIG"] {
            command.env_remove(variable);
        }
        Node::start(command, Setup { listen: Some(format!("{ip}:0")), ..Kind::Tcp.setup() })
    }

    /// Swallows every packet at the far end: nobody is told, and nothing is closed.
    fn cut(&self) {
        let rules = "add table inet cut; add chain inet cut in { type filter hook input priority 0; }; \
                     add rule inet cut in iif wf drop";
        run(&format!("ip netns exec {} nft '{rules}'", self.far)).unwrap();
    }

    fn mend(&self) {
        run(&format!("ip netns exec {} nft delete table inet cut", self.far)).unwrap();
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        let _ = run(&format!("ip netns del {}", self.near));
        let _ = run(&format!("ip netns del {}", self.far));
    }
}

/// Requests end at their deadline while the wire is cut, in the middle of traffic, too; when it is mended, it goes on by itself,
/// and the peer is the same as before.
#[test]
fn a_partition_over_tcp_ends_requests_and_heals() {
    let namespaces = match Namespaces::new() {
        Ok(namespaces) => namespaces,
        Err(why) => return eprintln!("SKIP: a_partition_over_tcp_ends_requests_and_heals: {why}"),
    };
    let _alone = alone();
    let mut near = namespaces.node(&namespaces.near, "10.98.0.1");
    let mut far = namespaces.node(&namespaces.far, "10.98.0.2");
    far.register("pool", LEN, READ_WRITE, 1);
    near.register("staging", LEN, LOCAL, 2);
    let epoch = near.open(&far).epoch;
    let name = far.name.clone();
    let order = |deadline_ms| BatchOrder {
        requests: vec![request_to(true, "staging", &name, "pool", 0, LEN as u64)],
        follow: Follow::Wait,
        deadline_ms: Some(deadline_ms),
        notify: None,
    };
    near.must(Order::Traffic(order(1000)));
    let done = |near: &mut Node| near.peer_statistics(&name)["tcp"]["requests_done"].as_u64().unwrap();
    eventually("traffic flows", || done(&mut near) > 10);
    namespaces.cut();
    let ended = near.batch(order(1500));
    let error = ended.result.unwrap_err();
    assert!(error.contains("10.98.0.2"), "names the peer: {error}");
    assert!(ended.ms < 6000, "{} ms", ended.ms);
    assert!(near.must_fail(Order::Probe(name.clone())).contains("10.98.0.2"));
    namespaces.mend();
    let before = done(&mut near);
    eventually("traffic goes on", || done(&mut near) > before + 10);
    let (_, errors) = near.stop_traffic();
    assert!(!errors.is_empty() && errors.iter().all(|error| error.contains("10.98.0.2")), "{errors:?}");
    assert_eq!(near.batch(order(20_000)).result, Ok(()));
    assert!(far.holds("pool", &filled(LEN, 2)));
    assert_eq!(near.view(&name).epoch, epoch, "a cut wire is no restart");
}
