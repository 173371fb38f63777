//! `cargo xtask setup`: what this machine lacks, why it is wanted, and its installation. The other commands call
//! [`provide`] for what they need.
//!
//! Debian packages are installed as root or through sudo, programs from crates.io with `cargo install`. What is there
//! already, from whatever source, is left alone.

use std::path::Path;

use anyhow::{Result, bail};

use crate::registry::{apt_install, apt_install_stopped};
use crate::shell::{Cmd, program_exists};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only say what is there and what is not; exit 1 if something is missing
    #[arg(long)]
    check: bool,
}

/// Something that commands need and that Rust and git do not bring along.
pub(crate) struct Need {
    name: &'static str,
    why: &'static str,
    present: fn() -> bool,
    remedy: Remedy,
}

enum Remedy {
    /// Debian packages.
    Apt(&'static [&'static str]),
    /// Debian packages of servers, and their services, which are to run neither now nor at the next boot.
    AptServer(&'static [&'static str], &'static [&'static str]),
    /// Arguments of `cargo install --locked`.
    Cargo(&'static [&'static str]),
}

pub(crate) const LIBFABRIC: Need = Need {
    name: "libfabric",
    why: "the libfabric layers run on its tcp and shm providers where there is no EFA card",
    present: || {
        let places =
            ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/opt/amazon/efa/lib"];
        places.iter().any(|dir| Path::new(dir).join("libfabric.so.1").exists())
            || Cmd::new("sh").args(["-c", "PATH=$PATH:/sbin ldconfig -p | grep -q libfabric.so.1"]).succeeds()
    },
    remedy: Remedy::Apt(&["libfabric1", "libfabric-bin"]),
};

pub(crate) const VALGRIND: Need = Need {
    name: "valgrind",
    why: "benchmarks count instructions with callgrind, leak tests run under memcheck",
    present: || program_exists("valgrind"),
    remedy: Remedy::Apt(&["valgrind"]),
};

pub(crate) const IPROUTE: Need = Need {
    name: "iproute2",
    why: "network tests make network namespaces and virtual links of their own",
    present: || program_exists("ip") && program_exists("tc"),
    remedy: Remedy::Apt(&["iproute2"]),
};

pub(crate) const CXX: Need = Need {
    name: "g++",
    why: "libFuzzer, the fuzz targets' runtime, is compiled from C++",
    present: || program_exists("c++") || program_exists("g++"),
    remedy: Remedy::Apt(&["g++"]),
};

pub(crate) const ETCD: Need = Need {
    name: "etcd",
    why: "the metadata tests run against a real server, which they start and end themselves",
    present: || program_exists("etcd"),
    remedy: Remedy::AptServer(&["etcd-server"], &["etcd.service"]),
};

pub(crate) const REDIS: Need = Need {
    name: "redis",
    why: "the metadata tests run against a real server, which they start and end themselves",
    present: || program_exists("redis-server"),
    remedy: Remedy::AptServer(&["redis-server"], &["redis-server.service"]),
};

/// Without its default features it needs no OpenSSL and compiles in about two minutes on two cores.
pub(crate) const CARGO_DENY: Need = Need {
    name: "cargo-deny",
    why: "lint checks the dependencies' licences, sources and duplicates",
    present: || Cmd::cargo("deny").arg("--version").succeeds(),
    remedy: Remedy::Cargo(&["--debug", "--no-default-features", "--version", "0.20.2", "cargo-deny"]),
};

const ALL: [&Need; 7] = [&LIBFABRIC, &VALGRIND, &IPROUTE, &CXX, &ETCD, &REDIS, &CARGO_DENY];

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut missing = Vec::new();
    for need in ALL {
        if (need.present)() {
            println!("present  {:<11} {}", need.name, need.why);
        } else if args.check {
            println!("MISSING  {:<11} {}", need.name, need.why);
            missing.push(need.name);
        } else {
            need.install()?;
            println!("new      {:<11} {}", need.name, need.why);
        }
    }
    if !nextest_present() {
        println!("optional cargo-nextest: tests then run in parallel, each with a time limit of its own;");
        println!(
            "         `cargo install --locked cargo-nextest` builds it in some minutes; `cargo test` serves without"
        );
    }
    if !missing.is_empty() {
        bail!("missing: {}; `cargo xtask setup` installs them", missing.join(", "));
    }
    Ok(())
}

/// Installs what is missing of `needs`. What cannot be installed is said and left out: the caller's work goes on, and
/// tests that need it skip with a reason.
pub(crate) fn provide(needs: &[&Need]) {
    for need in needs.iter().filter(|need| !(need.present)()) {
        if let Err(error) = need.install() {
            eprintln!("warning: going on without {}: {error:#}", need.name);
        }
    }
}

/// Is cargo-nextest installed?
pub(crate) fn nextest_present() -> bool {
    Cmd::cargo("nextest").arg("--version").succeeds()
}

impl Need {
    fn install(&self) -> Result<()> {
        match self.remedy {
            Remedy::Apt(packages) => apt_install(packages, self.why)?,
            Remedy::AptServer(packages, services) => apt_install_stopped(packages, services, self.why)?,
            Remedy::Cargo(args) => {
                eprintln!("building {} from crates.io: {}", self.name, self.why);
                Cmd::cargo("install")
                    .args(["--quiet", "--locked"])
                    .args(args)
                    .env_remove("CARGO_TARGET_DIR")
                    .run()?;
            }
        }
        if !(self.present)() {
            bail!("{} was installed but is still not found", self.name);
        }
        Ok(())
    }
}
