//! topo and plan.
#![allow(clippy::unwrap_used)] // a test fails by panicking

mod common;

use common::weft_with;
use serde_json::json;

/// Two cards of soft-efa's making: a sysfs tree as a machine has it.
fn cards() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    soft_efa::sysfs::build(dir.path(), &soft_efa::Profile::named("p5en").unwrap(), 4).unwrap();
    for node in 0..2 {
        let node_dir = dir.path().join(format!("sys/devices/system/node/node{node}"));
        std::fs::create_dir_all(&node_dir).unwrap();
        std::fs::write(node_dir.join("cpulist"), format!("{}-{}\n", node * 48, node * 48 + 47)).unwrap();
    }
    dir
}

#[test]
fn the_topology_is_told_in_tables_json_and_as_the_matrix() {
    let dir = cards();
    let root = dir.path().join("sys");
    let root = root.to_str().unwrap();
    let tables = weft_with(["topo", "--root", root]).expect(0).stdout;
    for part in
        ["NICs", "rdmap79s25", "200 Gbit/s", "efa", "Memory nodes", "cpu:1", "48-95", "Priority matrix"]
    {
        assert!(tables.contains(part), "{part} in {tables}");
    }
    let matrix = weft_with(["topo", "--root", root, "--matrix"]).expect(0).json();
    let [near, far] = [&matrix["cpu:0"][0], &matrix["cpu:0"][1]].map(|list| list.as_array().unwrap().len());
    assert_eq!((near + far, matrix.as_object().unwrap().len()), (4, 2), "{matrix}");
    let all = weft_with(["topo", "--root", root, "--json", "--nics", "rdmap79s2?,!*7,!*8"]).expect(0).json();
    assert_eq!(all["topology"]["nics"].as_array().unwrap().len(), 2, "{all}");
    assert_eq!(all["topology"]["nics"][0]["kind"], "efa");
    assert_eq!(all["priority_matrix"]["cpu:0"][0].as_array().unwrap().len(), 2, "{all}");
}

#[test]
fn this_machines_topology_is_readable() {
    weft_with(["topo"]).expect(0);
    weft_with(["topo", "--json"]).expect(0).json();
}

#[test]
fn a_plan_is_explained() {
    let plan =
        weft_with(["plan", "--nics", "4", "--buffers", "100G@cpu:0/4K,2x16G@cuda:0/2M", "--policy", "2"])
            .expect(0)
            .stdout;
    for part in
        ["3 buffer(s) of 132 GiB", "NICs", "PTEs left", "nic3", "Chunks", "cuda:0", "Wanted NICs per byte"]
    {
        assert!(plan.contains(part), "{part} in {plan}");
    }
    let refused = weft_with(["plan", "--nics", "4", "--buffers", "400G/4K", "--at-least", "4"]).expect(2);
    assert!(refused.stderr.contains("page table entries"), "{}", refused.stderr);
    let pieces = weft_with(["plan", "--nics", "2", "--buffers", "1M", "--json"]).expect(0).json();
    let names = json!(["nic0", "nic1"]);
    let covered: u64 =
        pieces["pieces"].as_array().unwrap().iter().map(|piece| piece["bytes"].as_u64().unwrap()).sum();
    assert_eq!((covered, &pieces["pieces"][0]["nics"]), (1 << 20, &names), "{pieces}");
    assert_eq!(pieces["fulfilment"], json!(1.0));
}

#[test]
fn a_plan_is_made_of_a_file_or_a_machine() {
    let dir = cards();
    let root = dir.path().join("sys");
    let plan = weft_with([
        "plan",
        "--root",
        root.to_str().unwrap(),
        "--buffers",
        "8x1G@cpu:1/2M",
        "--policy",
        "near",
    ])
    .expect(0)
    .stdout;
    assert!(plan.contains("rdmap79s25") && plan.contains("8 GiB"), "{plan}");
    let file = dir.path().join("pool.toml");
    std::fs::write(
        &file,
        "policy = \"near\"\n[[nics]]\nname = \"near0\"\nnuma = 0\n[[nics]]\nname = \"far0\"\nnuma = 1\n\
         [[buffers]]\nsize = \"1G\"\nlocation = \"cpu:0\"\npage = \"2M\"\n",
    )
    .unwrap();
    let plan = weft_with(["plan", "--json", "--file", file.to_str().unwrap()]).expect(0).json();
    assert_eq!(plan["pieces"][0]["nics"], json!(["near0"]), "{plan}");
    std::fs::write(&file, "[[nics]]\nnam = \"x\"\n").unwrap();
    let wrong = weft_with(["plan", "--file", file.to_str().unwrap()]).expect(2);
    assert!(wrong.stderr.contains("pool.toml") && wrong.stderr.contains("nam"), "{}", wrong.stderr);
}
