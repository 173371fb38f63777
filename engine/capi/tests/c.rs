//! A C program, compiled with the system's compiler against header and library, in two processes.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Ends with the test, whatever happens.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where cargo has put the library that belongs to this test.
fn libraries() -> PathBuf {
    let deps = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let places = [deps.clone(), deps.parent().unwrap().to_owned()];
    places.into_iter().find(|place| place.join("libweft.so").is_file()).expect("libweft.so beside the test")
}

/// Compiles the program; `None`, and said, where there is no compiler.
fn compile(test: &str, into: &Path, link: &[&str]) -> Option<PathBuf> {
    let program = into.join(test);
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let mut command = Command::new(&compiler);
    command.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-I"]).arg(package().join("include"));
    command.arg(package().join("tests/program.c")).arg("-o").arg(&program).args(link);
    match command.output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Some(program)
        }
        Err(error) => {
            eprintln!("SKIP: {test}: no C compiler ({compiler}: {error})");
            None
        }
    }
}

/// Two processes of the program, one driving the other.
fn run(program: &Path, protocol: &str) {
    let start = |arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).env("LD_LIBRARY_PATH", libraries()).env_remove("WEFT_PROTOCOL");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Running(command.spawn().unwrap())
    };
    let mut server = start(&["serve", protocol]);
    let mut said = BufReader::new(server.0.stdout.take().unwrap()).lines();
    let name = said.next().expect("the server says its name").unwrap();

    let mut driver = start(&["drive", protocol, &name]);
    let driven: Vec<_> =
        BufReader::new(driver.0.stdout.take().unwrap()).lines().map(Result::unwrap).collect();
    assert!(driver.0.wait().unwrap().success());
    assert_eq!(driven, ["done"]);

    server.0.stdin.take().unwrap().write_all(b"look\n").unwrap();
    assert_eq!(said.next().map(Result::unwrap).as_deref(), Some("verified"));
    assert!(server.0.wait().unwrap().success());
}

#[test]
fn a_c_program_with_the_shared_library() {
    let scratch = tempfile::tempdir().unwrap();
    let search = format!("-L{}", libraries().display());
    if let Some(program) = compile("shared", scratch.path(), &[&search, "-lweft"]) {
        run(&program, "tcp");
    }
}

#[test]
fn a_c_program_with_the_static_library() {
    let scratch = tempfile::tempdir().unwrap();
    let archive = libraries().join("libweft.a");
    // What Rust's standard library needs of the system.
    let system = ["-lpthread", "-ldl", "-lm", "-lgcc_s"];
    let link: Vec<&str> = std::iter::once(archive.to_str().unwrap()).chain(system).collect();
    if let Some(program) = compile("static", scratch.path(), &link) {
        run(&program, "tcp");
    }
}

#[test]
fn the_header_is_the_one_checked_in() {
    let config = cbindgen::Config::from_file(package().join("cbindgen.toml")).unwrap();
    let bindings = cbindgen::generate_with_config(package(), config).unwrap();
    let mut made = Vec::new();
    bindings.write(&mut made);
    let made = String::from_utf8(made).unwrap();
    let path = package().join("include/weft.h");
    if std::env::var_os("WEFT_UPDATE_HEADER").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == made,
        "include/weft.h is not what the sources say; run WEFT_UPDATE_HEADER=1 cargo test -p weft-capi"
    );
}
