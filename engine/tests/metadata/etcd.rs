//! A real etcd.

use std::time::{Duration, Instant};

use engine::metadata::{Directory, Record};

use crate::contract;
use crate::harness::{self, Server, directory, free_port, options};

fn url(server: &Server) -> String {
    format!("etcd://127.0.0.1:{}", server.port)
}

#[test]
fn etcd_keeps_names() {
    let Some(server) = harness::etcd("etcd_keeps_names") else { return };
    contract::names_are_published_found_changed_and_withdrawn(&url(&server));
    contract::renewals_say_what_they_found(&url(&server));
    contract::nonsense_in_the_store_is_an_error(&url(&server));
}

#[test]
fn etcd_forgets_the_dead() {
    let Some(server) = harness::etcd("etcd_forgets_the_dead") else { return };
    contract::a_killed_node_vanishes(&url(&server));
}

#[test]
fn etcd_gives_the_name_to_the_last() {
    let Some(server) = harness::etcd("etcd_gives_the_name_to_the_last") else { return };
    contract::the_last_to_come_has_the_name(&url(&server));
}

#[test]
fn etcd_may_go_away_and_come_back_empty() {
    let Some(server) = harness::etcd("etcd_may_go_away_and_come_back_empty") else { return };
    let (url, server) = (url(&server), std::cell::RefCell::new(server));
    contract::what_the_server_lost_is_published_again(
        &url,
        || server.borrow_mut().kill(),
        || server.borrow_mut().restart_empty(),
    );
}

#[test]
fn of_several_endpoints_one_is_enough() {
    let Some(server) = harness::etcd("of_several_endpoints_one_is_enough") else { return };
    // Nobody listens at the first; the second takes connections and never says a word.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!(
        "etcd://127.0.0.1:{},127.0.0.1:{},127.0.0.1:{}",
        free_port(),
        mute.local_addr().unwrap().port(),
        server.port
    );
    let directory = directory(&url);
    let record = Record::new("10.0.0.1:1", 1);
    let _lease = directory.publish("one", &record).unwrap();
    let begun = Instant::now();
    assert_eq!(directory.lookup("one").unwrap(), Some(record));
    assert!(
        begun.elapsed() < Duration::from_millis(900),
        "it asks the one that answered: {:?}",
        begun.elapsed()
    );
}

/// etcd refuses requests beyond 1.5 MiB; the message says so, and nothing is left behind.
#[test]
fn what_etcd_refuses_is_said() {
    let Some(server) = harness::etcd("what_etcd_refuses_is_said") else { return };
    let directory = Directory::connect(&url(&server), options()).unwrap().unwrap();
    let error = directory.store().publish("weft/test/raw/big", &vec![7; 3 << 20], options().ttl).unwrap_err();
    assert!(error.to_string().contains("1.5 MiB"), "{error}");
    assert_eq!(directory.store().lookup("weft/test/raw/big").unwrap(), None);
}
