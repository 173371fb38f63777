//! Whatever comes over the control socket, it is answered with `ok` or `error`, and rules that were accepted can be read back.
#![no_main]

use soft_efa::fuzzing::Listener;
use std::cell::RefCell;

thread_local! {
    static LISTENER: RefCell<Option<Listener>> = const { RefCell::new(None) };
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    LISTENER.with_borrow_mut(|listener| {
        let listener =
            listener.get_or_insert_with(|| Listener::new().expect("the temporary directory can be written"));
        for command in data.split(|&byte| byte == b'\n').take(16) {
            let answer = listener.answer(command).expect("a socket pair works");
            assert!(answer.starts_with("ok ") || answer.starts_with("error "), "{answer:?}");
        }
        let listed = listener.answer(b"list").expect("a socket pair works");
        for line in listed.lines().skip(1) {
            let rule = line.split_once(' ').map_or("", |(_, rule)| rule);
            assert!(rule.parse::<soft_efa::rules::Rule>().is_ok(), "{rule:?} was accepted and is none");
        }
        assert!(listener.answer(b"clear").expect("a socket pair works").starts_with("ok"));
    });
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = soft_efa::rules::parse_file(text);
        let _ = soft_efa::settings::parse_size(text);
    }
});
