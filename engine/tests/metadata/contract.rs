//! What every store promises, whatever server it is on.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use engine::Error;
use engine::metadata::{Record, Renewal};

use crate::harness::{SLACK, TTL, directory, until};

const URL: &str = "ENGINE_TEST_METADATA_URL";

pub(crate) fn names_are_published_found_changed_and_withdrawn(url: &str) {
    let (here, there) = (directory(url), directory(url));
    assert_eq!(there.lookup("node/with spaces & ü").unwrap(), None);
    let record = Record::new("10.0.0.1:7000", 1);
    let lease = here.publish("node/with spaces & ü", &record).unwrap();
    assert_eq!(there.lookup("node/with spaces & ü").unwrap(), Some(record));
    let moved = Record::new("10.0.0.2:7000", 2);
    lease.update(moved.encode()).unwrap();
    assert_eq!(there.lookup("node/with spaces & ü").unwrap(), Some(moved));
    assert_eq!(there.lookup("node").unwrap(), None);
    lease.withdraw().unwrap();
    assert_eq!(there.lookup("node/with spaces & ü").unwrap(), None);
    // Clusters do not see each other.
    let _lease = here.publish("one", &Record::new("host:1", 1)).unwrap();
    assert!(there.store().lookup("weft/test/node/one").unwrap().is_some());
    assert_eq!(there.store().lookup("weft/node/one").unwrap(), None);
    let error = here.publish(&"x".repeat(2000), &Record::new("host:1", 1)).unwrap_err();
    assert!(error.to_string().contains("1024"), "{error}");
}

/// The node is another process. As long as it lives its entry does, however often the lease would have ended; when it has
/// been killed the entry goes.
pub(crate) fn a_killed_node_vanishes(url: &str) {
    let mut node = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "contract::node_process", "--nocapture"])
        .env(URL, url)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(node.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("PUBLISHED")), "the node did not publish itself");
    let here = directory(url);
    let begun = Instant::now();
    while begun.elapsed() < TTL * 3 {
        assert!(here.lookup("victim").unwrap().is_some(), "lost after {:?}", begun.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    node.kill().unwrap();
    node.wait().unwrap();
    until("the entry ends with its lease", TTL + SLACK, || here.lookup("victim").unwrap().is_none());
}

/// Not a test of its own: what the other process runs.
#[test]
fn node_process() {
    let Ok(url) = std::env::var(URL) else { return };
    let _lease = directory(&url).publish("victim", &Record::new("10.0.0.9:1", 9)).unwrap();
    println!("\nPUBLISHED");
    // Until it is killed; if nobody does, its test has failed.
    std::thread::sleep(Duration::from_secs(60));
}

/// `stop` makes the server go away, `start` brings it back empty.
pub(crate) fn what_the_server_lost_is_published_again(url: &str, stop: impl FnOnce(), start: impl FnOnce()) {
    let (here, there) = (directory(url), directory(url));
    let record = Record::new("10.0.0.1:7000", 1);
    let _lease = here.publish("steady", &record).unwrap();
    assert!(there.lookup("steady").unwrap().is_some());
    stop();
    let begun = Instant::now();
    let error = there.lookup("steady").unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let text = error.to_string();
    assert!(
        matches!(error, Error::Metadata { .. }) && text.contains("127.0.0.1") && text.contains("running"),
        "{text}"
    );
    assert!(here.publish("late", &record).is_err());
    // Long enough for renewals to have failed.
    std::thread::sleep(TTL / 2);
    start();
    until("it is published again", TTL + SLACK, || {
        there.lookup("steady").is_ok_and(|found| found.as_ref() == Some(&record))
    });
    assert_eq!(there.lookup("late").unwrap(), None, "what was refused does not come later");
}

/// The last to come has the name; the one before leaves it alone, and has it again when it is free.
pub(crate) fn the_last_to_come_has_the_name(url: &str) {
    let (old, new, reader) = (directory(url), directory(url), directory(url));
    let (first, second) = (Record::new("10.0.0.1:1", 1), Record::new("10.0.0.2:2", 2));
    let old_lease = old.publish("name", &first).unwrap();
    let new_lease = new.publish("name", &second).unwrap();
    let begun = Instant::now();
    while begun.elapsed() < TTL * 2 {
        assert_eq!(reader.lookup("name").unwrap().as_ref(), Some(&second), "after {:?}", begun.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    new_lease.withdraw().unwrap();
    until("the first has it again", TTL + SLACK, || reader.lookup("name").unwrap().as_ref() == Some(&first));
    let new_lease = new.publish("name", &second).unwrap();
    drop(old_lease);
    assert_eq!(reader.lookup("name").unwrap(), Some(second), "who goes takes only its own entry along");
    drop(new_lease);
    assert_eq!(reader.lookup("name").unwrap(), None);
}

pub(crate) fn renewals_say_what_they_found(url: &str) {
    let directory = directory(url);
    let store = directory.store();
    let key = "weft/test/raw/renewed";
    store.publish(key, b"mine", TTL).unwrap();
    assert_eq!(store.renew(key, b"mine", TTL).unwrap(), Renewal::Kept);
    assert_eq!(store.renew(key, b"yours", TTL).unwrap(), Renewal::Taken);
    store.remove(key, b"yours").unwrap();
    assert_eq!(store.lookup(key).unwrap().as_deref(), Some(&b"mine"[..]));
    store.remove(key, b"mine").unwrap();
    assert_eq!(store.lookup(key).unwrap(), None);
    assert_eq!(store.renew(key, b"mine", TTL).unwrap(), Renewal::Restored);
    assert_eq!(store.lookup(key).unwrap().as_deref(), Some(&b"mine"[..]));
}

/// What lies in the store is not what an engine wrote.
pub(crate) fn nonsense_in_the_store_is_an_error(url: &str) {
    let directory = directory(url);
    for nonsense in
        [&b"\xff\x00"[..], b"{}", b"[[[[", br#"{"address":"nowhere","epoch":"1"}"#, &[b'['; 100_000]]
    {
        directory.store().publish("weft/test/node/odd", nonsense, TTL).unwrap();
        let error = directory.lookup("odd").unwrap_err();
        assert!(matches!(&error, Error::Metadata { .. }), "{error:?}");
        assert!(error.to_string().contains("odd"), "{error}");
    }
}
