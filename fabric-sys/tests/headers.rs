//! Our types against C's, as the C compiler lays them out, for every set of headers that is here: libfabric 1.17's (Debian 12's
//! `libfabric-dev`) and those that the bindings were made from. What a version has lies where ours has it; ours may go on.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod support;

use core::mem::{offset_of, size_of};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::skip;

/// Size of each type, and offset of each field, by `TYPE` or `TYPE.FIELD`.
type Layout = BTreeMap<String, usize>;

macro_rules! compare {
    ($($ty:ident: $($field:ident)*;)*) => {
        fn ours() -> Layout {
            let mut all = Layout::new();
            $(
                all.insert(stringify!($ty).into(), size_of::<fabric_sys::$ty>());
                $(all.insert(
                    concat!(stringify!($ty), ".", stringify!($field)).into(),
                    offset_of!(fabric_sys::$ty, $field),
                );)*
            )*
            // Unions without a name in C.
            all.retain(|name, _| !name.contains("__bindgen_"));
            all
        }
    };
}

include!("fixtures/fields.rs");

/// The expression that C gives for one entry of the layout.
fn expression(name: &str) -> String {
    match name.split_once('.') {
        // `type` is a word of Rust's.
        Some((ty, field)) => format!("offsetof(struct {ty}, {})", field.trim_end_matches('_')),
        None => format!("sizeof(struct {name})"),
    }
}

/// What the C compiler says. What the headers do not have is left out. `None` without a compiler or such headers.
fn theirs(include: &Path, names: &[String]) -> Option<Layout> {
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("layout.c"), folder.path().join("layout"));
    let mut names = names.to_vec();
    // Each attempt leaves out the lines that the last one had errors in.
    for _ in 0..4 {
        let mut text = String::from("#include <stddef.h>\n#include <stdio.h>\n");
        let headers =
            ["fabric", "fi_atomic", "fi_cm", "fi_collective", "fi_domain", "fi_endpoint", "fi_eq", "fi_ext"];
        let headers = headers.into_iter().chain(["fi_ext_efa", "fi_rma", "fi_tagged", "providers/fi_prov"]);
        for header in headers.filter(|header| include.join(format!("rdma/{header}.h")).is_file()) {
            text += &format!("#include <rdma/{header}.h>\n");
        }
        text += "int main(void) {\n";
        let first = text.lines().count() + 1;
        for name in &names {
            text += &format!("printf(\"{name} %zu\\n\", {});\n", expression(name));
        }
        text += "return 0; }\n";
        std::fs::write(&source, text).unwrap();
        let mut compiler = Command::new("cc");
        compiler.arg("-isystem").arg(include).args(["-w", "-fmax-errors=0", "-o"]).arg(&program).arg(&source);
        let compiled = compiler.env("LC_ALL", "C").output().ok()?;
        if compiled.status.success() {
            let output = Command::new(&program).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            let entry =
                |line: &str| line.split_once(' ').map(|(name, n)| (name.to_owned(), n.parse().unwrap()));
            return Some(text.lines().filter_map(entry).collect());
        }
        let errors = String::from_utf8_lossy(&compiled.stderr).into_owned();
        let wrong: Vec<usize> = errors
            .lines()
            .filter_map(|line| line.strip_prefix(source.to_str()?)?.strip_prefix(':'))
            .filter(|rest| rest.contains(": error:"))
            .filter_map(|rest| rest.split(':').next()?.parse().ok())
            .collect();
        assert!(!wrong.is_empty(), "{errors}");
        let mut line = first;
        names.retain(|_| {
            line += 1;
            !wrong.contains(&(line - 1))
        });
    }
    panic!("the C compiler is not content with what is left");
}

/// Compares with one set of headers; returns the types that are shorter there.
fn check(test: &str, include: Option<PathBuf>, at_least: usize) -> Option<Vec<String>> {
    let Some(include) = include else {
        skip(test, "these headers are not on this machine");
        return None;
    };
    let ours = ours();
    let names: Vec<String> = ours.keys().cloned().collect();
    let Some(theirs) = theirs(&include, &names) else {
        skip(test, "no C compiler");
        return None;
    };
    assert!(
        theirs.len() >= at_least,
        "{} has only {} of our {}",
        include.display(),
        theirs.len(),
        ours.len()
    );
    let mut shorter = Vec::new();
    for (name, value) in theirs {
        let here = ours[&name];
        if name.contains('.') {
            assert_eq!(here, value, "offset of {name} (ours, {}'s)", include.display());
        } else if here != value {
            assert!(here > value, "{name} is {here} bytes here and {value} in {}", include.display());
            shorter.push(name);
        }
    }
    Some(shorter)
}

/// Is this the folder of headers of the version?
fn of_version(include: &Path, major: u32, minor: u32) -> bool {
    let text = std::fs::read_to_string(include.join("rdma/fabric.h")).unwrap_or_default();
    let has = |name: &str, value: u32| {
        text.lines().any(|line| line.split_whitespace().eq(["#define", name, &value.to_string()]))
    };
    has("FI_MAJOR_VERSION", major) && has("FI_MINOR_VERSION", minor)
}

#[test]
fn everything_that_1_17_has_lies_where_ours_has_it() {
    let include = Some(PathBuf::from("/usr/include")).filter(|dir| of_version(dir, 1, 17));
    let test = "everything_that_1_17_has_lies_where_ours_has_it";
    let Some(shorter) = check(test, include, 500) else { return };
    // Those that the library allocates are the guide's business (`fi_domain_attr`), tables say their size, and the rest we
    // allocate, zeroed.
    let expected = ["fi_cq_err_entry", "fi_domain_attr", "fi_mr_attr", "fi_mr_modify", "fi_ops_av"];
    assert_eq!(shorter, expected);
}

#[test]
fn the_headers_of_the_bindings_agree_in_everything() {
    let executable = std::env::current_exe().unwrap();
    let include = executable.ancestors().map(|dir| dir.join("bindgen/libfabric-2.1.0/usr/include"));
    let include = include.into_iter().find(|dir| of_version(dir, 2, 1));
    let test = "the_headers_of_the_bindings_agree_in_everything";
    let Some(shorter) = check(test, include, ours().len()) else { return };
    assert_eq!(shorter, [""; 0]);
}
