//! `cargo xtask libfabric`: a libfabric 2.5.1 with its `efa` provider under `target/`, from registries alone.
//!
//! The library and the provider come out of PyPI's wheel of MPICH, which bundles them; the programs are Debian's
//! (`libfabric-bin`), which run against any newer libfabric. Nothing is installed over the system's libfabric: who wants
//! this one says so, by `FABRIC_LIBRARY` or `LD_LIBRARY_PATH`.
//!
//! ```text
//! PREFIX/lib/libfabric.so.1              the library
//! PREFIX/lib/libfabric/libefa-fi.so      the provider (FI_PROVIDER_PATH)
//! PREFIX/bin/fi_info, fi_pingpong        run Debian's programs with both set
//! ```

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::bindgen;
use crate::registry::{self, Pinned};
use crate::shell::{Cmd, program_exists};
use crate::workspace;

/// Puts libfabric 2.5.1 with its efa provider under target/ and prints its prefix as the last line
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also what linking against it needs (headers, pkg-config file); prints the variables before the prefix
    #[arg(long)]
    link: bool,
}

/// The release that the wheel bundles, as `fi_info --version` says it.
const VERSION: &str = "2.5.1";
const REQUIREMENT: &str = "mpich==5.0.2";
#[cfg(target_arch = "x86_64")]
const PLATFORM: &str = "manylinux_2_28_x86_64";
#[cfg(target_arch = "x86_64")]
const WHEEL: Pinned = Pinned {
    file: "mpich-5.0.2-py3-none-manylinux_2_28_x86_64.whl",
    sha256: "8fed465ebff269ea2ebac179a25de02671ddf8df476e0f115be089015015cfd4",
};
#[cfg(target_arch = "aarch64")]
const PLATFORM: &str = "manylinux_2_28_aarch64";
#[cfg(target_arch = "aarch64")]
const WHEEL: Pinned = Pinned {
    file: "mpich-5.0.2-py3-none-manylinux_2_28_aarch64.whl",
    sha256: "992ae6ebb0da97d49d7a67000ae8112da9a3825da1bb1e6f1d196428a0410f2d",
};

/// Debian's programs.
const PROGRAMS: [&str; 2] = ["fi_info", "fi_pingpong"];

/// A libfabric that [`install`] has put in place.
pub(crate) struct Prefix(PathBuf);

impl Prefix {
    /// The folder with `lib` and `bin`.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The variables that make a program use this libfabric: by our loader, by the system's, and its provider.
    pub(crate) fn env(&self) -> [(&'static str, PathBuf); 3] {
        let lib = self.0.join("lib");
        [
            ("FABRIC_LIBRARY", lib.join("libfabric.so.1")),
            ("FI_PROVIDER_PATH", lib.join("libfabric")),
            ("LD_LIBRARY_PATH", lib),
        ]
    }

    /// The variables with which fabric-sys builds and runs with its feature `linked`: pkg-config and libclang for the
    /// build script of ofi-libfabric-sys, and those of [`env`](Self::env).
    ///
    /// The headers are those that the bindings were made from (2.1.0), so that the layouts can be compared.
    pub(crate) fn link_env(&self) -> Result<Vec<(&'static str, OsString)>> {
        let target = self.0.parent().context("the prefix has no parent")?;
        let (include, libclang) = (bindgen::headers(target)?, bindgen::libclang(target)?);
        let builtin = bindgen::builtin_headers()?;
        if !program_exists("pkg-config") {
            registry::apt_install(
                &["pkg-config"],
                "the build script of ofi-libfabric-sys asks it for libfabric",
            )?;
        }
        let lib = self.0.join("lib");
        let config = lib.join("pkgconfig");
        fs::create_dir_all(&config).with_context(|| format!("cannot create {}", config.display()))?;
        replace(&config.join("libfabric.pc"), |new| {
            let (lib, include) = (lib.display(), include.display());
            let text = format!(
                "Name: libfabric\nDescription: libfabric {VERSION} with the headers of 2.1.0\nVersion: 2.1.0\n\
                 Libs: -L{lib} -lfabric\nCflags: -I{include}\n"
            );
            Ok(fs::write(new, text)?)
        })?;
        replace(&lib.join("libfabric.so"), |new| Ok(symlink("libfabric.so.1", new)?))?;
        let mut env = vec![
            ("PKG_CONFIG_PATH", config.into_os_string()),
            ("LIBCLANG_PATH", libclang.into_os_string()),
            ("BINDGEN_EXTRA_CLANG_ARGS", format!("-isystem {builtin}").into()),
        ];
        env.extend(self.env().map(|(name, path)| (name, path.into_os_string())));
        Ok(env)
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let prefix = install()?;
    if args.link {
        for (name, value) in prefix.link_env()? {
            println!("export {name}='{}'", value.display());
        }
    }
    let fi_info = prefix.path().join("bin/fi_info");
    eprint!("{}", Cmd::new(fi_info).arg("--version").stdout()?);
    println!("{}", prefix.path().display());
    Ok(())
}

/// Makes the prefix if it is not there, in whole or in part.
pub(crate) fn install() -> Result<Prefix> {
    let target = workspace::Workspace::load()?.target_dir;
    let prefix = target.join(format!("libfabric-{VERSION}"));
    if !prefix.join("lib/libfabric/libefa-fi.so").is_file() {
        library(&target, &prefix)?;
    }
    programs(&prefix)?;
    let said = Cmd::new(prefix.join("bin/fi_info")).arg("--version").quiet().stdout()?;
    ensure!(
        said.lines().any(|line| line.trim() == format!("libfabric: {VERSION}")),
        "{} does not run on libfabric {VERSION}; it says:\n{said}",
        prefix.join("bin/fi_info").display()
    );
    Ok(Prefix(prefix))
}

/// The library and the provider, out of the wheel.
fn library(target: &Path, prefix: &Path) -> Result<()> {
    let wheel = registry::wheel(REQUIREMENT, PLATFORM, &WHEEL, &target.join("downloads"))?;
    let unpacked = target.join(format!("libfabric-{VERSION}.unpacked"));
    if unpacked.exists() {
        fs::remove_dir_all(&unpacked).with_context(|| format!("cannot remove {}", unpacked.display()))?;
    }
    registry::unpack_wheel(&wheel, &unpacked)?;
    let from = unpacked.join("mpich-5.0.2.data/data/lib/mpich");
    let lib = prefix.join("lib");
    fs::create_dir_all(lib.join("libfabric")).with_context(|| format!("cannot create {}", lib.display()))?;
    // The provider last: `install` takes it as the sign that all is there. Its run path finds the library above it.
    for file in ["libfabric.so.1", "libfabric/libefa-fi.so"] {
        replace(&lib.join(file), |new| {
            fs::copy(from.join(file), new).with_context(|| format!("no {file} in {}", wheel.display()))?;
            Ok(fs::set_permissions(new, fs::Permissions::from_mode(0o755))?)
        })?;
    }
    fs::remove_dir_all(&unpacked).with_context(|| format!("cannot remove {}", unpacked.display()))
}

/// The programs, as wrappers around Debian's.
fn programs(prefix: &Path) -> Result<()> {
    // libefa1 and libibverbs1 are what the efa provider is linked against.
    let libraries = ["libibverbs.so.1", "libefa.so.1"].iter().all(|name| on_loader_path(name));
    if !libraries || !PROGRAMS.iter().all(|program| program_exists(program)) {
        let why = "fi_info and fi_pingpong, and the verbs libraries that libfabric's efa provider needs";
        registry::apt_install(&["libfabric-bin", "libfabric1", "libibverbs1", "ibverbs-providers"], why)?;
    }
    let bin = prefix.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("cannot create {}", bin.display()))?;
    for program in PROGRAMS {
        let script = format!(
            "#!/bin/sh\n\
             # Debian's {program} on the libfabric of this prefix.\n\
             prefix=$(CDPATH= cd -- \"$(dirname -- \"$0\")/..\" && pwd) || exit 1\n\
             LD_LIBRARY_PATH=\"$prefix/lib${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}\"\n\
             FI_PROVIDER_PATH=\"$prefix/lib/libfabric${{FI_PROVIDER_PATH:+:$FI_PROVIDER_PATH}}\"\n\
             export LD_LIBRARY_PATH FI_PROVIDER_PATH\n\
             exec /usr/bin/{program} \"$@\"\n"
        );
        let path = bin.join(program);
        if fs::read_to_string(&path).is_ok_and(|there| there == script) {
            continue;
        }
        replace(&path, |new| {
            fs::write(new, &script)?;
            Ok(fs::set_permissions(new, fs::Permissions::from_mode(0o755))?)
        })?;
    }
    Ok(())
}

/// Writes a file beside its place and moves it there, so that nobody sees half of it.
fn replace(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let new = path.with_extension(format!("new.{}", std::process::id()));
    write(&new)
        .and_then(|()| fs::rename(&new, path).map_err(Into::into))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Does the system's loader know a library of this name?
fn on_loader_path(soname: &str) -> bool {
    let list = Cmd::new("/sbin/ldconfig").arg("-p").quiet().stdout().unwrap_or_default();
    list.lines().any(|line| line.split_whitespace().next() == Some(soname))
}
