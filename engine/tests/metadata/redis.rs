//! A real Redis.

use engine::metadata::{Directory, MAX_VALUE_BYTES};

use crate::contract;
use crate::harness::{Server, TTL, directory, options};

fn arguments(port: u16, dir: &str) -> Vec<String> {
    ["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", dir]
        .map(str::to_owned)
        .to_vec()
}

fn start(test: &str) -> Option<Server> {
    Server::start(test, "redis-server", arguments)
}

fn url(server: &Server) -> String {
    format!("redis://127.0.0.1:{}", server.port)
}

#[test]
fn redis_keeps_names() {
    let Some(server) = start("redis_keeps_names") else { return };
    contract::names_are_published_found_changed_and_withdrawn(&url(&server));
    contract::renewals_say_what_they_found(&url(&server));
    contract::nonsense_in_the_store_is_an_error(&url(&server));
}

#[test]
fn redis_forgets_the_dead() {
    let Some(server) = start("redis_forgets_the_dead") else { return };
    contract::a_killed_node_vanishes(&url(&server));
}

#[test]
fn redis_gives_the_name_to_the_last() {
    let Some(server) = start("redis_gives_the_name_to_the_last") else { return };
    contract::the_last_to_come_has_the_name(&url(&server));
}

#[test]
fn redis_may_go_away_and_come_back_empty() {
    let Some(server) = start("redis_may_go_away_and_come_back_empty") else { return };
    let (url, server) = (url(&server), std::cell::RefCell::new(server));
    contract::what_the_server_lost_is_published_again(
        &url,
        || server.borrow_mut().kill(),
        || server.borrow_mut().restart_empty(),
    );
}

#[test]
fn redis_may_want_a_password_and_have_databases() {
    let server =
        Server::start("redis_may_want_a_password_and_have_databases", "redis-server", |port, dir| {
            let mut all = arguments(port, dir);
            all.extend(["--requirepass".into(), "open sesame".into()]);
            all
        });
    let Some(server) = server else { return };
    let right = directory(&format!("redis://:open%20sesame@127.0.0.1:{}/3", server.port));
    right.store().publish("k", b"v", TTL).unwrap();
    assert_eq!(right.store().lookup("k").unwrap().as_deref(), Some(&b"v"[..]));
    let elsewhere = directory(&format!("redis://:open%20sesame@127.0.0.1:{}/4", server.port));
    assert_eq!(elsewhere.store().lookup("k").unwrap(), None);
    for wrong in ["", ":hunter2@"] {
        let error =
            directory(&format!("redis://{wrong}127.0.0.1:{}", server.port)).store().lookup("k").unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&format!("redis://127.0.0.1:{}", server.port)), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}

/// Redis holds values of up to 512 MB; what is too long is not even fetched.
#[test]
fn a_huge_value_is_refused_unread() {
    let Some(server) = start("a_huge_value_is_refused_unread") else { return };
    let directory = Directory::connect(&url(&server), options()).unwrap().unwrap();
    directory.store().publish("weft/test/node/huge", &vec![b' '; MAX_VALUE_BYTES + 1], TTL * 10).unwrap();
    let error = directory.lookup("huge").unwrap_err();
    assert!(error.to_string().contains("not read"), "{error}");
    directory.store().publish("weft/test/node/huge", &vec![b' '; MAX_VALUE_BYTES], TTL * 10).unwrap();
    assert_eq!(directory.store().lookup("weft/test/node/huge").unwrap().unwrap().len(), MAX_VALUE_BYTES);
}
