//! Building the shared libraries that stand in for libibverbs and libefa.
//!
//! A Rust `cdylib` cannot have a version script of its own, and without version nodes the loader refuses the library. So the cards are
//! compiled as a static library (this very crate, with the feature `cards`), and the C compiler links it under the right soname with
//! the version script. Needed on the machine: cargo and a C compiler (`cc`, or `$CC`).

use crate::error::Error;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

const MAP_VERBS: &str = include_str!("../native/libibverbs.map");
const MAP_EFA: &str = include_str!("../native/libefa.map");
const SOURCE_EFA: &str = include_str!("../native/libefa.c");
const SOURCE_REDIRECT: &str = include_str!("../native/redirect.c");

/// Where the libraries are to be built; default: below the cargo target directory that the running program lies in, or the user's cache.
pub const BUILD_DIR: &str = "SOFT_EFA_BUILD_DIR";
/// A folder with libraries that are ready to use; nothing is built then.
pub const LIBRARY_DIR: &str = "SOFT_EFA_LIBRARY_DIR";

/// The built libraries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Libraries {
    dir: PathBuf,
}

impl Libraries {
    /// Builds them, or finds that they are there and current. Takes a minute the first time and a fraction of a second afterwards;
    /// several processes may do it at once (they wait for each other).
    ///
    /// # Errors
    /// [`Error::Build`] with what cargo or the C compiler said.
    pub fn build() -> Result<Libraries, Error> {
        if let Some(dir) = std::env::var_os(LIBRARY_DIR) {
            return Ok(Libraries { dir: dir.into() });
        }
        Libraries::build_in(&build_dir())
    }

    /// Builds them in a folder of the caller's choice.
    ///
    /// # Errors
    /// As [`Libraries::build`].
    pub fn build_in(base: &Path) -> Result<Libraries, Error> {
        let io = |error| Error::Io { what: format!("prepare {}", base.display()), error };
        fs::create_dir_all(base).map_err(io)?;
        let lock = File::create(base.join("build.lock")).map_err(io)?;
        // SAFETY: flock on a descriptor that we own; it is given back when the file is closed.
        if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) } != 0 {
            return Err(io(std::io::Error::last_os_error()));
        }
        let built = Libraries { dir: base.join("lib") };
        // An installed program outlives its sources, which cargo throws away when they have not been used for long.
        let sources_are_there = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml").is_file();
        if !sources_are_there
            && fs::read_to_string(built.dir.join("sources")).is_ok_and(|text| text == sources())
        {
            return Ok(built);
        }
        fs::create_dir_all(&built.dir).map_err(io)?;
        let archive = compile(base)?;
        if !built.is_newer_than(&archive) {
            built.link(base, &archive)?;
        }
        Ok(built)
    }

    /// The folder for `LD_LIBRARY_PATH`.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The library for `LD_PRELOAD` that redirects `/sys/class/infiniband*` and `/dev/infiniband`.
    pub fn redirect(&self) -> PathBuf {
        self.dir.join("libsoft_efa_redirect.so")
    }

    fn is_newer_than(&self, archive: &Path) -> bool {
        let stamp = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
        let stamped = self.dir.join("sources");
        fs::read_to_string(&stamped).is_ok_and(|text| text == sources())
            && matches!((stamp(&stamped), stamp(archive)), (Some(ours), Some(theirs)) if ours >= theirs)
    }

    fn link(&self, base: &Path, archive: &Path) -> Result<(), Error> {
        let io = |error| Error::Io { what: format!("write below {}", base.display()), error };
        for (name, text) in [
            ("libibverbs.map", MAP_VERBS),
            ("libefa.map", MAP_EFA),
            ("libefa.c", SOURCE_EFA),
            ("redirect.c", SOURCE_REDIRECT),
        ] {
            fs::write(base.join(name), text).map_err(io)?;
        }
        let verbs = self.dir.join("libibverbs.so.1");
        let script = |map: &str| format!("-Wl,--version-script={}", base.join(map).display());
        let compiler = || {
            let mut command = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
            command.args(["-shared", "-fPIC", "-O2"]);
            command
        };
        // Linked under another name and moved into place, so that a program that starts just now finds the old one or the new one.
        let place = |command: &mut Command, to: &Path| -> Result<(), Error> {
            let fresh = to.with_extension("new");
            run(command.arg("-o").arg(&fresh))?;
            fs::rename(&fresh, to).map_err(io)
        };
        place(
            compiler()
                .args([
                    "-Wl,-soname,libibverbs.so.1",
                    "-Wl,--gc-sections",
                    "-Wl,-z,nodelete",
                    "-Wl,--whole-archive",
                ])
                .arg(script("libibverbs.map"))
                .arg(archive)
                .args(["-Wl,--no-whole-archive", "-lpthread", "-ldl", "-lm", "-lgcc_s"]),
            &verbs,
        )?;
        place(
            compiler()
                .arg("-Wl,-soname,libefa.so.1")
                .arg(script("libefa.map"))
                .arg(base.join("libefa.c"))
                .arg(&verbs),
            &self.dir.join("libefa.so.1"),
        )?;
        place(compiler().arg(base.join("redirect.c")).arg("-ldl"), &self.redirect())?;
        fs::write(self.dir.join("sources"), sources()).map_err(io)
    }
}

fn sources() -> String {
    [MAP_VERBS, MAP_EFA, SOURCE_EFA, SOURCE_REDIRECT].concat()
}

/// Compiles this crate as a static library; cargo does nothing when it is current.
fn compile(base: &Path) -> Result<PathBuf, Error> {
    let target = base.join("target");
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    if !manifest.is_file() {
        let said = format!(
            "the sources in {} are gone; `cargo install --force soft-efa` brings them back",
            env!("CARGO_MANIFEST_DIR")
        );
        return Err(Error::Build { tool: "cargo".into(), said });
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args([
            "rustc",
            "--quiet",
            "--lib",
            "--crate-type",
            "staticlib",
            "--release",
            "--no-default-features",
        ])
        .args(["--features", "cards", "--manifest-path"])
        .arg(&manifest)
        .arg("--target-dir")
        .arg(&target)
        // What the outer build was given is not meant for this one.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .env_remove("LD_PRELOAD");
    run(&mut cargo)?;
    Ok(target.join("release/libsoft_efa.a"))
}

fn run(command: &mut Command) -> Result<(), Error> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output =
        command.output().map_err(|error| Error::Build { tool: name.clone(), said: error.to_string() })?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Build { tool: name, said: String::from_utf8_lossy(&output.stderr).into_owned() })
}

fn build_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os(BUILD_DIR) {
        return dir.into();
    }
    // A program below some `target/…` directory of cargo's: keep what is built beside it.
    let exe = std::env::current_exe().unwrap_or_default();
    if let Some(target) = exe.ancestors().find(|dir| dir.join("CACHEDIR.TAG").exists()) {
        return target.join("soft-efa");
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .unwrap_or_else(std::env::temp_dir);
    cache.join(concat!("soft-efa-", env!("CARGO_PKG_VERSION")))
}
