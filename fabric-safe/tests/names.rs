//! An endpoint of `shm` opens whatever other processes have left in `/dev/shm` or keep there.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use fabric_safe::Hints;
use support::node::{Node, discover};
use support::{libraries, skip};

/// A file that is gone when the test is over.
struct Planted(PathBuf);

impl Drop for Planted {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn a_file_with_the_providers_name_for_us_is_in_nobodys_way() {
    let test = "a_file_with_the_providers_name_for_us_is_in_nobodys_way";
    libraries::on_each(test, || {
        let Some(info) = discover("shm") else {
            return skip(test, "no provider shm here");
        };
        // As a container's process with our number would have them, or a dead one that had it before us. What is in them is
        // of no version that the provider knows.
        let user = fs::metadata("/proc/self").unwrap().uid();
        let planted = [0, 1].map(|index| {
            let path = PathBuf::from(format!("/dev/shm/{}:{user}:{index}", std::process::id()));
            fs::write(&path, [0xa5; 8192]).unwrap();
            Planted(path)
        });
        let nodes = [Node::open(&info), Node::open(&info)];
        let names = nodes.each_ref().map(|node| node.endpoint.name().unwrap());
        assert_ne!(names[0], names[1]);
        for planted in &planted {
            assert_eq!(
                fs::read(&planted.0).unwrap(),
                [0xa5; 8192],
                "somebody else's endpoint was overwritten"
            );
        }
        drop(nodes);
        for name in names {
            let file = String::from_utf8(name.split(|byte| *byte == 0).next().unwrap().to_vec()).unwrap();
            assert!(file.starts_with("fabric-safe."), "{file}");
            assert!(!PathBuf::from(format!("/dev/shm/{file}")).exists(), "{file} is left after its endpoint");
        }
    });
}

#[test]
fn a_name_that_was_asked_for_is_kept() {
    let test = "a_name_that_was_asked_for_is_kept";
    libraries::on_each(test, || {
        let asked = format!("weft-names-test-{}", std::process::id());
        let infos = Hints::new().provider("shm").source(&asked, None).discover().unwrap();
        let Some(info) = infos.first() else {
            return skip(test, "no provider shm here");
        };
        let node = Node::open(info);
        let name = node.endpoint.name().unwrap();
        assert!(String::from_utf8_lossy(&name).contains(&asked), "{name:?}");
    });
}
