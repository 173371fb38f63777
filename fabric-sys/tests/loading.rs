//! How libfabric is found. Each case is a child process with an environment of its own, because a process loads once.

#![cfg(not(feature = "linked"))]
#![allow(clippy::unwrap_used)] // a test fails by panicking

mod support;

use std::path::Path;
use std::process::Command;

use fabric_sys::{LIBRARY_VARIABLE, LoadError, SONAME, Version};
use support::{library_1_17, library_2_5, skip};

/// Set in children: what to open by itself first, to be "already loaded".
const PRELOAD: &str = "FABRIC_SYS_TEST_PRELOAD";
const IS_CHILD: &str = "FABRIC_SYS_TEST_CHILD";

/// The child: loads, and prints what came of it, one fact a line.
#[test]
fn child() {
    if std::env::var_os(IS_CHILD).is_none() {
        return;
    }
    if let Some(path) = std::env::var_os(PRELOAD) {
        let path = std::ffi::CString::new(path.into_encoded_bytes()).unwrap();
        // SAFETY: opens a libfabric, as another part of a program would.
        assert!(!unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) }.is_null());
    }
    assert!(fabric_sys::loaded().is_none(), "nothing has been loaded yet");
    println!(); // the harness has begun a line
    let outcome = fabric_sys::load();
    match &outcome {
        Ok(library) => {
            println!("version={}", library.version());
            println!("package={}", library.package_version());
            println!("api={}", library.api_version());
            println!("path={}", library.path().display());
            println!("shared={}", library.was_already_loaded());
            assert!(std::ptr::eq(fabric_sys::loaded().unwrap(), *library));
            assert!(std::ptr::eq(fabric_sys::load().unwrap(), *library));
        }
        Err(error) => {
            println!("error={error}");
            assert!(fabric_sys::loaded().is_none());
        }
    }
    let kind = match outcome {
        Ok(_) => "ok",
        Err(LoadError::NotFound { .. }) => "not found",
        Err(LoadError::Override { .. }) => "override",
        Err(LoadError::NotLibfabric { .. }) => "not libfabric",
        Err(LoadError::TooOld { .. }) => "too old",
        Err(_) => "other",
    };
    println!("kind={kind}");
}

/// What a child printed.
struct Outcome(String);

impl Outcome {
    fn get(&self, key: &str) -> &str {
        let found = self.0.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        found.unwrap_or_else(|| panic!("no {key} in:\n{}", self.0))
    }
}

/// Runs [`child`] with exactly these variables about libfabric.
fn load_with(variables: &[(&str, &Path)]) -> Outcome {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture", "--test-threads=1"]).env(IS_CHILD, "1");
    for name in [LIBRARY_VARIABLE, "LD_LIBRARY_PATH", "FI_PROVIDER_PATH", PRELOAD] {
        command.env_remove(name);
    }
    let output = command.envs(variables.iter().copied()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{}\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Outcome(text)
}

/// A folder with a file called `libfabric.so.1` that is no library.
fn garbage() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(SONAME), "this is not an ELF file\n".repeat(200)).unwrap();
    dir
}

#[test]
fn the_variable_chooses_the_file() {
    for (library, version, package) in [
        (library_1_17("the_variable_chooses_the_file"), Version::new(1, 17), "1.17"),
        (library_2_5("the_variable_chooses_the_file"), Version::new(2, 5), "2.5.1"),
    ] {
        let Some(library) = library else { continue };
        let outcome = load_with(&[(LIBRARY_VARIABLE, &library)]);
        assert_eq!(outcome.get("kind"), "ok");
        assert_eq!(outcome.get("version"), version.to_string());
        assert!(outcome.get("package").starts_with(package), "{}", outcome.0);
        assert_eq!(Path::new(outcome.get("path")), library);
        assert_eq!(outcome.get("shared"), "false");
        let api = if version < Version::new(1, 20) { version } else { Version::new(1, 20) };
        assert_eq!(outcome.get("api"), api.to_string());
    }
}

#[test]
fn a_copy_that_is_already_there_is_reused_whatever_the_variable_says() {
    let name = "a_copy_that_is_already_there_is_reused_whatever_the_variable_says";
    let (Some(old), Some(new)) = (library_1_17(name), library_2_5(name)) else { return };
    for (there, asked) in [(&old, &new), (&new, &old)] {
        let outcome = load_with(&[(PRELOAD, there), (LIBRARY_VARIABLE, asked)]);
        assert_eq!(outcome.get("kind"), "ok");
        assert_eq!(Path::new(outcome.get("path")), *there, "two copies in one process");
        assert_eq!(outcome.get("shared"), "true");
    }
}

#[test]
fn the_loaders_own_search_is_last() {
    let Some(new) = library_2_5("the_loaders_own_search_is_last") else { return };
    if Path::new("/opt/amazon/efa").exists() {
        return skip("the_loaders_own_search_is_last", "AWS's EFA installer has a libfabric here");
    }
    let outcome = load_with(&[("LD_LIBRARY_PATH", new.parent().unwrap())]);
    assert_eq!(Path::new(outcome.get("path")), new);
    assert_eq!(outcome.get("shared"), "false");
}

#[test]
fn an_absent_file_is_an_error_that_names_it() {
    let outcome = load_with(&[(LIBRARY_VARIABLE, Path::new("/nonexistent/libfabric.so.1"))]);
    assert_eq!(outcome.get("kind"), "override");
    let error = outcome.get("error");
    assert!(error.contains("/nonexistent/libfabric.so.1") && error.contains(LIBRARY_VARIABLE), "{error}");
}

#[test]
fn a_garbage_file_is_an_error_and_nothing_else_is_tried() {
    let dir = garbage();
    let file = dir.path().join(SONAME);
    let outcome = load_with(&[(LIBRARY_VARIABLE, &file)]);
    assert_eq!(outcome.get("kind"), "override");
    assert!(outcome.get("error").contains("ELF"), "{}", outcome.0);
}

#[test]
fn garbage_on_the_search_path_never_crashes() {
    let dir = garbage();
    let outcome = load_with(&[("LD_LIBRARY_PATH", dir.path())]);
    // The loader goes on to the next folder or gives up; both are answers.
    assert!(["ok", "not found"].contains(&outcome.get("kind")), "{}", outcome.0);
}

#[test]
fn a_library_that_is_not_libfabric_is_refused() {
    let outcome = load_with(&[(LIBRARY_VARIABLE, Path::new("libm.so.6"))]);
    assert_eq!(outcome.get("kind"), "not libfabric");
    assert!(outcome.get("error").contains("fi_version"), "{}", outcome.0);
}

#[test]
fn a_library_that_is_too_old_is_refused() {
    let name = "a_library_that_is_too_old_is_refused";
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("old.c");
    let functions = "getinfo freeinfo dupinfo fabric open strerror tostr_r getparams freeparams";
    let stubs: String =
        functions.split(' ').map(|f| format!("void *fi_{f}(void) {{ return 0; }}\n")).collect();
    std::fs::write(&source, format!("unsigned fi_version(void) {{ return 1 << 16 | 9; }}\n{stubs}")).unwrap();
    let library = dir.path().join("libfabric-old.so");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    if !built.is_ok_and(|status| status.success()) {
        return skip(name, "no C compiler to build a stand-in");
    }
    let outcome = load_with(&[(LIBRARY_VARIABLE, &library)]);
    assert_eq!(outcome.get("kind"), "too old");
    assert!(outcome.get("error").contains("1.9"), "{}", outcome.0);
}

#[test]
fn an_empty_variable_is_ignored() {
    let outcome = load_with(&[(LIBRARY_VARIABLE, Path::new(""))]);
    assert!(["ok", "not found"].contains(&outcome.get("kind")), "{}", outcome.0);
}

#[test]
fn many_threads_load_one_library() {
    if library_1_17("many_threads_load_one_library").is_none() {
        return;
    }
    let addresses: Vec<usize> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..8).map(|_| scope.spawn(|| std::ptr::from_ref(fabric_sys::load().unwrap()).addr())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(addresses.windows(2).all(|pair| pair[0] == pair[1]));
}
